"""Classification sets through the whole pipeline, as main.py composes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ecoflap.errors import UserError
from ecoflap.run import pipeline
from ecoflap.run.plan import build_tasks
from ecoflap.storage.results import Result
from tests.cli.conftest import composed, run  # noqa: F401 - a fixture
from tests.data.picture_sets import COOP, write_folders, write_set

pytestmark = pytest.mark.long

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all sets."""
    root = tmp_path_factory.mktemp("data")
    for name in COOP:
        write_set(root, name)
    return root


@pytest.fixture
def short(tmp_path: Path) -> list[str]:
    return [
        "calibration.samples=24",
        "score=none",
        "sparsity=0.5",
        "tracking=none",
        "device=cpu",
        f"cache={tmp_path / 'cache'}",
    ]


def test_the_eleven_sets_under_one_root(run: Run, short: list[str], data: Path, tmp_path: Path) -> None:
    calibration = ["calibration=caltech101", f"calibration.path={data}"]
    result = run(
        [
            *short,
            *calibration,
            "model=clip_mini",
            "task=clip_11",
            f"task.path={data}",
            "task.tasks.dtd.limit=7",
        ]
    )
    assert list(result.metrics["pruned"]) == list(result.metrics["dense"])
    dense = dict(result.metrics["dense"])
    mean = dense.pop("mean")
    assert sorted(dense) == COOP
    assert mean["accuracy"] == pytest.approx(sum(metrics["accuracy"] for metrics in dense.values()) / 11)
    assert result.headline() == result.metrics["pruned"]["mean"]["accuracy"]
    for name, metrics in dense.items():
        assert metrics["images"] == {"dtd": 7, "imagenet": 24}.get(name, 48)
    # Those whose prompt is the one that the model was trained with.
    for name in ("imagenet", "caltech101", "stanford_cars", "sun397"):
        assert dense[name]["accuracy"] > 90
    assert {f"{name}_{which}.jsonl" for name in COOP for which in ("dense", "pruned")} == {
        file.name for file in (tmp_path / "run" / "predictions").glob("*.jsonl")
    }


def test_one_option_for_all_sets_and_one_for_each() -> None:
    node = composed(
        ["model=clip_mini", "task=clip_11", "task.path=here", "task.limit=5", "task.tasks.dtd.path=there"]
    ).task
    tasks = build_tasks(node)
    assert {name: (task.path, task.limit, task.dataset) for name, task in tasks.items()} == {
        name: ("there" if name == "dtd" else "here", 5, name) for name in COOP
    }
    assert tasks["imagenet"].prompts("task") == ("a photo of a {}.",)
    assert tasks["imagenet"].classes == "here/imagenet/classnames.txt"


def test_the_suite_without_its_folder(short: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task=imagenet needs the data set's folder: task\.path=FOLDER"):
        pipeline.run(
            composed([*short, "model=clip_mini", "calibration=easy_pictures", "task=clip_11"]), tmp_path
        )


@pytest.mark.parametrize("model", ["vit_mini", "clip_mini"])
@pytest.mark.parametrize("dataset", ["imagenet", "image_folder"])
def test_folders(run: Run, short: list[str], data: Path, tmp_path: Path, model: str, dataset: str) -> None:
    path = data if dataset == "imagenet" else write_folders(write_folders(tmp_path / "mine", "train"), "test")
    names = [f"{group}.classes={data / 'imagenet' / 'classnames.txt'}" for group in ("task", "calibration")]
    names += ["task.templates=null", "calibration.templates=null"]
    options = names if dataset == "imagenet" and model == "clip_mini" else []
    where = [
        f"{group}{part}" for group in ("task", "calibration") for part in (f"={dataset}", f".path={path}")
    ]
    result = run([*short, *where, *options, f"model={model}", "score=first_order", "score.samples=8"])
    assert result.metrics["dense"][dataset]["accuracy"] > 90
    assert result.metrics["pruned"][dataset]["accuracy"] <= 100
    assert result.data["calibration"]["samples"] == 24


def test_labels_are_used_where_the_loss_is_classification(run: Run, short: list[str], data: Path) -> None:
    options = [
        *short,
        "towers=[vision]",
        "model=clip_mini",
        "calibration=oxford_pets",
        f"calibration.path={data}",
        "task=oxford_pets",
        f"task.path={data}",
    ]
    by_captions, by_labels = (
        run([*options, "score=first_order", "score.samples=8", f"model.loss={loss}"], loss)
        for loss in ("contrastive", "classification")
    )
    assert by_captions.data["calibration"]["fingerprint"] != by_labels.data["calibration"]["fingerprint"]
    assert by_captions.metrics["dense"] == by_labels.metrics["dense"]
