"""A run that would measure a model on what it was calibrated with is refused before anything is measured."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from safetensors.torch import load_file, save_file

from ecoflap.cli.plan import main as plan
from ecoflap.data.files.pictures import locate
from ecoflap.data.sources import copies, picture_sources
from ecoflap.data.vqa.reading import VQAV2
from ecoflap.errors import UserError
from ecoflap.storage.results import Result
from tests.data import caption_folders, picture_sets
from tests.data.files import rows as given
from tests.data.vqa_folders import write_coco_questions

Run = Callable[..., Result]
SHORT = ["score=none", "tracking=none", "device=cpu", "cache_mode=off", "calibration.samples=100"]

FEW = [*(option for option in SHORT if "samples" not in option), "calibration.samples=1", "task.limit=1"]


def refused(run: Run, overrides: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=f"(?s){words}.*calibration\\.path or task\\.path.*calibration\\.split or task\\.split",
    ):
        run(overrides)
    assert not (tmp_path / "run" / "predictions").exists()


def text(text_run: list[str], calibration: str, path: Path, *task: str) -> list[str]:
    shared = [override for override in text_run if not override.startswith(("calibration", "task"))]
    return [
        *shared,
        f"calibration={calibration}",
        f"calibration.path={path}",
        "calibration.sequence_length=10",
        *task,
    ]


def test_one_text_for_both(run: Run, text_run: list[str], text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to(text_file)
    task = ["task=wikitext2", "task.sequence_length=10", "task.limit=2"]
    for calibration, path in (
        ("wikitext2", text_file),
        ("wikitext2", tmp_path / "link.txt"),
        ("c4", text_file),
    ):
        overrides = text(text_run, calibration, text_file, *task, f"task.path={path}")
        refused(run, overrides, f"calibration={calibration} and task=wikitext2 both read", tmp_path)
    copy = Path(shutil.copy(text_file, tmp_path / "copy.txt"))
    for calibration in ("wikitext2", "c4"):
        overrides = text(text_run, calibration, text_file, *task, f"task.path={copy}")
        refused(run, overrides, rf"both read the file {text_file} \({copy} holds the same bytes\)", tmp_path)
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text()[1:])
    assert run(text(text_run, "wikitext2", text_file, *task, f"task.path={other}")).metrics["pruned"]


def test_one_split_of_the_hub_for_both(
    run: Run, text_run: list[str], text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *_, **__: datasets.Dataset.from_dict({"text": [text_file.read_text()]}),
    )
    shared = [override for override in text_run if not override.startswith(("calibration", "task"))]
    options = ["calibration.sequence_length=10", "task.sequence_length=10", "task.limit=2"]
    for split in ("test", "test[:50%]", "train[:10] + test"):
        refused(
            run,
            [*shared, *options, f"calibration.split='{split}'"],
            "both read Salesforce/wikitext wikitext-2-raw-v1 test",
            tmp_path,
        )
    with pytest.raises(UserError, match=r"calibration\.split=all hides which splits are read.*name them"):
        run([*shared, *options, "calibration.split=all"])
    assert run([*shared, *options]).metrics["pruned"]


def test_one_tensor_of_tokens_for_both(run: Run, text_run: list[str], tmp_path: Path) -> None:
    refused(run, [*text_run, "task.key=calibration"], "both read .*calibration", tmp_path)


def test_a_copy_of_a_tensor_of_tokens(
    run: Run, text_run: list[str], token_file: Path, tmp_path: Path
) -> None:
    """In another file, under another key."""
    copy = tmp_path / "copy.safetensors"
    save_file({"mine": load_file(token_file)["calibration"]}, copy)
    refused(run, [*text_run, f"task.path={copy}", "task.key=mine"], "both read rows of token ids", tmp_path)


def test_a_copy_of_a_text_is_not_trained_on(
    run: Run, text_run: list[str], text_file: Path, tmp_path: Path
) -> None:
    """A published training split may hold copies of test pictures under other names; a text is one's own."""
    copy = shutil.copy(text_file, tmp_path / "copy.txt")
    task = ["task=wikitext2", "task.sequence_length=10", "task.limit=2", f"task.path={copy}"]
    steps = ["pruner=magnitude", "score=none", "steps=[allocate,prune,finetune,evaluate]"]
    overrides = [*text(text_run, "wikitext2", text_file, *task), *steps]
    refused(
        run, overrides, f"calibration=wikitext2 and task=wikitext2 both read the file {text_file}", tmp_path
    )


def test_one_split_of_pictures_for_both(run: Run, tmp_path: Path) -> None:
    picture_sets.write_set(tmp_path, "food101")
    options = [
        "model=clip_mini",
        "calibration=food101",
        "task=food101",
        f"calibration.path={tmp_path}",
        f"task.path={tmp_path}",
    ]
    refused(
        run,
        [*SHORT, *options, "task.split=train"],
        "calibration=food101 and task=food101 both read .*train_",
        tmp_path,
    )


def test_one_split_of_captions_for_both(run: Run, tmp_path: Path) -> None:
    data = caption_folders.karpathy(tmp_path / "flickr30k", "flickr30k")
    options = [
        "model=clip_mini",
        "calibration=flickr30k",
        "task=flickr30k",
        f"calibration.path={data}",
        f"task.path={data}",
    ]
    refused(
        run,
        [*SHORT, *options, "task.split=train"],
        "calibration=flickr30k and task=flickr30k both read",
        tmp_path,
    )


def test_restval_of_coco_is_what_vqa_measures_on(run: Run, tmp_path: Path) -> None:
    coco, vqa = caption_folders.karpathy(tmp_path / "coco"), tmp_path / "vqa"
    vqa.mkdir()
    write_coco_questions(vqa, VQAV2, "val")
    options = [
        "model=blip2_mini",
        "calibration=coco",
        "task=vqav2",
        f"calibration.path={coco}",
        f"task.path={vqa}",
    ]
    questions = vqa / VQAV2.questions.format(split="val")
    questions.write_text(re.sub(r'"image_id": \d+', '"image_id": 1', questions.read_text()))
    shutil.copy(coco / "val2014" / "COCO_val2014_000000000001.jpg", vqa / "val2014")  # of restval
    refused(run, [*SHORT, *options], "calibration=coco and task=vqav2 both read COCO's picture", tmp_path)


@pytest.mark.parametrize(
    "steps", ["[calibrate,allocate,prune,finetune,evaluate]", "[allocate,prune,finetune,evaluate]"]
)
def test_what_is_trained_on_is_not_measured_on(
    run: Run, text_run: list[str], text_file: Path, tmp_path: Path, steps: str
) -> None:
    task = ["task=wikitext2", "task.sequence_length=10", "task.limit=2", f"task.path={text_file}"]
    overrides = [
        *text(text_run, "wikitext2", text_file, *task),
        "pruner=magnitude",
        "score=none",
        f"steps={steps}",
    ]
    refused(run, overrides, "calibration=wikitext2 and task=wikitext2 both read", tmp_path)


def test_of_a_training_split_all_of_it_counts(run: Run, tmp_path: Path) -> None:
    """The samples that calibrate may be others than those that a task reads, which are trained on all the
    same.
    """
    picture_sets.write_set(tmp_path, "food101")
    options = [
        "model=clip_mini",
        "calibration=food101",
        "task=food101",
        f"calibration.path={tmp_path}",
        f"task.path={tmp_path}",
        "task.split=train",
    ]
    few = [*FEW, *options]
    assert run([*few, "steps=[calibrate,allocate,prune,evaluate]"], "apart").metrics["pruned"]
    refused(
        run,
        [*few, "steps=[calibrate,allocate,prune,finetune,evaluate]"],
        "calibration=food101 and task=food101 both read .*train_",
        tmp_path,
    )


def test_a_plan_refuses_what_is_trained_and_measured_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one sample that calibrates is another than the one that the task reads."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # restored for the tests after it
    picture_sets.write_set(tmp_path, "food101")
    options = ["model=clip_mini", "calibration=food101", "task=food101", "task.split=train", *FEW]
    paths = [f"calibration.path={tmp_path}", f"task.path={tmp_path}"]
    assert plan([*options, *paths, "steps=[calibrate,allocate,prune,finetune,evaluate]"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "calibration=food101 and task=food101 both read" in said


def test_shots_may_be_calibrated_with(run: Run) -> None:
    assert run(
        [*SHORT, "model=t5_mini", "calibration.split=dev", "task=quiz", "task.limit=2", "task.shots=2"]
    ).metrics["pruned"]


def test_pictures_are_known_by_number_or_by_file(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(b"")
    (tmp_path / "link.png").symlink_to(tmp_path / "one.png")
    assert picture_sources([str(tmp_path / "one.png")]) == picture_sources([str(tmp_path / "link.png"), None])
    both = picture_sources(["a/COCO_val2014_000000000042.jpg"]) & picture_sources(["b/000000000042.jpg"])
    assert both == {"COCO's picture 42"}
    assert not picture_sources(["a/1.jpg"]) & picture_sources(["b/1.jpg"])


def test_copies_are_found_under_any_name(tmp_path: Path) -> None:
    contents = {
        "one.png": b"a" * 99 + b"b",
        "two.png": b"a" * 100,
        "copy.jpg": b"a" * 100,
        "other.png": b"b" + b"a" * 99,
        "words.txt": b"a" * 100,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    names = {name: str(tmp_path / name) for name in contents}
    calibration = [
        names["one.png"],
        names["two.png"],
        names["words.txt"],
        "the question 'What?'",
        str(tmp_path / "gone.png"),
    ]
    read = [names["copy.jpg"], names["other.png"], str(tmp_path / "gone.png")]
    assert copies(calibration, read) == [(names["two.png"], names["copy.jpg"])]
    text = tmp_path / "copy.txt"
    text.write_bytes(b"c" * 100)
    assert copies(calibration, [str(text)]) == []
    Path(names["words.txt"]).write_bytes(b"c" * 100)
    assert copies(calibration, [str(text)]) == [(names["words.txt"], str(text))]


def test_a_picture_in_a_row_is_a_copy_of_the_file_with_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(given.png(1))
    (tmp_path / "two.png").write_bytes(given.png(2))
    pictures = [
        locate({"bytes": given.png(number), "path": "a.png"}, None, f"row {number}") for number in (1, 3)
    ]
    found = copies(picture_sources(pictures), [str(tmp_path / name) for name in ("one.png", "two.png")])
    (in_row, file), *others = found
    assert in_row.startswith("row 1: ")
    assert (file, others) == (str(tmp_path / "one.png"), [])


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_a_picture_in_a_row_is_refused_if_a_task_reads_its_file(run: Run, tmp_path: Path, kind: str) -> None:
    picture_sets.write_set(tmp_path, "food101")
    content = sorted((tmp_path / "food-101" / "images").rglob("test_*"))[0].read_bytes()
    if kind == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        file = tmp_path / "a.parquet"
        row = {"image": {"bytes": content, "path": None}, "text": "a circle"}
        parquet.write_table(pa.Table.from_pylist([row]), file)
    else:
        file = given.write_shard(tmp_path / "a.tar", {"0.jpg": content, "0.txt": b"a circle"})
    options = [
        "model=clip_mini",
        f"calibration={kind}",
        f"calibration.path={file}",
        "calibration.samples=1",
        "task=food101",
        f"task.path={tmp_path}",
    ]
    short = [option for option in SHORT if "samples" not in option]
    refused(run, [*short, *options], rf"both read the picture .*{file.name}.* holds the same bytes", tmp_path)


def test_a_copy_of_a_picture_is_refused_under_another_name(run: Run, tmp_path: Path) -> None:
    picture_sets.write_set(tmp_path, "food101")
    images = tmp_path / "food-101" / "images"
    train, test = (sorted(images.rglob(f"{split}_*"))[0] for split in ("train", "test"))
    options = [
        "model=clip_mini",
        "calibration=food101",
        "task=food101",
        f"calibration.path={tmp_path}",
        f"task.path={tmp_path}",
    ]
    assert run([*SHORT, *options], "apart").metrics["pruned"]
    shutil.copy(train, test)
    refused(
        run,
        [*SHORT, *options],
        f"both read the picture .*{train.name} .*{test.name} holds the same bytes",
        tmp_path,
    )
