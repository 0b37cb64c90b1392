"""Whole runs from the command line on rows of files: what was typed calibrates, prunes and is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ecoflap
from ecoflap.data.calibration_set import draw
from ecoflap.data.captions.reading import CaptionSource
from ecoflap.data.easy_vqa.reading import read_questions
from ecoflap.data.files.calibration import Chat
from ecoflap.errors import UserError
from ecoflap.run.steps import prepare
from ecoflap.storage.results import Result
from tests.api.conftest import llama, llava
from tests.cli.conftest import run  # noqa: F401 - a fixture
from tests.data import caption_folders as folders
from tests.data.files import rows as given

pytestmark = pytest.mark.long

OPTIONS = ["score=none", "sparsity=0.5", "tracking=none", "device=cpu", "cache_mode=off", "task.limit=20"]


def chats(folder: Path) -> Path:
    """Questions of Easy-VQA as LLaVA would have them."""
    rows = [
        {
            "image": question.image,
            "conversations": [
                {"from": "human", "value": f"<image>\n{question.text}"},
                {"from": "gpt", "value": question.target},
            ],
        }
        for question in read_questions("train")[:20]
    ]
    return given.write_lines(folder / "chats.jsonl", rows)


def test_chats_calibrate_blip2(run: Callable[..., Result], tmp_path: Path) -> None:
    options = ["calibration=chat", f"calibration.path={chats(tmp_path)}", "calibration.samples=8"]
    result = run([*OPTIONS, "model=blip2_mini", *options])
    assert result.sparsity["prunable"] == pytest.approx(0.5, abs=1e-3)


def test_captions_of_a_folder_calibrate_clip(run: Callable[..., Result], tmp_path: Path) -> None:
    folder = folders.plain(tmp_path / "captions")
    options = ["calibration=captioned_folder", f"calibration.path={folder}", "calibration.samples=8"]
    result = run([*OPTIONS, "model=clip_mini", "task=easy_classification", *options])
    assert result.sparsity["prunable"] == pytest.approx(0.5, abs=1e-3)


def test_captions_in_a_table_or_beside_the_pictures(tmp_path: Path) -> None:
    wanted = CaptionSource(str(folders.plain(tmp_path / "lines"))).pictures("task")
    table, texts = (folders.plain(tmp_path / name) for name in ("table", "texts"))
    for root in (table, texts):
        for split in ("train", "test"):
            lines = (root / split / "metadata.jsonl").read_text().splitlines()
            (root / split / "metadata.jsonl").unlink()
            rows = [json.loads(line) for line in lines]
            if root is table:
                pairs = [f'{row["file_name"]},"{text}"' for row in rows for text in row["text"]]
                (root / split / "metadata.csv").write_text("\n".join(["file_name,text", *pairs]))
                continue
            (root / split / "readme.txt").write_text("these are pictures")
            for row in rows:
                place = (root / split / row["file_name"]).with_suffix(".txt")
                place.write_text("\n".join(row["text"]) + "\n")
    for root in (table, texts):
        found = CaptionSource(str(root)).pictures("task")
        assert {one.key: one.captions for one in found} == {one.key: one.captions for one in wanted}
    (table / "train" / "metadata.csv").write_text("file_name,text\n0.png,a\n1.png\n")
    with pytest.raises(UserError, match=r"metadata\.csv is not in the layout .*line 3: .*"):
        CaptionSource(str(table)).pictures("task")
    (table / "train" / "metadata.csv").write_text("file_name,text\n0.png,a\n1.png,\n")
    with pytest.raises(UserError, match=r"metadata\.csv is not in the layout .*line 3: .*it has no text"):
        CaptionSource(str(table)).pictures("task")


BROKEN: dict[str, tuple[Any, str]] = {
    "no answer": ({"messages": [{"role": "user", "content": "what ?"}]}, "has no turn of the assistant"),
    "no picture": (
        {"image": "gone.png", "question": "what ?", "answer": "circle"},
        r"no picture .*gone\.png",
    ),
    "no target": ({"image": None, "question": "what ?", "caption": ""}, "says nothing that .* should write"),
    "label": ({"image": None, "label": 0}, "has a label, and .* reads captions or answers; give a target"),
    "no object": (["what ?"], "is a list; a row is an object"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_bad_row_behind_the_first_is_refused_before_weights_are_read(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(prepare, "load", lambda *_: pytest.fail("weights were read"))
    file, (bad, words) = chats(tmp_path), BROKEN[case]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    given.write_lines(file, [*rows[:6], bad, *rows[6:]])
    options = [*OPTIONS, "model=blip2_mini", "calibration=chat", f"calibration.path={file}"]
    with pytest.raises(UserError, match=words) as caught:
        run([*options, "calibration.samples=null"])
    assert f"{file}, line 7" in str(caught.value)


def test_only_rows_that_are_drawn_are_looked_at_and_no_picture_is_opened(tmp_path: Path) -> None:
    given.write_pictures(tmp_path, 8)
    (tmp_path / "3.png").write_bytes(b"no picture")
    file = given.write_lines(
        tmp_path / "a.jsonl", [*given.llava_chats(8), {"image": "8.png", "answer": "no"}]
    )
    one = llava()
    model = ecoflap.load(one.module, one.processor)
    drawn = {seed: set(draw(9, 9, seed)[:4]) for seed in range(40)}
    with_it = next(seed for seed, places in drawn.items() if 8 in places)
    without = next(seed for seed, places in drawn.items() if 8 not in places and 3 in places)
    calibration = Chat(str(file), samples=4)
    calibration.check_rows(model, without)
    with pytest.raises(UserError, match=r"a\.jsonl, line 9: there is no picture .*8\.png"):
        calibration.check_rows(model, with_it)


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_a_bad_later_row_is_found_before_weights_are_read(
    kind: str, tmp_path: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "load", lambda *_: pytest.fail("weights were read"))
    if kind == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        given.write_pictures(tmp_path, 8)
        rows = [{"image": f"{number}.png", "answer": "circle"} for number in range(9)]
        file, words = tmp_path / "a.parquet", r"row 9: there is no picture .*8\.png"
        parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=2)
    else:
        members = {
            f"{n}.{end}": held for n in range(8) for end, held in (("png", given.png(n)), ("txt", b"a"))
        }
        file, words = given.write_shard(tmp_path / "a.tar", members | {"8.json": b"{"}), "sample 8: its JSON"
    options = [*OPTIONS, "model=blip2_mini", f"calibration={kind}", f"calibration.path={file}"]
    with pytest.raises(UserError, match=words) as caught:
        run([*options, "calibration.samples=null"])
    assert str(file) in str(caught.value)


def test_rows_of_text_are_looked_at_as_far_as_windows_need_them(tmp_path: Path) -> None:
    rows = [{"text": "the cat sees a dog " * 20} for _ in range(40)]
    file = str(given.write_lines(tmp_path / "a.jsonl", [*rows, {"text": 3}]))
    one = llama()
    model = ecoflap.load(one.module, one.processor)
    with pytest.raises(UserError, match=r"a\.jsonl, line 41 is a int"):
        Chat(file, samples=None, sequence_length=8).check_rows(model, 0)
    Chat(file, samples=1, sequence_length=2).check_rows(model, 0)
