"""Captions in folders of one's own: links, hidden copies, and several lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ecoflap.data.captions.reading import CaptionSource
from ecoflap.errors import UserError
from tests.data import caption_folders as folders


def test_hidden_copies_are_left_out_and_links_followed(tmp_path: Path) -> None:
    """Jupyter's copies, what macOS notes of a file, and a split that lies elsewhere."""
    pictures = folders.one_of_each("train")[:3]
    shown = ("data/train/1.png", "data/train/.ipynb_checkpoints/1-checkpoint.png", "elsewhere/train/2.png")
    for name, picture in zip(shown, pictures, strict=True):
        folders.shown_at(tmp_path / name, picture)
        (tmp_path / name).with_suffix(".txt").write_text(f"a {picture.target}")
    (tmp_path / "data" / "train" / "._1.txt").write_bytes(b"\0\5\x16\7\xff")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    found = CaptionSource(str(tmp_path / "data")).pictures("calibration", apart=True)
    assert [one.captions for one in found] == [(f"a {pictures[place].target}",) for place in (2, 0)]
    (tmp_path / "data" / "train" / "1.txt").unlink()
    (tmp_path / "elsewhere" / "train" / "2.txt").unlink()
    with pytest.raises(UserError, match=r"calibration=captions: \*\*/metadata\.jsonl is not in"):
        CaptionSource(str(tmp_path / "data")).pictures("calibration")


@pytest.mark.parametrize("ending", [".jpg", ".JPG", ".Jpg"])
def test_a_text_beside_a_picture_however_its_ending_is_written(tmp_path: Path, ending: str) -> None:
    for name in ("a.png", f"b{ending}"):
        folders.shown_at(tmp_path / name, folders.one_of_each("train")[0])
        (tmp_path / name).with_suffix(".txt").write_text("a dog")
    found = CaptionSource(str(tmp_path)).pictures("task")
    assert [Path(one.image).name for one in found] == ["a.png", f"b{ending}"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("1.txt", "", r"1\.txt .*it is empty; write a caption of 1\.png, or take both out"),
        ("1.txt", " \n\t\n", r"1\.txt .*it is empty"),
        ("metadata.jsonl", '{"file_name": "1.png", "text": []}', r"metadata\.jsonl .*line 1: .*no text"),
        ("metadata.jsonl", '{"file_name": "1.png", "text": [" "]}', r"metadata\.jsonl .*line 1: .*no text"),
    ],
)
def test_a_picture_with_an_empty_caption_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    """It would be left out, and all figures be of fewer pictures."""
    for picture in ("0", "1"):
        folders.shown_at(tmp_path / f"{picture}.png", folders.one_of_each("train")[0])
    (tmp_path / name).with_name(name.replace("1", "0")).write_text('{"file_name": "0.png", "text": "a dog"}')
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        CaptionSource(str(tmp_path)).pictures("task")


@pytest.mark.parametrize("table", [False, True])
def test_a_picture_that_is_named_twice_is_one(tmp_path: Path, table: bool) -> None:
    for picture in folders.one_of_each("train")[:2]:
        folders.shown_at(tmp_path / f"train/{picture.target}.png", picture)
    names = [one.name for one in sorted(tmp_path.glob("train/*.png"))]
    rows = [("train/" + names[0], "one"), ("./train/" + names[0], "two"), ("train/" + names[1], "three")]
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    csv = ["file_name,text", *map(",".join, rows)]
    (tmp_path / f"metadata.{'csv' if table else 'jsonl'}").write_text("\n".join(csv if table else lines))
    (tmp_path / "train" / f"metadata.{'csv' if table else 'jsonl'}").write_text(
        f"file_name,text\n{names[0]},four" if table else json.dumps({"file_name": names[0], "text": "four"})
    )
    found = {Path(one.image).name: one.captions for one in CaptionSource(str(tmp_path)).pictures("task")}
    assert found == {names[0]: ("one", "two", "four"), names[1]: ("three",)}


def test_lists_of_two_kinds_are_refused(tmp_path: Path) -> None:
    """One kind would be read, and the pictures of the other left out."""
    for folder in ("train/a", "train/b"):
        folders.shown_at(tmp_path / folder / "1.png", folders.one_of_each("train")[0])
    (tmp_path / "train/a/metadata.jsonl").write_text('{"file_name": "1.png", "text": "one"}')
    for folder in ("a", "b"):  # what the table beside the list holds is the same
        (tmp_path / "train" / folder / "metadata.csv").write_text("file_name,text\n1.png,one")
    with pytest.raises(UserError, match=r"train/b has a metadata\.csv, and .*train/a a metadata\.jsonl"):
        CaptionSource(str(tmp_path)).pictures("task")
    (tmp_path / "train/b/metadata.csv").unlink()
    assert [one.captions for one in CaptionSource(str(tmp_path)).pictures("task")] == [("one",)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["2.png,a cat, asleep", "1.png,dog"],
            "line 3 has more cells than the header; quote texts with commas",
        ),
        (['2.png,"a cat', "1.png,dog"], "line 3: unexpected end of data; close each quote"),
        (['2.png,"a cat', '1.png,a "dog"'], "line 3: ',' expected after '\"'; close each quote"),
        (['2.png,"a cat', *["1.png,dog"] * 20000], "line 3: field larger than field limit"),
    ],
)
def test_quotes_that_are_missing_in_a_table(tmp_path: Path, rows: list[str], message: str) -> None:
    """A caption would lose what follows its comma, or swallow the rows that follow its quote."""
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,text", "1.png,one", *rows]))
    with pytest.raises(UserError, match=rf"metadata\.csv is not in the layout .*{message}"):
        CaptionSource(str(tmp_path)).pictures("task")


def test_a_table_with_quotes_and_more_columns(tmp_path: Path) -> None:
    folders.shown_at(tmp_path / "1.png", folders.one_of_each("train")[0])
    table = [",file_name,text", '0,1.png,"a ""cat"", asleep', 'on a mat"', '1,1.png,4" wide,', "2,1.png,dog"]
    (tmp_path / "metadata.csv").write_text("\n".join(table))
    (picture,) = CaptionSource(str(tmp_path)).pictures("task")
    assert picture.captions == ('a "cat", asleep\non a mat', '4" wide', "dog")
