"""What ``ecoflap.save`` writes beside a model, and that what a run saved loads in a fresh process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

import ecoflap
from ecoflap.cli import command
from ecoflap.errors import UserError
from ecoflap.storage.results import Result, verify
from tests.cli import forked
from tests.cli.conftest import ROOT, SENTENCE, on_text, tiny_llama, token_file  # noqa: F401
from tests.cli.test_experts import SIZES

MAGNITUDE: dict[str, Any] = {"pruner": "magnitude", "allocation": "water_filling", "score": "none"}
BLIP = """
import sys, ecoflap
model = ecoflap.load(sys.argv[1])
batch = ecoflap.calibrate(model, "easy_vqa").take(4).batches(4)[0]
print(model.parameter_count(), repr(model.loss(batch).sum().item()))
"""
PLAIN = """
import sys, torch, transformers as hf
model = hf.AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
logits = model(torch.arange(2, 12)[None]).logits
print(sum(one.numel() for one in model.parameters()), repr(logits.sum().item()))
"""


def in_a_fresh_process(source: str, folder: Path) -> tuple[int, float]:
    """Run a source with the folder as its argument; the count and the figure that it prints last."""
    command = [sys.executable, "-c", source, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, figure = done.stdout.split()[-2:]
    return int(count), float(figure)


def test_a_call_from_python_writes_what_it_knows(
    tiny_llama: Path,
    token_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = ecoflap.load(tiny_llama, skip_layers=[r"layers\.0\.mlp"])
    result = ecoflap.prune(model, data=[SENTENCE] * 4, sparsity=0.5, **MAGNITUDE)
    folder = ecoflap.save(result, tmp_path / "saved")
    assert verify(folder) == []
    assert "50 % sparse" in (folder / "README.md").read_text()
    recipe = folder / "recipe.yaml"
    assert "Not known here" in recipe.read_text()
    assert command.main(["run", "--config", str(recipe)]) == 2
    assert "says nothing of the model" in capsys.readouterr().err
    given = [
        *on_text(tiny_llama, token_file),
        "tracking=none",
        "cache_mode=off",
        "device=cpu",
        "model.save=true",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    done = forked.main(["--config", str(recipe), *given], tmp_path)
    assert done.returncode == 0, done.stderr
    assert Result.read(tmp_path / "run" / "result.json").config["pruner"]["name"] == "magnitude"
    one, other = (
        load_file(place / "model.safetensors") for place in (folder, tmp_path / "run" / "checkpoint")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_card_in_the_folder_stays(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# My own words\n")
    model = ecoflap.load(tiny_llama)
    result = ecoflap.prune(model, sparsity=0.5, **MAGNITUDE)
    ecoflap.save(result, tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My own words\n"
    (tmp_path / "README.md").unlink()
    ecoflap.save(result, tmp_path)
    assert "50 % sparse" in (tmp_path / "README.md").read_text()


def test_the_folder_of_a_run_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    for name in ("status.json", "result.json"):
        (tmp_path / name).write_text("{}")
    result = ecoflap.prune(ecoflap.load(tiny_llama), sparsity=0.5, **MAGNITUDE)
    with pytest.raises(UserError, match="is the folder of a run, whose record would be replaced"):
        ecoflap.save(result, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "result.json",
        "status.json",
    ]
    assert (tmp_path / "result.json").read_text() == "{}"


@pytest.mark.variant
def test_a_cut_blip_loads_in_a_fresh_process(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    overrides = ["model=blip_vqa_mini", "pruner=upop", "pruner.steps=4", "pruner.interval=2", "sparsity=0.3"]
    rest = [
        "calibration.samples=4",
        "steps=[calibrate,prune]",
        "model.save=true",
        "tracking=none",
        "cache_mode=off",
    ]
    done = forked.main([*overrides, *rest, "device=cpu", f"hydra.run.dir={folder}"], tmp_path)
    assert done.returncode == 0, done.stderr
    count, loss = in_a_fresh_process(BLIP, folder / "checkpoint")
    record = Result.read(folder / "result.json")
    assert count == record.model["parameters"]
    assert record.data["prune"] == {"name": "easy_vqa", "samples": 38575}
    model = ecoflap.load(folder / "checkpoint")
    batch = ecoflap.calibrate(model, "easy_vqa").take(4).batches(4)[0]
    assert loss == pytest.approx(model.loss(batch).sum().item(), rel=1e-5)


@pytest.mark.skipif(not hasattr(hf, "GptOssForCausalLM"), reason="experts are modules here")
@pytest.mark.parametrize("pruner", ["reap", "wanda"])
@pytest.mark.variant
def test_a_mixture_of_experts_loads_plainly_in_a_fresh_process(
    tiny_llama: Path,
    token_file: Path,
    tmp_path: Path,
    pruner: str,
) -> None:
    torch.manual_seed(0)
    hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**SIZES, num_experts=6)).save_pretrained(tmp_path / "model")
    hf.AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "model")
    folder = tmp_path / "run"
    overrides = [
        *on_text(tmp_path / "model", token_file),
        f"pruner={pruner}",
        "sparsity=0.3",
        "model.save=true",
        "tracking=none",
        "cache_mode=off",
        "device=cpu",
        f"hydra.run.dir={folder}",
    ]
    done = forked.main(overrides, tmp_path)
    assert done.returncode == 0, done.stderr
    count, logits = in_a_fresh_process(PLAIN, folder / "checkpoint")
    assert count == Result.read(folder / "result.json").model["parameters"]
    model = ecoflap.load(folder / "checkpoint").module
    assert logits == pytest.approx(model(torch.arange(2, 12)[None]).logits.sum().item(), rel=1e-4)
