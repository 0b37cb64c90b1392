"""What the original got wrong (crashes, leaks, a dense last block), through whole runs of the commands that
it had.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ecoflap.errors import UserError
from ecoflap.storage.results import Result
from tests import tiny
from tests.cli.conftest import WORDS
from tests.data import caption_folders, picture_sets

Run = Callable[..., Result]
SHORT = ["tracking=none", "device=cpu", "cache_mode=off"]


@pytest.mark.parametrize("experiment", ["ecoflap", "wanda"])
def test_c4_prunes_a_t5(run: Run, tmp_path: Path, experiment: str) -> None:
    """Its calibration asked the documents of C4 for their pictures."""
    documents = [
        " ".join(itertools.islice(itertools.cycle(WORDS[start:] + WORDS[:start]), 20 + start))
        for start in range(12)
    ]
    (tmp_path / "c4.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    options = [
        "model=t5_mini",
        f"calibration.path={tmp_path / 'c4.jsonl'}",
        "calibration.samples=8",
        "task=quiz",
        "task.limit=2",
    ]
    result = run(
        [
            *SHORT,
            f"+experiment=flan_t5/{experiment}",
            *options,
            *(["score.samples=8"] if experiment == "ecoflap" else []),
        ]
    )
    assert result.data["calibration"] | {"fingerprint": ""} == {
        "name": "c4_prefix",
        "samples": 8,
        "fingerprint": "",
    }
    assert result.sparsity["prunable"] == pytest.approx(0.5, abs=2e-3)
    blocks = {layer["sparsity"] for layer in result.sparsity["layers"].values()}
    assert (max(blocks) - min(blocks) > 0.01) == (experiment == "ecoflap")


@pytest.fixture(params=["open_clip", "open_clip_eva"])
def open_clip_model(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """A tiny CLIP of open_clip that a run can name: its sizes known to the package, its random weights in a
    file.
    """
    open_clip = pytest.importorskip("open_clip", reason="pip install -e '.[open-clip]'")
    tiny.register_tiny_eva()
    vision = {
        "open_clip": {"layers": 2, "width": 16, "head_width": 8, "patch_size": 4, "image_size": 8},
        "open_clip_eva": {
            "timm_model_name": "tiny_eva",
            "timm_pool": "token",
            "timm_proj": None,
            "image_size": 8,
        },
    }[request.param]
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    name = f"tiny_{request.param}"
    (tmp_path / f"{name}.json").write_text(
        json.dumps({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text, "custom_text": True})
    )
    open_clip.add_model_config(tmp_path / f"{name}.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model(name, load_weights=False).state_dict(), tmp_path / "weights.pt")
    return [f"model.architecture={name}", f"model.pretrained={tmp_path / 'weights.pt'}"]


def test_eva_clip_is_pruned_and_measured_in_one_run_to_the_last_block(
    run: Run, open_clip_model: list[str], tmp_path: Path
) -> None:
    """It deleted the text tower before the classes were named, left the last block dense, and calibrated on
    pictures that it measured on.
    """
    picture_sets.write_set(tmp_path, "imagenet")
    names = [
        f"{group}.{option}"
        for group in ("task", "calibration")
        for option in (f"classes={tmp_path}/imagenet/classnames.txt", "templates=null")
    ]
    data = [
        *names,
        f"task.path={tmp_path}",
        f"calibration.path={tmp_path}",
        "calibration.samples=8",
        "score.samples=8",
        "task.limit=24",
    ]
    overrides = [*SHORT, "+experiment=eva_clip/ecoflap", *open_clip_model, *data]
    result = run([*overrides, "model.save=true"])
    assert all(0 <= result.metrics[which]["imagenet"]["top_5"] <= 100 for which in ("dense", "pruned"))
    assert set(result.sparsity["towers"]) == {"vision"}
    saved = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    last = [name for name in result.sparsity["layers"] if ".1." in name]
    assert len(last) == len(result.sparsity["layers"]) // 2
    for name in last:
        assert int((saved[name] == 0).sum()) == result.sparsity["layers"][name]["zeros"] > 0
    with pytest.raises(UserError, match=r"calibration\.split=val"):
        run([*overrides, "calibration.split=val"], "leaking")


def test_clip_is_scored_by_gradients(run: Run, tmp_path: Path) -> None:
    """It took a truth value for the device."""
    picture_sets.write_set(tmp_path, "dtd")
    options = [
        "calibration=dtd",
        "task=dtd",
        f"calibration.path={tmp_path}",
        f"task.path={tmp_path}",
        "task.limit=12",
        "calibration.samples=8",
    ]
    score = ["score=first_order", "score.measure=weight_gradient", "score.samples=8", "score.batch_size=4"]
    result = run([*SHORT, "+experiment=clip/wanda", "model=clip_mini", *options, *score])
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert set(scores["importance"]) == set(result.sparsity["layers"])
    assert min(scores["importance"].values()) > 0
    assert set(result.sparsity["towers"]) == {"vision", "text"}


@pytest.mark.parametrize("eps", ["1e-1", "1e-2", "1e-4"])
@pytest.mark.every_run("1e-1")
def test_every_job_of_the_eps_sweep_runs_with_a_prompt(run: Run, tmp_path: Path, eps: str) -> None:
    """It named a score that was gone. The prompt is BLIP-2's own, for questions; captions go on without
    it.
    """
    data = caption_folders.cc3m(tmp_path / "cc3m")
    options = [
        "model=blip2_mini",
        "model.prompt='Question: {} Short answer:'",
        f"calibration.path={data}",
        "calibration.samples=4",
    ]
    short = ["task=easy_vqa", "task.limit=4", "score.samples=4", "score.batch_size=4"]
    result = run([*SHORT, "+experiment=blip2/ecoflap_zeroth", f"score.eps={eps}", *options, *short])
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["details"]["eps"] == float(eps)
    assert result.sparsity["prunable"] == pytest.approx(0.5, abs=2e-3)
