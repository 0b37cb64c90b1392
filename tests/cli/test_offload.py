"""Runs whose blocks are away while nobody uses them make the same weights, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ecoflap.errors import UserError
from ecoflap.models.offload.placement import is_placeholder
from ecoflap.storage.results import Result, verify

Run = Callable[..., Result]
COARSE = {
    "none": ["score=none"],
    "first_order": ["score=first_order", "score.recompute=false"],
    "zeroth_order": ["score=zeroth_order"],
    "local": ["score=local"],
}


@pytest.fixture
def text_run(text_run: list[str], tmp_path: Path) -> list[str]:
    """The same over a model of more blocks than are in memory at a time."""
    source = Path(
        next(override for override in text_run if override.startswith("model.path=")).removeprefix(
            "model.path="
        )
    )
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(source, num_hidden_layers=5)
    config.layer_types = None
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model", max_shard_size="8KB")
    GenerationConfig(repetition_penalty=1.5, eos_token_id=[1, 2]).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "model")
    return [override for override in text_run if not override.startswith("model.path=")] + [
        f"model.path={tmp_path / 'model'}"
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder / "checkpoint").state_dict()


def without_scores(overrides: list[str]) -> list[str]:
    return [override for override in overrides if not override.startswith("score.")]


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize(
    ("score", "pruner", "propagate"),
    [
        *((score, "wanda", "pruned") for score in COARSE),
        ("none", "sparsegpt", "pruned"),
        ("none", "sparsegpt", "layer"),
        ("none", "sparsegpt", "compensated"),
    ],
)
@pytest.mark.every_run(
    "zeroth_order-wanda-pruned-disk",
    "first_order-wanda-pruned-disk",
    "local-wanda-pruned-disk",
    "none-sparsegpt-layer-disk",
    "none-sparsegpt-compensated-disk",
)
def test_the_same_weights_scores_and_metrics(
    run: Run, text_run: list[str], tmp_path: Path, offload: str, score: str, pruner: str, propagate: str
) -> None:
    overrides = [
        *without_scores(text_run),
        *COARSE[score],
        f"pruner={pruner}",
        f"propagate={propagate}",
        "model.save=true",
        "cache_mode=off",
    ]
    expected = run(overrides, "plain")
    result = run([*overrides, f"runtime.offload={offload}"], "away")
    assert result.metrics == expected.metrics
    assert result.sparsity == expected.sparsity
    assert result.model == expected.model, "the fingerprint too, so that the two share their cache"
    ours, theirs = weights(tmp_path / "away"), weights(tmp_path / "plain")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    generation = [
        json.loads((tmp_path / name / "checkpoint" / "generation_config.json").read_text())
        for name in ("away", "plain")
    ]
    assert generation[0] == generation[1]
    assert generation[0]["repetition_penalty"] == 1.5
    if score != "none":
        scores = [
            json.loads((tmp_path / name / "scores.json").read_text())["importance"]
            for name in ("plain", "away")
        ]
        assert scores[0] == scores[1]
    assert not (tmp_path / "away" / "offload").exists()
    assert verify(tmp_path / "away") == []


class NoPlace(TorchFunctionMode):
    """Nobody may ask where a weight is that is away: its stand-in is on the CPU, wherever its block runs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == torch.Tensor.device.__get__ and is_placeholder(args[0]):
            raise AssertionError("the device of a weight that is away was asked for")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize(
    "options",
    [
        ["score=zeroth_order"],
        ["score=zeroth_order", "score.probe=block"],
        ["score=zeroth_order", "score.probe=derivative"],
        ["score=first_order"],
        ["score=local"],
        ["score=none", "propagate=dense"],
        ["score=none", "propagate=layer"],
        ["score=none", "pruner=admm", "propagate=compensated"],
        ["score=none", "pruner=sparsegpt"],
        ["score=none", "pruner=magnitude"],
    ],
    ids=lambda options: options[-1],
)
@pytest.mark.every_run(
    "score=zeroth_order-disk",
    "score.probe=block-disk",
    "score=first_order-disk",
    "score=local-disk",
    "propagate=compensated-disk",
    "propagate=layer-disk",
    "pruner=magnitude-disk",
)
def test_blocks_are_computed_where_they_run(
    run: Run, text_run: list[str], offload: str, options: list[str]
) -> None:
    """What no machine without an accelerator would notice."""
    with NoPlace():
        run([*without_scores(text_run), *options, f"runtime.offload={offload}", "cache_mode=off"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(run: Run, text_run: list[str], tmp_path: Path, dtype: str) -> None:
    overrides = [*text_run, "score=zeroth_order", f"model.dtype={dtype}", "model.save=true", "cache_mode=off"]
    run(overrides, "plain")
    run([*overrides, "runtime.offload=disk"], "away")
    ours, theirs = weights(tmp_path / "away"), weights(tmp_path / "plain")
    assert all(
        torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours
    )


def test_the_plan_comes_first(run: Run, text_run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run([*without_scores(text_run), "score=none", "runtime.offload=disk", "steps=[calibrate,allocate,prune]"])
    output = capsys.readouterr().out
    assert "memory (runtime.offload=disk, on cpu)" in output
    assert output.index("weights in use") < output.index("prunable")


@pytest.mark.parametrize("offload", ["none", "disk"])
def test_a_run_says_it_before_it_scores(
    run: Run, text_run: list[str], capsys: pytest.CaptureFixture[str], offload: str
) -> None:
    run([*text_run, "cache_mode=off", f"runtime.offload={offload}"])
    output = capsys.readouterr().out
    assert "approximate peak memory on cpu" in output
    assert output.index("approximate peak memory") < output.index("sparsity")
    assert ("waiting on disk" in output) == (offload == "disk")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            ["model=blip2_mini", "calibration=easy_vqa", "runtime.offload=disk", "model.path=nowhere/at/all"],
            "model.path=nowhere/at/all",
        ),
        (
            ["model=blip2_mini", "runtime.offload=disk", "model.vision_from=RUN"],
            r"model\.vision_from=RUN changes weights.*runtime\.offload=cpu",
        ),
        (
            ["propagate=denser"],
            r"propagate=denser is not known; did you mean dense\? "
            "the choices are auto, pruned, layer, compensated, dense",
        ),
    ],
)
def test_refusals(run: Run, text_run: list[str], override: list[str], message: str) -> None:
    base = ["tracking=none", "device=cpu"] if "model=blip2_mini" in override else text_run
    with pytest.raises(UserError, match=message):
        run([*base, *override])
