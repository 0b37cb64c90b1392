"""How many devices of which size a plan says that a run wants, against arithmetic."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.models import llama, tokens
from ecoflap.cli import command
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from ecoflap.run.instantiate import build
from ecoflap.run.steps.devices import GB, cost_from_shapes, device_counts, devices_wanted, say_devices
from ecoflap.run.steps.memory import memory_needs, needs_without_data
from ecoflap.run.steps.sample_cost import sample_cost
from ecoflap.run.steps.workload import Need, Workload
from ecoflap.score.first_order import FirstOrder
from ecoflap.score.zeroth_order import ZerothOrder
from tests import tiny
from tests.cli.conftest import ROOT, composed, text_file, tiny_llama  # noqa: F401 - two fixtures
from tests.models.test_current_sizes import attention, gated
from tests.models.test_published_sizes import TOTALS, inspected
from tests.run.test_memory import alive

pytestmark = pytest.mark.long

SAMPLES, TOKENS, BATCH, DEVICES = 128, 2048, 16, 8


@cache
def published(name: str) -> PrunableModel:
    """A published model in bf16, on the meta device."""
    inspected(name)  # or the test is skipped
    config = composed([f"model={name}", "model.dtype=bfloat16", "inspect=true"]).model
    model: PrunableModel = build("model", config).load(torch.device("meta"), Selection())
    return model


def per_device(name: str, pruner: Any, devices: int = DEVICES) -> Need:
    """What pruning an offloaded model needs on each of some devices."""
    model = published(name)
    cost = cost_from_shapes(model, TOKENS)
    work = Workload(pruner, SAMPLES, BATCH, devices=devices)
    (need,) = needs_without_data(model, "disk", torch.device("cuda"), work, cost)
    return need


def sums(cols: int) -> int:
    """Bytes of the upper half of a Gram matrix in fp64, in strips of 256 rows."""
    return 8 * cols * (cols + 256) // 2


def test_llama_70b_on_eight_devices() -> None:
    """The numbers of docs/large_models.md."""
    block = attention(8192, 64, 8, 128) + gated(8192, 28672) + 2 * 8192
    outside = 2 * 128256 * 8192 + 8192
    assert outside + 80 * block == TOTALS["llama_3_70b"][0]
    state = TOKENS * 8192 * 2
    outputs = TOKENS * 2 * (2 * 8192 + 2 * 1024 + 2 * 28672 + 8192)
    grams = 6 * sums(8192) + sums(28672) + 4 * 3 * 28672**2
    wanda, gram = per_device("llama_3_70b", Wanda()), per_device("llama_3_70b", SparseGPT())
    assert wanda.weights == gram.weights == 2 * (outside + 2 * block)
    assert wanda.states + wanda.offloaded == BATCH * state + SAMPLES // DEVICES * state
    layers = SparseGPT().footprint.layers * 4 * 8192 * 28672
    assert gram.work == BATCH * (outputs + state) + grams + layers
    assert round(gram.weights / GB, 1) == 7.6
    assert round((gram.states + gram.offloaded) / GB, 1) == 1.1
    assert round(gram.work / GB, 1) == 24.6
    assert gram.total + gram.offloaded < 80 * GB


def test_qwen3_vl_235b_on_eight_devices() -> None:
    """The numbers of docs/large_models.md."""
    name = "qwen3_vl_235b_a22b"
    routed = 128 * gated(4096, 1536)
    block = attention(4096, 64, 4, 128) + 2 * 128 + 2 * 4096 + 128 * 4096 + routed
    text = 94 * block + 2 * 151936 * 4096 + 4096
    assert text == 235_093_634_560, "Qwen3-235B-A22B, as published"
    need = per_device(name, SparseGPT())
    vision = 4 * 1152**2 + 2 * 1152 * 4304 + 9 * 1152 + 4304
    merger = 4608**2 + 4608 * 4096 + 3 * 4608 + 4096  # three blocks that are left dense
    outside = TOTALS[name][0] - 94 * block - 27 * vision - 3 * merger
    assert need.weights == 2 * (outside + 2 * block)
    state = TOKENS * 2 * (4096 + 1152)  # each token is taken to pass both towers
    assert need.states + need.offloaded == BATCH * state + SAMPLES // DEVICES * state
    columns = [4096] * 3 + [64 * 128] + 128 * [4096, 1536]
    grams = sum(map(sums, columns)) + 4 * 3 * 8192**2
    layers = SparseGPT().footprint.layers * 4 * 8192 * 4096
    outputs = 64 * 128 + 2 * 4 * 128 + 4096 + 8 * (2 * 1536 + 4096)
    assert need.work == BATCH * TOKENS * 2 * (outputs + 4096) + grams + layers
    assert need.total + need.offloaded < 80 * GB


@pytest.mark.parametrize("name", ["llama_3_70b", "qwen3_vl_235b_a22b"])
def test_the_page_says_the_same(name: str) -> None:
    page = (ROOT / "docs/large_models.md").read_text()
    for pruner in (Wanda(), SparseGPT()):
        need = per_device(name, pruner)
        kept = replace(need, states=need.states + need.offloaded)
        sizes = (kept.weights, kept.states, kept.one_pass, kept.total)
        cells = [f"{size / GB:.1f}" for size in sizes]
        assert f"| `{name}` | `{pruner.name}` | {' | '.join(cells)} |" in page


@pytest.mark.parametrize("family", ["llama", "opt", "vit"])
def test_shapes_tell_what_a_sample_costs(family: str) -> None:
    """Hidden states exactly, where a sample has one length; a block's activations by about half or double."""
    model, calibration = tiny.build(family), tiny.samples(family, (7,))
    measured = sample_cost(model, calibration)
    tokens = calibration.samples[0]["input_ids"].shape[-1] if family != "vit" else 5
    shapes = cost_from_shapes(model, tokens)
    assert shapes.outputs == measured.outputs
    assert measured.block / 3 < shapes.block < 3 * measured.block


@pytest.mark.parametrize("scorer", [FirstOrder(batch_size=4), ZerothOrder(batch_size=4, samples_per_pass=1)])
def test_the_logits_of_a_large_vocabulary_count(scorer: FirstOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ecoflap.models.core.losses.AT_ONCE", 2**16
    )  # few beside the logits, as in large models
    model, calibration = llama(64, 2, 8000), tokens(4, 128, 8000)
    work = Workload(Wanda(), 4, 4, scorer)
    need, _ = memory_needs(model, cost_from_shapes(model, 128), work)
    taken = alive(lambda: scorer(model, calibration, 0))
    assert taken / 2 < need.total - need.weights < 2 * taken


def test_samples_are_split_and_nothing_else() -> None:
    model, calibration = tiny.build("llama"), tiny.samples("llama")
    cost = sample_cost(model, calibration)
    one, four = (
        memory_needs(model, cost, Workload(SparseGPT(), 10, 2, devices=devices))[0] for devices in (1, 4)
    )
    assert (one.states, four.states) == (10 * cost.states, 3 * cost.states)
    assert (one.weights, one.work) == (four.weights, four.work)


def test_the_fewest_devices() -> None:
    def need(states: int, waiting: int = 0) -> list[Need]:
        return [Need("prune", 10 * GB, states * GB, 2 * GB, waiting * GB)]

    assert device_counts(128, 16) == [1, 2, 4, 8]
    assert device_counts(1, 16) == [1]
    split = {count: need(64 // count) for count in (1, 2, 4, 8)}
    assert [devices_wanted(split, size * GB, True) for size in (12, 16, 20, 76)] == [None, None, 8, 1]
    assert say_devices(split, "none") == "fits 8 x 24 GB or 4 x 40 GB or 1 x 80 GB"
    waiting = {count: need(1, 64 // count) for count in (1, 2, 4, 8)}
    assert say_devices(waiting, "cpu").startswith("fits 1 x 16 GB; 8 x 24 GB or 4 x 40 GB or 1 x 80 GB with")
    assert say_devices({1: need(400)}, "none") == "fits no device of up to 141 GB; use runtime.offload=cpu"
    assert "use model.dtype=bfloat16" in say_devices({1: need(400)}, "disk")


def test_the_command_says_it(
    tiny_llama: Path,
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (other := tmp_path / "other.txt").write_text(" ".join(reversed(text_file.read_text().split())))
    text = ["calibration=wikitext2", f"calibration.path={text_file}", "calibration.samples=4"]
    run = ["model=causal_lm", f"model.path={tiny_llama}", *text, "calibration.sequence_length=8"]
    task = ["task=wikitext2", f"task.path={other}", "task.sequence_length=8", "tracking=none"]
    assert command.main(["plan", *run, *task]) == 0
    assert "fits 1 x 16 GB (4 samples of up to 8 tokens, about)" in capsys.readouterr().out
    assert command.main(["plan", "model=t5_mini", "tracking=none"]) == 0
    assert "fits 1 x 16 GB (weights and statistics, beside activations, about)" in capsys.readouterr().out
