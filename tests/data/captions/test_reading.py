"""Each published layout gives the pictures that were put into it, and calibration takes none that a model is
measured on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ecoflap.data.captions.calibration import Captions
from ecoflap.data.captions.listed import rows_of
from ecoflap.data.captions.reading import CaptionSource, clean
from ecoflap.data.easy_vqa.reading import NAMES
from ecoflap.data.example import Example
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from tests.data import caption_folders as folders

pytestmark = pytest.mark.long

COCO_MINI = Path(__file__).parents[4] / "shared" / "data" / "coco_mini"


class Remembers:
    """Keeps the examples that it was given."""

    sees = True

    def __init__(self) -> None:
        self.examples: list[Example] = []

    def encode(self, example: Example) -> dict[str, Tensor]:
        self.examples.append(example)
        return {"input_ids": torch.tensor([len(self.examples)])}


def drawn(source: Captions, seed: int = 0) -> list[Example]:
    interface = Remembers()
    source.load(
        PrunableModel("tiny", nn.Module(), (), (), (), lambda *_: torch.zeros(1), None, interface), seed
    )
    return interface.examples


LAYOUTS = {
    "coco": (folders.karpathy, {"train": 24, "val": 2, "test": 24}),
    "flickr30k": (lambda root: folders.karpathy(root, "flickr30k"), {"train": 24, "val": 2, "test": 24}),
    "nocaps": (folders.nocaps, {"val": 24}),
    "cc3m": (folders.cc3m, {"train": 24}),
    "cc3m_tsv": (lambda root: folders.cc3m(root, tsv=True), {"train": 24}),
    "folder": (folders.plain, {"train": 24, "test": 24}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    make, splits = LAYOUTS[layout]
    root = make(tmp_path)
    for split, count in splits.items():
        pictures = CaptionSource(str(root), layout, split).pictures("task")
        assert len(pictures) == len({picture.key for picture in pictures}) == count
        for picture, shown in zip(
            pictures, folders.one_of_each("train" if split == "train" else "test"), strict=False
        ):
            assert Path(picture.image).read_bytes() == Path(shown.image or "").read_bytes()
            assert len(picture.captions) == (1 if "cc3m" in layout else 5)
            assert set(picture.captions) <= set(folders.captions(shown))
        domains = [picture.domain for picture in pictures]
        assert domains == (["in", "near", "out"] * 8 if layout == "nocaps" else [None] * count)


def test_a_folder_without_splits_is_for_training(tmp_path: Path) -> None:
    folders.plain(tmp_path, splits=False)
    assert [len(picture.captions) for picture in CaptionSource(str(tmp_path)).pictures("task")] == [5] * 24


def test_one_list_of_all_splits(tmp_path: Path) -> None:
    """Calibration must not draw the test pictures of a list that lies beside the folders of splits."""
    folders.plain(tmp_path)
    lines = []
    for split in ("train", "test"):
        list_of_it = tmp_path / split / "metadata.jsonl"
        rows = map(json.loads, list_of_it.read_text().splitlines())
        lines += [row | {"file_name": f"./{split}/{row['file_name']}"} for row in rows]
        list_of_it.unlink()
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for split in ("train", "test"):
        found = {Path(one.image).parent for one in CaptionSource(str(tmp_path), split=split).pictures("task")}
        assert found == {tmp_path / split}
    assert all(f"{tmp_path}/train/" in (one.image or "") for one in drawn(Captions(str(tmp_path))))


def test_a_folder_inside_another_tells_the_split_of_its_pictures(tmp_path: Path) -> None:
    """As in the list of all splits, and in the files of rows."""
    folders.plain(tmp_path / "images")
    for old, new in (("train", "train2017"), ("test", "val2017")):
        (tmp_path / "images" / old).rename(tmp_path / "images" / new)
    lists = sorted(tmp_path.glob("images/*/metadata.jsonl"))
    lines = [
        row | {"file_name": f"images/{file.parent.name}/{row['file_name']}"}
        for file in lists
        for row in map(json.loads, file.read_text().splitlines())
    ]
    for whole in (False, True):
        for split, folder in (("train", "train2017"), ("val", "val2017"), ("val2017", "val2017")):
            pictures = CaptionSource(str(tmp_path), split=split).pictures("task")
            assert {Path(one.image).parent.name for one in pictures} == {folder}
            assert len(pictures) == 24
        if not whole:
            (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
            for file in lists:
                file.unlink()


def test_coco_numbers_are_keys_in_every_layout(tmp_path: Path) -> None:
    pictures = CaptionSource(str(folders.karpathy(tmp_path)), "coco", "test").pictures("task")
    assert [picture.key for picture in pictures[:2]] == ["2000", "2001"]


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason="needs the pictures of coco_mini beside the repository")
def test_real_pictures_of_coco(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (COCO_MINI / "captions.jsonl").read_text().splitlines()]
    (tmp_path / "images").symlink_to(COCO_MINI / "images")
    lines = [{"file_name": f"images/{row['file_name']}", "text": row["captions"]} for row in rows]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pictures = CaptionSource(str(tmp_path)).pictures("task")
    assert len(pictures) == len(rows)
    assert [picture.key for picture in pictures] == [str(int(row["file_name"][:-4])) for row in rows]
    assert len(drawn(Captions(str(tmp_path), samples=8, prefix=True))) == 8


def test_captions_are_cleaned() -> None:
    assert (
        clean('A man;  with a "hat" (red)... #1: 9-inch & more!~*') == "a man with a hat red 1 9-inch & more"
    )
    assert clean("word " * 60) == " ".join(["word"] * 50)


def test_calibration_draws_one_caption_per_picture(tmp_path: Path) -> None:
    source = Captions(str(folders.karpathy(tmp_path)), "coco", samples=10)
    examples = drawn(source)
    assert len({example.image for example in examples}) == 10
    train = {
        picture.image: [clean(text) for text in picture.captions]
        for picture in source.pictures("calibration")
    }
    assert all(example.target in train[example.image or ""] and not example.text for example in examples)
    assert drawn(source) == examples != drawn(source, seed=1)
    assert len(drawn(Captions(str(tmp_path), "coco", samples=100))) == 24
    assert (
        len(
            {
                example.target.replace(name, "")
                for example in examples
                for name in NAMES
                if name in example.target
            }
        )
        > 2
    )


def test_prefixes_end_in_the_first_half(tmp_path: Path) -> None:
    rows = [
        {"image": "train/0.png", "caption": text}
        for text in ("one", "one two", "one two three four five six seven eight nine")
    ]
    (folders.cc3m(tmp_path) / "cc3m.json").write_text(json.dumps(rows))
    seen = set()
    for seed in range(30):
        short, long = sorted(
            drawn(Captions(str(tmp_path), "cc3m", prefix=True), seed), key=lambda example: len(example.target)
        )
        assert (short.text, short.target) == ("one", "two")
        assert f"{long.text} {long.target}" == rows[2]["caption"]
        seen.add(len(long.text.split()))
    assert seen == {1, 2, 3, 4}


def twice(root: Path) -> Path:
    """A picture in two splits."""
    file = folders.karpathy(root) / "dataset_coco.json"
    data = json.loads(file.read_text())
    data["images"].append({**data["images"][0], "split": "test"})
    file.write_text(json.dumps(data))
    return root


def broken(root: Path) -> Path:
    (folders.cc3m(root) / "cc3m.json").write_text('[{"image": "a.png"}]')
    return root


def listed(root: Path) -> Path:
    """Two captions of one picture as a list."""
    (folders.cc3m(root) / "cc3m.json").write_text('[{"image": "a.png", "caption": ["a dog", "a cat"]}]')
    return root


def without_pictures(root: Path) -> Path:
    for file in (folders.karpathy(root, "flickr30k") / "flickr30k-images").iterdir():
        file.unlink()
    return root


@pytest.mark.parametrize(
    ("make", "source", "message"),
    [
        (
            folders.nocaps,
            lambda path: CaptionSource(path, "kaggle"),
            r"task\.layout=kaggle is not a layout of captions; .*coco",
        ),
        (
            folders.nocaps,
            lambda path: CaptionSource(path, "coco", name="coco"),
            r"task=coco: dataset_coco\.json is not in task\.path=.*Karpathy",
        ),
        (
            folders.nocaps,
            lambda path: CaptionSource(None, "flickr30k", name="flickr30k"),
            "task=flickr30k needs the data set's folder.*non-commercial",
        ),
        (folders.nocaps, lambda path: CaptionSource(path, "nocaps", "test"), r"task\.split=test: .* has val"),
        (
            without_pictures,
            lambda path: CaptionSource(path, "flickr30k"),
            r"the picture 0\.jpg is not in any of .*, .*images, .*University of Illinois",
        ),
        (
            broken,
            lambda path: CaptionSource(path, "cc3m"),
            r"cc3m\.json is not in the layout that was expected \(KeyError: 'caption'\)",
        ),
        (
            listed,
            lambda path: CaptionSource(path, "cc3m"),
            r"cc3m\.json is not .* \(TypeError: the caption \['a dog', 'a cat'\] of a\.png is no text\)",
        ),
    ],
)
def test_refusals(
    tmp_path: Path, make: Callable[[Path], Path], source: Callable[[str], CaptionSource], message: str
) -> None:
    path = str(make(tmp_path))
    with pytest.raises(UserError, match=message):
        source(path).pictures("task")


@pytest.mark.parametrize("written", ["../test/q0.jpg", "./../test//q0.jpg", "{root}/test/q0.jpg"])
def test_a_picture_of_another_split_is_known_however_it_is_written(tmp_path: Path, written: str) -> None:
    for split, name in (("train", written.format(root=tmp_path)), ("test", "q0.jpg")):
        (tmp_path / split).mkdir()
        row = json.dumps({"file_name": name, "text": "a circle"})
        (tmp_path / split / "metadata.jsonl").write_text(row)
    folders.shown_at(tmp_path / "test" / "q0.jpg", folders.one_of_each("test")[0])
    with pytest.raises(UserError, match=r"1 of its pictures are in another split too, such as test/q0\.jpg"):
        Captions(str(tmp_path)).check_data("calibration")


def test_calibration_refuses_what_is_measured(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"calibration\.split=test: models are measured on these"):
        Captions(str(tmp_path), "coco", "test")
    with pytest.raises(
        UserError, match=r"calibration=captions: 1 of its pictures are in another split too, such as 0"
    ):
        drawn(Captions(str(twice(tmp_path)), "coco"))


def test_lines_of_json_end_at_line_feeds_alone(tmp_path: Path) -> None:
    """A caption may hold other separators of lines, and the file begin with a byte order mark."""
    rows = [{"file_name": "a.jpg", "text": "one\u2028two\x85three"}, {"file_name": "b.jpg", "text": "four"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "metadata.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8-sig")
    assert list(rows_of(tmp_path / "metadata.jsonl")) == list(enumerate(rows, start=1))
