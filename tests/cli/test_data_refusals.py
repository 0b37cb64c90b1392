"""Data that are not there or hold nothing: one message before a model is loaded or asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecoflap.errors import UserError
from ecoflap.run import pipeline
from tests.cli.conftest import composed
from tests.data import caption_folders

SHORT = ["score=none", "tracking=none", "device=cpu", "cache_mode=off", "calibration.samples=4"]
EASY = ["calibration=easy_pictures"]


def refused(overrides: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        pipeline.run(composed([*SHORT, *overrides]), tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["task=imagenet"],
            (
                r"task=imagenet needs the data set's folder.*ImageNet is given for non-commercial"
                r" research.*image-net\.org"
            ),
        ),
        (["task=dtd", "task.path=nowhere"], r"task=dtd: .*is not in task\.path=nowhere"),
        (["task=nocaps"], "task=nocaps needs the data set's folder"),
        (["task=vqav2", "task.path=nowhere"], r"task=vqav2: .*questions\.json is not in task\.path=nowhere"),
        (["task=okvqa", "task.path=nowhere"], r"task=okvqa: .*questions\.json is not in task\.path=nowhere"),
        (["task=gqa", "task.path=nowhere"], r"task=gqa: .*questions\.json is not in task\.path=nowhere"),
        (["task=nlvr2", "task.path=nowhere"], r"dev\.json is not in task\.path=nowhere"),
        (["calibration=cc3m"], "calibration=cc3m needs the data set's folder"),
        (["calibration=vqav2"], "calibration=vqav2 needs the data set's folder"),
        (["calibration=nlvr2"], "calibration=nlvr2 needs the data set's folder"),
        (["calibration=food101"], "calibration=food101 needs the data set's folder"),
        (["task=dtd", "task.templates=[]"], r"task\.templates=\[\] must hold at least one template"),
        (
            ["task=easy_classification", "task.templates=[]"],
            r"task\.templates=\[\] must hold at least one template",
        ),
        (
            ["calibration=dtd", "calibration.templates=[]"],
            r"calibration\.templates=\[\] must hold at least one template",
        ),
    ],
)
def test_before_a_model_is_loaded(overrides: list[str], words: str, tmp_path: Path) -> None:
    refused(["model=causal_lm", "model.path=nobody/nothing", *EASY, *overrides], words, tmp_path)


def test_steps_that_read_no_data_need_none(tmp_path: Path) -> None:
    refused(
        [
            "model=causal_lm",
            "model.path=nobody/nothing",
            "task=imagenet",
            "calibration=cc3m",
            "pruner=magnitude",
            "steps=[allocate,prune]",
        ],
        "nobody/nothing",
        tmp_path,
    )


def test_mmlu_says_how_it_is_got(tmp_path: Path) -> None:
    refused(
        ["model=t5_mini", "task=mmlu"],
        r"cais/mmlu \(dev\) could not be read from the hub.*task\.path=FOLDER.*data\.tar",
        tmp_path,
    )
    refused(
        ["model=t5_mini", "task=mmlu", f"task.path={tmp_path}"],
        r"has no dev/\*_dev\.csv.*github\.com/hendrycks/test",
        tmp_path,
    )


@pytest.mark.parametrize(
    ("model", "task", "layout"),
    [("clip_mini", "flickr30k", "flickr30k"), ("blip_caption_mini", "coco_caption", "coco")],
)
def test_a_missing_picture_is_named_before_any_is_looked_at(
    tmp_path: Path, model: str, task: str, layout: str
) -> None:
    if task == "coco_caption":
        pytest.importorskip("pycocoevalcap")
    data = caption_folders.karpathy(tmp_path, layout)
    last = sorted(data.rglob("*2005.jpg"))[0]
    last.unlink()
    refused(
        [f"model={model}", f"task={task}", f"task.path={data}"],
        f"task={task}: 1 of 24 pictures are missing, such as .*{last.name}",
        tmp_path,
    )
