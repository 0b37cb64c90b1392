"""The benchmarks at tiny sizes: results and operation counts, never seconds."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import coarse, fine, growth, kernels, offload, plain, sparse, structured
from benchmarks.measure import Row, in_child, in_children, interleaved, operations
from benchmarks.models import llama, tokens
from ecoflap.errors import UserError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.sparse import library
from tests import tiny


@pytest.fixture(scope="module", autouse=True)
def little_to_collect() -> None:
    """Leave what earlier tests have made out of the garbage collection before each measurement.

    It takes a second in a process that has run thousands of tests.
    """
    gc.collect()
    gc.freeze()


def test_solve_row() -> None:
    row = kernels.solve(256, runs=1)
    assert row.agreement.lstrip("los +-") == "0.0000 %, 100.0000% of the mask"
    assert row.details["our operations"] < row.details["plain operations"] / 3


@pytest.mark.parametrize("shape", [(64, 96), (96, 64)])
def test_admm_rows(shape: tuple[int, int]) -> None:
    row = kernels.admm(*shape, runs=1)
    assert float(row.agreement.removeprefix("loss ").removesuffix(" %")) < 0


def test_selection_rows() -> None:
    assert kernels.selection(64, runs=1).agreement == "same mask"
    for n, m in ((2, 4), (4, 8), (3, 16)):
        assert kernels.n_of_m(256, n, m, runs=1).agreement == "same mask"


def test_the_operations_of_an_n_of_m_mask_do_not_grow_with_the_matrix() -> None:
    small, large = (kernels.n_of_m(size, 2, 4, runs=1) for size in (64, 256))
    assert small.ours == large.ours
    assert large.plain > 3 * small.plain


def test_zeroth_order_rows() -> None:
    derivative, block, layer = coarse.zeroth_order("tiny", llama(32, 3), tokens(4, 6, 256), [0, 2])
    for row in (derivative, layer):
        assert (
            float(row.agreement.removeprefix("scores to ")) < 1e-2
        )  # losses of 5.5, moved by 1e-3 times a gradient, in fp32
    assert block.agreement == "another estimator, by definition"


@pytest.mark.parametrize("name", fine.CASES)
def test_whole_run_rows(name: str) -> None:
    model, case = llama(32, 3), fine.CASES[name]
    before = model.fingerprint()
    rows = fine.whole_run(name, model, tokens(5, 20, 256), case, batch_size=2, runs=1)
    assert [row.name.partition("propagate=")[2] or "pruned" for row in rows] == list(case.propagate)
    assert {row.name.partition("propagate=")[2] for row in rows if row.target} <= {"", "layer"}
    assert all(row.against.startswith("sparsegpt") is ("admm" in name) for row in rows)
    if case.propagate[0] == "pruned" and case.published == case.pruner.name:
        # The published loop rounds counts per row, and so do two orders of summation.
        assert float(rows[0].agreement.removesuffix("% of the mask")) > 98
    assert model.fingerprint() == before


def test_rows_of_pruned_models_in_use() -> None:
    model, batch = tiny.build("blip_vqa"), tiny.samples("blip_vqa", (5, 5)).batches(2)[0]
    before, size = model.fingerprint(), sum(layer.size for layer in model.layers)
    zero, cut = structured.half_zero(model), structured.half_cut(model)
    assert sum(int((layer.weight == 0).sum()) for layer in zero.layers) == size / 2
    assert sum(layer.size for layer in cut.layers) < 0.6 * size
    zeroed, _ = structured.forward("tiny", model, batch, runs=1)
    assert zeroed.agreement == "100% of the parameters stored"
    assert model.fingerprint() == before


def test_the_published_loop_prunes_one_sequence_at_a_time() -> None:
    model, calibration = llama(16, 2), tokens(3, 8, 256)
    calls: list[int] = []
    handle = model.blocks[1].module.register_forward_pre_hook(
        lambda _, arguments: calls.append(len(arguments[0]))
    )
    with quiet_forward(model.module):
        plain.prune_by_sequences(model, calibration.batches(1), "wanda", 0.5)
    handle.remove()
    assert calls == [1] * 6
    assert all(int((layer.weight == 0).sum()) == layer.size // 2 for layer in model.layers)


def test_exponent() -> None:
    assert growth.exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2.0)
    row = growth.growth("wanda", "samples", (1, 2), {"width": 16, "depth": 1, "tokens": 4, "samples": 1})
    assert row.plain == 1
    assert len(row.details["seconds"]) == 2


def test_same_weights(tmp_path: Path) -> None:
    module = tiny.build("llama").module
    for name in ("one", "other"):
        module.save_pretrained(tmp_path / name)
    assert offload.same_weights(tmp_path / "one", tmp_path / "other")
    with torch.no_grad():
        next(module.parameters())[0, 0] += 1
    module.save_pretrained(tmp_path / "other")
    assert not offload.same_weights(tmp_path / "one", tmp_path / "other")


def test_a_child_process_measures_its_own_peak() -> None:
    peaks = [in_child("benchmarks.allocate:allocate", mebibytes=size)["peak_bytes"] for size in (1, 200)]
    assert 150 * 2**20 < peaks[1] - peaks[0] < 250 * 2**20
    with pytest.raises(RuntimeError, match=r"allocate\({'mebibytes': 'much'}\) failed in its child process"):
        in_child("benchmarks.allocate:allocate", mebibytes="much")


def test_sides_take_turns() -> None:
    order: list[str] = []
    seconds = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, runs=2)
    assert order == ["a", "b", "a", "b"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_views_are_no_operations() -> None:
    matrix = torch.zeros(4, 4)
    assert operations(lambda: matrix.t()[1:]) == 0
    assert operations(lambda: (matrix + 1).t().sum()) == 2


@pytest.mark.parametrize(
    ("target", "met"),
    [((">=", 2.0), True), ((">=", 2.1), False), (("<=", 2.0), True), (("<=", 1.9), False), (None, None)],
)
def test_targets(target: tuple[str, float] | None, met: bool | None) -> None:
    assert Row("a", "b", "s", 4.0, 2.0, 2.0, target, "-").met is met


def test_the_table_replaces_the_one_before_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        kernels, "rows", lambda runs: iter([Row("row", "other", "s", 4.0, 2.0, 2.0, (">=", 3.0), "same")])
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    text = tmp_path / "benchmarks.md"
    text.write_text(f"before\n{command.BEGIN}\nold\n{command.END}\nafter\n")
    command.main(["--only", "kernels", "--docs", str(tmp_path)])
    assert "| row | other | 4 | 2 s | 2 | ≥ 3 | **no** | same |" in text.read_text()
    assert text.read_text().startswith("before\n")
    assert text.read_text().endswith("\nafter\n")
    assert "old" not in text.read_text()
    assert (
        json.loads((tmp_path / "benchmarks.json").read_text())["groups"]["kernels"]["rows"][0]["met"] is False
    )


def test_rows_that_cannot_be_measured_stay_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(runs: int) -> Iterator[Row]:
        yield Row("row", "other", "s", 4.0, 2.0, 2.0, None, "same")

    def lacking(runs: int) -> Iterator[Row]:
        raise UserError("SmolLM2 is not installed")
        yield

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for made in (rows, lacking):
        monkeypatch.setattr(kernels, "rows", made)
        command.main(["--only", "kernels", "--docs", str(tmp_path)])
    monkeypatch.setattr(growth, "rows", rows)
    command.main(["--only", "growth", "--docs", str(tmp_path)])
    assert (tmp_path / "benchmarks.md").read_text().count("| row | other |") == 2


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "admm"])
@pytest.mark.variant
def test_the_bytes_that_processes_send_are_those_of_the_arithmetic(method: str) -> None:
    for found in in_children(2, "benchmarks.processes:measure", method=method, model="llama"):
        assert found["sent"] == found["expected"] > 0


@pytest.mark.variant
def test_speeds_without_the_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for each variant that this machine has and sparsity, a column for each number of tokens."""
    for name, value in (("SHAPES", ((40, 70),)), ("TOKENS", (1, 20)), ("ROUNDS", 1), ("CACHE", 2**14)):
        monkeypatch.setattr(sparse, name, value)

    all_variants = library.VARIANTS

    def here(function: str, held: dict[str, str], **where: Any) -> dict[str, Any]:
        """Measure in this process, where the chosen variant must not stay the only one."""
        library.products.cache_clear()
        found = getattr(sparse, function.partition(":")[2])(**where)
        library.VARIANTS = all_variants
        return {**found, "peak_bytes": 0}

    monkeypatch.setattr(sparse, "in_child", here)
    before = torch.get_num_threads()
    try:
        heading, _, *rows = sparse.table("products", ["1 token", "20 tokens"], before)
    finally:
        library.VARIANTS = all_variants
        library.products.cache_clear()
    there = 0
    for dtype, place, _ in sparse.variants():
        with suppress(UserError):
            library.compiled(all_variants[getattr(torch, dtype)][place])
            there += 1
    assert heading == "| dense time / sparse time | | | 1 token | 20 tokens |"
    assert len(rows) == there * len(sparse.SPARSITIES)
    for row in rows:
        assert row.startswith("| 40 x 70 | ")
        assert all(float(cell) > 0 for cell in row.split("|")[4:6])
