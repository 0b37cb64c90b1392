"""What a plan says of the memory of large models, against arithmetic with their dimensions."""

from __future__ import annotations

import re

import pytest
import torch

from ecoflap.cli import command
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.prune.wanda import Wanda
from ecoflap.run.instantiate import build
from ecoflap.run.steps.memory import needs_without_data
from ecoflap.run.steps.workload import Need, Workload
from ecoflap.score.zeroth_order import ZerothOrder
from tests.cli.conftest import composed
from tests.models.test_current_sizes import LATENT, attention, gated
from tests.models.test_published_sizes import TOTALS, inspected

pytestmark = pytest.mark.long

CPU = torch.device("cpu")
# {model: weights outside the blocks, weights of the largest block with norms, and those of them in fp32}
SIZES = {
    "qwen3_30b_a3b": (
        2 * 151936 * 2048 + 2048,
        attention(2048, 32, 4, 128) + 2 * 128 + 2 * 2048 + 128 * 2048 + 128 * gated(2048, 768),
        0,
    ),
    "deepseek_v3": (
        2 * 129280 * 7168 + 7168,
        LATENT + 1536 + 512 + 2 * 7168 + 256 * 7168 + (256 + 1) * gated(7168, 2048),
        256 * 7168,  # transformers keeps its routers so
    ),
}


def needs(model: PrunableModel, offload: str) -> dict[str, Need]:
    found = needs_without_data(model, offload, CPU, Workload(Wanda(), scorer=ZerothOrder()))
    return {need.step: need for need in found}


@pytest.mark.parametrize("name", SIZES)
def test_two_blocks_are_in_memory_at_a_time(name: str) -> None:
    outside, block, wide = SIZES[name]
    offloaded, whole = needs(inspected(name), "disk"), needs(inspected(name), "none")
    assert offloaded["prune"].weights == 2 * (outside + 2 * (block + wide))  # bytes of bf16
    assert offloaded["score"].weights == 4 * (outside + 2 * block)  # zeroth order scores in fp32
    assert whole["prune"].weights == 2 * (TOTALS[name][0] + 58 * wide)  # 58 of its blocks have routers


def test_the_dtype_that_was_asked_for_counts() -> None:
    inspected("qwen3_30b_a3b")  # or this test is skipped
    options = composed(["model=qwen3_30b_a3b", "model.dtype=float32"]).model
    wide = build("model", options).load(torch.device("meta"), Selection())
    assert (
        needs(wide, "disk")["prune"].weights == 2 * needs(inspected("qwen3_30b_a3b"), "disk")["prune"].weights
    )


@pytest.mark.parametrize(
    ("steps", "rows"),
    [
        (["calibrate"], []),
        (["calibrate", "score"], ["score"]),
        (["evaluate"], ["evaluate"]),
        (["calibrate", "score", "allocate", "prune", "evaluate"], ["score", "prune", "evaluate"]),
        (["calibrate", "score", "allocate", "prune", "finetune"], ["score", "prune", "finetune"]),
    ],
)
def test_only_steps_that_run_are_planned(
    steps: list[str], rows: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["+preset=debug", "score=first_order", f"steps=[{','.join(steps)}]"]
    assert command.main(["plan", *chosen]) == 0
    shown = capsys.readouterr().out.partition("approximate memory")[2].partition("fits ")[0]
    assert re.findall(r"^  (\w+) .*MiB", shown, re.MULTILINE) == rows


def test_the_command_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["plan", "model=t5_mini", "runtime.offload=disk", "tracking=none"]) == 0
    shown = capsys.readouterr().out
    assert "2 blocks at a time (runtime.offload=disk), float32" in shown
    assert command.main(["plan", "model=t5_mini", "tracking=none"]) == 0
    assert "all weights (runtime.offload=none), float32" in capsys.readouterr().out
    where = ["device=cpu", "runtime.offload=cpu"]
    assert command.main(["plan", "model=t5_mini", "tracking=none", *where]) == 0
    assert "all weights (runtime.offload=cpu), float32" in capsys.readouterr().out
