"""A path tells the split that ``datasets`` finds for it, and calibration takes none that is measured on."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecoflap.data.captions.calibration import Captions
from ecoflap.data.classification.calibration import Classification
from ecoflap.data.files.calibration import WebDataset
from ecoflap.data.splits import SPLITS, meant, split_of
from ecoflap.errors import UserError
from tests.data.files import rows as given

pytestmark = pytest.mark.any_release


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("test/train-0.tar", "test"),  # folders before names of files
        ("train/test_images/0.tar", "train"),  # the outermost one
        ("images/val2017/0.tar", "validation"),
        ("train_test_split/test/0.tar", "test"),  # its own folder tells both
        ("train_test_split/0.tar", None),
        ("data/train-00000-of-00002.parquet", "train"),
        ("evaluation-0.parquet", "test"),
        ("test-dev-0.parquet", "test"),
        ("testdev_balanced/0.parquet", "test"),
        ("devtest.jsonl", "test"),
        ("dev/0.parquet", "validation"),
        ("trainer/latest.parquet", None),
    ],
)
def test_the_split_that_a_path_tells(path: str, split: str | None) -> None:
    assert split_of(path) == split


def test_the_words_are_those_of_datasets() -> None:
    data_files = pytest.importorskip("datasets.data_files")
    for split, words in data_files.SPLIT_KEYWORDS.items():
        assert set(words) <= set(SPLITS[str(split)])


def test_datasets_gives_a_file_the_same_split(tmp_path: Path) -> None:
    """Where it gives it one alone; of train/test_images it makes both."""
    data_files = pytest.importorskip("datasets.data_files")
    paths = ["test/train-0.jsonl", "val2017/0.jsonl", "train/0.jsonl", "a_test_set/b/0.jsonl"]
    for path in paths:
        given.write_lines(tmp_path / path, [{"text": "a"}])
    found = data_files.DataFilesDict.from_patterns(
        data_files.get_data_patterns(str(tmp_path)), base_path=str(tmp_path)
    )
    splits = {str(Path(file).relative_to(tmp_path)): split for split, of in found.items() for file in of}
    assert {path: split_of(path) for path in paths} == splits


def test_files_of_a_split_lie_in_its_folder(tmp_path: Path) -> None:
    for name in ("test/train-0", "train/test_images/0", "train_sft/0", "train_gen/0"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        given.write_shard(tmp_path / f"{name}.tar", {"0.txt": b"a"})

    def files(split: str) -> list[str]:
        found = WebDataset(str(tmp_path), split=split).files
        return [str(file.relative_to(tmp_path).with_suffix("")) for file in found]

    assert files("test") == ["test/train-0"]
    assert files("train") == ["train/test_images/0", "train_gen/0", "train_sft/0"]
    assert files("train_sft") == ["train_sft/0"]
    with pytest.raises(UserError, match=r"calibration\.split=train_sfd: the folder .* has test, train; choo"):
        files("train_sfd")


def test_the_names_that_a_split_means() -> None:
    assert meant("train", ["train", "train2017", "val"]) == {"train"}
    assert meant("train", ["train_a", "train_b", "val"]) == {"train_a", "train_b"}
    assert meant("validation", ["train", "val"]) == {"val"}
    assert meant("mine", ["train", "mine"]) == {"mine"}
    assert meant("other", ["train", "mine"]) == set()


@pytest.mark.parametrize("split", ["validation", "val2017", "dev", "test-dev", "testing"])
def test_calibration_refuses_what_is_measured_under_every_name(split: str) -> None:
    for make in (
        lambda: Captions("data", "folder", split),
        lambda: Classification("image_folder", split, "data"),
    ):
        with pytest.raises(UserError, match=f"calibration.split={split}: models are measured on these"):
            make()
