"""Whole runs from the command line on rows of files: what was typed calibrates, prunes and is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ecoflap.data.captions.reading import CaptionSource
from ecoflap.data.easy_vqa.calibration import read_questions
from ecoflap.errors import UserError
from ecoflap.storage.results import Result
from tests.cli.conftest import run  # noqa: F401 - a fixture
from tests.data import caption_folders as folders
from tests.data.files import rows as given

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
