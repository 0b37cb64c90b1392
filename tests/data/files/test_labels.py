"""Labels of rows are a classifier's own numbers of their classes, by the names that both give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import ecoflap
from ecoflap.data.calibration_set import draw
from ecoflap.data.easy_vqa.reading import NAMES as EASY
from ecoflap.data.easy_vqa.reading import read_pictures
from ecoflap.data.files.calibration import Parquet
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from tests import tiny
from tests.data.files import rows as given

NAMES = ["Tabby_cat", "dog", "sea-lion", "crane", "heron"]


def classifier(*names: str) -> PrunableModel:
    """A classifier of five classes, which transformers calls LABEL_0 to LABEL_4 unless they have names."""
    torch.manual_seed(0)
    config = hf.ViTConfig(num_labels=len(names) or 5, **tiny.VISION)
    if names:
        config.id2label = dict(enumerate(names))
    processor = hf.ViTImageProcessor(size={"height": 8, "width": 8})
    return ecoflap.load(hf.ViTForImageClassification(config), processor)


def dataset(labels: range = range(5), names: list[str] = NAMES) -> Any:
    """Pictures with the labels of named classes, as the hub's data sets have them."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = [{"image": {"bytes": given.png(label), "path": None}, "label": label} for label in labels]
    return datasets.Dataset.from_list(rows, features=features)


def labels_of(model: PrunableModel, data: Any, folder: Path) -> list[int]:
    """The labels of all rows, which are the same from the data set in memory and from its Parquet."""
    file = folder / "a.parquet"
    data.to_parquet(str(file))
    order = draw(len(data), len(data), 0)
    found = [int(sample["labels"]) for sample in Parquet(str(file)).load(model, 0).samples]
    in_memory = [int(sample["labels"]) for sample in ecoflap.calibrate(model, data).samples]
    assert found == [in_memory[place] for place in order]
    Parquet(str(file)).check_rows(model, 0)
    return in_memory


def test_labels_without_names(tmp_path: Path) -> None:
    model = classifier("dog", "cat", "crane", "sea lion", "heron")
    given.write_pictures(tmp_path)
    rows = [{"image": f"{number}.png", "label": number} for number in range(5)]
    found = Parquet(str(given.write_parquet(tmp_path / "a.parquet", rows))).load(model, 0)
    assert [int(sample["labels"]) for sample in found.samples] == draw(5, 5, 0)


@pytest.mark.parametrize(
    ("own", "labels"),
    [
        (["dog", "sea lion", "tabby cat", "crane", "heron"], [2, 0, 1, 3, 4]),
        (["heron", "crane", "Sea Lion", "DOG", "tabby-cat"], [4, 3, 2, 1, 0]),
        (NAMES, [0, 1, 2, 3, 4]),
        (["crane", "dog", "tabby cat", "crane", "heron", "sea lion"], [2, 1, 5, 3, 4]),  # as in ImageNet
        ([], [0, 1, 2, 3, 4]),  # LABEL_0, ...
        (["a", "b", "c", "d", "e"], [0, 1, 2, 3, 4]),
    ],
)
def test_classes_are_found_by_name(tmp_path: Path, own: list[str], labels: list[int]) -> None:
    assert labels_of(classifier(*own), dataset(), tmp_path) == labels


def test_a_class_that_the_model_lacks_is_refused_where_a_row_shows_it(tmp_path: Path) -> None:
    model = classifier("wolf", "dog", "sea lion", "tabby cat", "heron")
    assert labels_of(model, dataset(range(3)), tmp_path) == [3, 1, 2]
    wanted = r"has the label 3, in its data set 'crane', and .* has no such class .*cast_column"
    with pytest.raises(UserError, match=f"^data: example 3 of the data {wanted}"):
        ecoflap.calibrate(model, dataset(range(4)))
    dataset(range(4)).to_parquet(str(tmp_path / "b.parquet"))
    with pytest.raises(UserError, match=rf"^calibration=parquet: .*b\.parquet, row 4 {wanted}"):
        Parquet(str(tmp_path / "b.parquet")).check_rows(model, 0)
    datasets = pytest.importorskip("datasets")
    numbers = dataset(range(4)).cast_column("label", datasets.Value("int64"))
    assert labels_of(model, numbers, tmp_path) == [0, 1, 2, 3]


def test_a_column_of_labels_with_another_name(tmp_path: Path) -> None:
    """As CIFAR-100 has two, of fine and of coarse classes, each with names of its own."""
    datasets = pytest.importorskip("datasets")
    fine = dataset().rename_column("label", "fine_label")
    coarse = datasets.Features({"label": datasets.ClassLabel(names=["bird", "mammal"])})
    both = fine.add_column("label", [1, 1, 1, 0, 0], feature=coarse["label"])
    both.to_parquet(str(tmp_path / "a.parquet"))
    model = classifier("heron", "crane", "sea lion", "dog", "tabby cat")
    named = Parquet(str(tmp_path / "a.parquet"), label_column="fine_label")
    assert [int(sample["labels"]) for sample in named.load(model, 0).samples] == [
        4 - place for place in draw(5, 5, 0)
    ]
    birds = Parquet(str(tmp_path / "a.parquet")).load(classifier("fish", "mammal", "bird"), 0)
    assert [int(sample["labels"]) for sample in birds.samples] == [
        1 if place < 3 else 2 for place in draw(5, 5, 0)
    ]
    with pytest.raises(
        UserError, match=r"calibration\.label_column=fine: .*a\.parquet, row 1 has fine_label"
    ):
        Parquet(str(tmp_path / "a.parquet"), label_column="fine").check_data("calibration")


@pytest.mark.parametrize("label", [-1, -100, 5])
@pytest.mark.parametrize("own", [[], NAMES])
def test_a_label_of_no_class_is_refused_with_its_row(tmp_path: Path, own: list[str], label: int) -> None:
    """-1 is the label of rows that have none in data sets of the hub; the loss would leave -100 out."""
    model = classifier(*own)
    given.write_pictures(tmp_path)
    rows = [{"image": f"{number}.png", "label": label if number == 2 else number} for number in range(4)]
    wanted = f"has the label {label}, and .* has 5 classes, numbered from 0; take such rows out"
    file = str(given.write_parquet(tmp_path / "a.parquet", rows))
    with pytest.raises(UserError, match=rf"^calibration=parquet: .*a\.parquet, row 3 {wanted}"):
        Parquet(file).check_rows(model, 0)
    in_memory = [{**row, "image": str(tmp_path / row["image"])} for row in rows]
    with pytest.raises(UserError, match=f"^data: example 2 of the data {wanted}"):
        ecoflap.calibrate(model, in_memory)


def test_batches_of_a_data_set_have_its_names() -> None:
    data = dataset()
    if not hasattr(data, "batch"):
        pytest.skip("this release of datasets makes no batches")
    model = classifier("dog", "sea lion", "tabby cat", "crane", "heron")
    found = ecoflap.calibrate(model, data.batch(2)).samples
    assert [int(sample["labels"]) for sample in found] == [2, 0, 1, 3, 4]


def test_labels_don_t_depend_on_an_earlier_calibration(tmp_path: Path) -> None:
    """A job of a sweep may calibrate the model of the job before it on other data."""
    names = list(reversed(EASY))
    model = classifier(*names)
    before = labels_of(model, dataset(range(2), names), tmp_path)
    pictures = ecoflap.calibrate(model, "easy_pictures", samples=3).samples
    drawn = read_pictures("train")
    wanted = [names.index(drawn[place].target) for place in draw(len(drawn), 3, 0)]
    assert [int(sample["labels"]) for sample in pictures] == wanted
    assert labels_of(model, dataset(range(2), names), tmp_path) == before == [0, 1]
