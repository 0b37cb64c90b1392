"""Pruned checkpoints of the hub are models like others, in each form that they are pushed in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

import ecoflap
from ecoflap.models.loading.hub import checkpoint_folder
from ecoflap.storage.results import Result
from tests.cli.conftest import ROOT, on_text

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def downloaded(folder: Path, home: Path, name: str) -> None:
    """Put a folder where the hub's library keeps the files of a repository."""
    place = home / "hub" / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)


def offline(home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    started = [sys.executable, *command]
    return subprocess.run(started, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("form", ["bitmask", "coded"])
@pytest.mark.every_run("coded")
def test_a_pushed_model_is_pruned_further(
    tiny_llama: Path, token_file: Path, tmp_path: Path, form: str
) -> None:
    pruned = ecoflap.prune(
        ecoflap.load(tiny_llama, device="cpu"), pruner="magnitude", allocation="er", sparsity=0.5
    )
    ecoflap.save(pruned, tmp_path / "local", form=form)
    downloaded(tmp_path / "local", tmp_path / "home", "me/pruned")

    def run(model: str, folder: Path) -> Result:
        given = [*on_text(Path(model), token_file), "tracking=none", "device=cpu", "cache_mode=off"]
        given += ["score=none", "sparsity=0.7", f"hydra.run.dir={folder}"]
        done = offline(tmp_path / "home", "main.py", *given)
        assert done.returncode == 0, done.stderr
        return Result.read(folder / "result.json")

    found, wanted = run("me/pruned", tmp_path / "hub"), run(str(tmp_path / "local"), tmp_path / "here")
    assert (found.metrics, found.sparsity) == (wanted.metrics, wanted.sparsity)
    code = "import ecoflap; print(ecoflap.load('me/pruned', device='cpu').fingerprint())"
    printed = offline(tmp_path / "home", "-c", code)
    here = ecoflap.load(tmp_path / "local", device="cpu")
    assert printed.stdout.splitlines()[-1] == here.fingerprint(), printed.stderr


def test_a_model_that_is_not_downloaded_yet_is_planned(
    tiny_llama: Path, token_file: Path, tmp_path: Path
) -> None:
    described = shutil.ignore_patterns("*.safetensors")
    downloaded(shutil.copytree(tiny_llama, tmp_path / "local", ignore=described), tmp_path, "me/dense")
    given = [*on_text(Path("me/dense"), token_file), "tracking=none", "device=cpu"]
    done = offline(tmp_path, "-m", "ecoflap", "plan", *given)
    assert done.returncode == 0, done.stderr
    assert "no times: model.path=me/dense could not be loaded" in done.stdout
    assert "all checks that need no weights passed" in done.stdout


def test_weights_in_another_format_are_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the second copy of all weights in repositories of Mistral's models."""
    asked: dict[str, list[str]] = {}

    def download(path: str, **given: list[str]) -> str:
        asked.update(given)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert checkpoint_folder("org/name", None) == tmp_path
    wanted = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    others = ["consolidated.safetensors", "consolidated-00001-of-00002.safetensors", "pytorch_model.bin"]
    patterns = {name: asked[name] for name in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects([*wanted, *others], **patterns)) == wanted
