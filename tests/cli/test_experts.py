"""Runs over a mixture of experts whose checkpoint has a matrix per expert, as main.py starts them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf

from ecoflap.cli.plan import main as plan
from ecoflap.errors import UserError
from ecoflap.models.families.language.causal_lm import CausalLM
from ecoflap.storage.results import Result, verify
from tests.cli import forked
from tests.cli.conftest import WORDS
from tests.cli.test_offload_names import compare

pytestmark = pytest.mark.skipif(not hasattr(hf, "GptOssForCausalLM"), reason="experts are modules here")
SIZES = {
    "vocab_size": len(WORDS) + 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
}


@pytest.fixture(params=["Qwen3Moe", "GptOss"])
def expert_run(
    request: pytest.FixtureRequest, text_run: list[str], tiny_llama: Path, tmp_path: Path
) -> list[str]:
    """Overrides that put a mixture of experts under any run."""
    folder, name = tmp_path / "model", request.param
    config = getattr(hf, f"{name}Config")(
        **SIZES, **{"num_experts" if name == "Qwen3Moe" else "num_local_experts": 6}
    )
    torch.manual_seed(0)
    getattr(hf, f"{name}ForCausalLM")(config).save_pretrained(folder, max_shard_size="8KB")
    hf.AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    rest = [override for override in text_run if not override.startswith(("model.path=", "score."))]
    return [*rest, f"model.path={folder}", "cache_mode=off", "model.save=true"]


def test_the_same_with_weights_on_the_disk(
    run: Callable[..., Result], expert_run: list[str], tmp_path: Path
) -> None:
    compare(run, [*expert_run, "score=first_order"], hf.AutoModelForCausalLM, tmp_path)


@pytest.mark.every_run("Qwen3Moe")
def test_main_prunes_reports_and_verifies(expert_run: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    overrides = [
        *expert_run,
        "score=none",
        "sparsity=0.5",
        "calibration.samples=1",
        f"hydra.run.dir={folder}",
    ]
    done = forked.main(overrides, tmp_path)
    assert done.returncode == 0, done.stderr
    assert verify(folder) == []
    result = Result.read(folder / "result.json")
    experts = result.data["experts"]
    assert experts["layers"] == len(experts["tokens"]) == 3 * 6 * 2
    assert experts["unseen"] == sum(not tokens for tokens in experts["tokens"].values())
    assert "experts in one 3-D tensor" not in done.stdout + done.stderr
    assert ("no calibration token was routed to" in done.stdout + done.stderr) == bool(experts["unseen"])


@pytest.mark.parametrize("method", ["full", "lora", "reconstruct"])
@pytest.mark.every_run("Qwen3Moe-full", "Qwen3Moe-lora", "GptOss-reconstruct")
def test_training_keeps_what_the_masks_removed(
    run: Callable[..., Result], expert_run: list[str], tmp_path: Path, method: str
) -> None:
    steps = "steps=[calibrate,allocate,prune,finetune,evaluate]"
    run([*expert_run, "score=none", "sparsity=0.5", f"finetune={method}", steps], "run")
    assert verify(tmp_path / "run") == []


@pytest.mark.parametrize("expert_run", ["Qwen3Moe"], indirect=True)
def test_reap_saves_a_smaller_model_that_main_evaluates_the_same(
    run: Callable[..., Result], expert_run: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    overrides = [*expert_run, "pruner=reap", "sparsity=0.3", f"hydra.run.dir={folder}"]
    done = forked.main(overrides, tmp_path)
    assert done.returncode == 0, done.stderr
    assert verify(folder) == []
    result = Result.read(folder / "result.json")
    assert result.sparsity["total"] == "units"
    assert result.allocation is not None
    experts = result.allocation["details"]["experts"]
    (left,) = {len(one["kept"]) for one in experts.values()}
    assert 2 <= left < 6
    assert all(len(one["scores"]) == len(one["tokens"]) == 6 for one in experts.values())
    config = hf.AutoConfig.from_pretrained(folder / "checkpoint")
    assert left == config.num_local_experts
    rest = [one for one in expert_run if not one.startswith(("model.path=", "model.save="))]
    loaded = run([*rest, f"model.path={folder / 'checkpoint'}", "score=none", "steps=[evaluate]"], "loaded")
    for task, values in result.metrics["pruned"].items():
        assert loaded.metrics["dense"][task] == pytest.approx(values, rel=1e-5)


@pytest.mark.parametrize(
    "fine",
    [["pruner=wanda", "sparsity=0.5"], ["pruner=sparsegpt", "pruner.mask=2:4", "sparsity=0.5"]],
    ids=["wanda", "2:4"],
)
@pytest.mark.every_run("GptOss-2:4", "Qwen3Moe-wanda")
def test_a_second_run_masks_the_experts_that_reap_has_left(
    expert_run: list[str], tmp_path: Path, fine: list[str]
) -> None:
    """As docs/method.md says it: the checkpoint of the first run is the model of the second."""
    first, second = tmp_path / "first", tmp_path / "second"
    given = next(one for one in expert_run if one.startswith("model.path="))
    rest = [one for one in expert_run if one != given]
    shared = [*rest, "steps=[calibrate,allocate,prune,evaluate]", "score=none"]
    for folder, options in (
        (first, [given, "pruner=reap", "sparsity=0.3"]),
        (second, [f"model.path={first / 'checkpoint'}", "allocation=water_filling", *fine]),
    ):
        done = forked.main([*shared, *options, f"hydra.run.dir={folder}"], tmp_path)
        assert done.returncode == 0, done.stderr
        assert verify(folder) == []
    results = [Result.read(folder / "result.json") for folder in (first, second)]
    for task, values in results[0].metrics["pruned"].items():
        assert results[1].metrics["dense"][task] == pytest.approx(values, rel=1e-5)
    assert results[1].sparsity["prunable"] == pytest.approx(0.5, abs=1e-3)
    left, masked = (
        hf.AutoModelForCausalLM.from_pretrained(folder / "checkpoint") for folder in (first, second)
    )
    assert masked.config.num_local_experts == left.config.num_local_experts < 6
    stacks = dict(left.named_parameters())
    for name, stack in masked.named_parameters():
        assert stack.shape == stacks[name].shape
        if stack.ndim == 3:
            assert all(0.3 < float((expert == 0).float().mean()) < 0.7 for expert in stack), name


@pytest.mark.parametrize("expert_run", ["GptOss"], indirect=True)
def test_reap_refuses_before_weights_are_read(run: Callable[..., Result], expert_run: list[str]) -> None:
    for weights in Path(next(one for one in expert_run if one.startswith("model.path="))[11:]).glob(
        "*.safetensors"
    ):
        weights.unlink()
    with pytest.raises(UserError, match="the largest possible is sparsity="):
        run([*expert_run, "pruner=reap", "sparsity=0.9"])


@pytest.mark.parametrize("shapes_first", [True, False])
@pytest.mark.parametrize("expert_run", ["GptOss"], indirect=True)
def test_reap_refuses_before_anything_is_computed(
    run: Callable[..., Result],
    expert_run: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    shapes_first: bool,
) -> None:
    monkeypatch.setattr(CausalLM, "shapes_first", shapes_first)
    caplog.set_level("INFO")
    refused = [*expert_run, "pruner=reap", "sparsity=0.9"]
    with pytest.raises(UserError, match="the largest possible is sparsity="):
        run(refused)
    assert "calibrate:" not in caplog.text
    assert plan([*refused, "steps=[calibrate,prune]"]) == 2
    assert "the largest possible is sparsity=" in capsys.readouterr().err


@pytest.mark.parametrize("expert_run", ["GptOss"], indirect=True)
def test_a_plan_measures_reap_more_than_once(
    expert_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """On samples of two numbers: a model without the removed experts would be refused the second time."""
    planned = [*expert_run, "pruner=reap", "sparsity=0.6", "batch_size=1", "calibration.samples=6"]
    assert plan(planned) == 0
    said = capsys.readouterr().out
    assert "all checks passed" in said
    assert "whose time is unknown" not in said
