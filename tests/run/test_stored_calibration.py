"""Calibration sets from the store are those that are drawn, and a change of anything they depend on draws
anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.data.captions.calibration import Captions
from ecoflap.data.classification.calibration import Classification
from ecoflap.data.classification.clip_sets import SETS
from ecoflap.data.example import Example
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.run.stored_calibration import stored_calibration
from ecoflap.storage.cache.store import Store
from ecoflap.storage.results import sources

NO_CONFIG: dict[str, Any] = {"calibration": {}, "processor": {}}


@dataclass
class Counts:
    """Draws samples with two fields, and counts how often it is asked."""

    name: str = "counts"
    drawn: int = 0

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        self.drawn += 1
        rows = torch.arange(11 * 3).view(11, 3) + seed
        samples = tuple({"z": row, "a": torch.tensor(float(index))} for index, row in enumerate(rows))
        return CalibrationSet(self.name, samples, frozenset({"one picture", "ein zweites: ü"}))


def model(interface: object = None) -> PrunableModel:
    return PrunableModel("tiny", nn.Module(), (), (), (), lambda *_: torch.zeros(1), None, interface)


def load(
    store: Store,
    counts: Counts,
    config: dict[str, Any],
    fingerprint: str = "m",
    seed: int = 0,
    prompt: str = "{}",
    code: str = "c",
) -> CalibrationSet:
    key = {"calibration": config, "processor": {"prompt": prompt}, "model": fingerprint, "code": code}
    return stored_calibration(store, counts, model(), seed, key)[0]


def test_a_hit_is_the_set_that_was_drawn(tmp_path: Path) -> None:
    counts = Counts()
    plain = counts.load(model(), 0)
    for mode in ("off", "use", "use", "readonly"):
        found = load(Store(tmp_path, mode), counts, {"samples": 11})  # type: ignore[arg-type]
        assert found.fingerprint() == plain.fingerprint()
        assert found.sources == plain.sources
        assert [list(sample) for sample in found.samples] == [["z", "a"]] * 11
    assert counts.drawn == 3  # here, without the store, and once for it


def test_what_a_set_depends_on(tmp_path: Path) -> None:
    counts, store, data = Counts(), Store(tmp_path / "store"), tmp_path / "data.txt"
    data.write_text("one")
    config = {"samples": 11, "path": str(data)}
    load(store, counts, config)
    load(store, counts, dict(config))
    assert counts.drawn == 1
    for change in (
        {"config": {**config, "samples": 5}},
        {"fingerprint": "n"},
        {"seed": 1},
        {"prompt": "Q: {}"},
        {"code": "d"},
    ):
        load(store, counts, **{"config": config, **change})  # type: ignore[arg-type]
    assert counts.drawn == 6
    data.write_text("another text")
    load(store, counts, config)
    assert counts.drawn == 7


def test_files_in_a_linked_folder_count(tmp_path: Path) -> None:
    """Also where a folder links to one above it."""
    counts, store, data = Counts(), Store(tmp_path / "store"), tmp_path / "data"
    linked = tmp_path / "elsewhere" / "picture"
    linked.parent.mkdir()
    data.mkdir()
    linked.write_text("one")
    (data / "images").symlink_to(linked.parent)
    (linked.parent / "up").symlink_to(data)
    load(store, counts, {"path": str(data)})
    load(store, counts, {"path": str(data)})
    assert counts.drawn == 1
    linked.write_text("another")
    load(store, counts, {"path": str(data)})
    assert counts.drawn == 2


class SeesSizes:
    """Encodes a picture as the size of its file, and its caption as what it is."""

    sees = True

    def encode(self, example: Example) -> dict[str, torch.Tensor]:
        assert example.image is not None
        return {"size": torch.tensor(Path(example.image).stat().st_size)}


def captions_outside(root: Path, picture: Path) -> Captions:
    root.mkdir()
    (root / "metadata.jsonl").write_text(json.dumps({"file_name": str(picture), "text": "a red dog"}))
    return Captions(str(root))


def classes_outside(root: Path, picture: Path) -> Classification:
    (folder := root / SETS["food101"].folder).mkdir(parents=True)
    rows = {"train": [[str(picture), 0, "dog"]], "val": [], "test": []}
    (folder / str(SETS["food101"].splits)).write_text(json.dumps(rows))
    return Classification("food101", "train", path=str(root))


@pytest.mark.parametrize("made", [captions_outside, classes_outside])
def test_pictures_outside_the_folder_count(
    tmp_path: Path, made: Callable[[Path, Path], Captions | Classification]
) -> None:
    """A list may name them by their whole path, and the folder with the list does not change with them."""
    store, picture = Store(tmp_path / "store"), tmp_path / "elsewhere.png"
    picture.write_bytes(b"one")
    calibrator = made(tmp_path / "data", picture)
    key = {"calibration": {"path": calibrator.path}, "processor": {}}
    for content, drawn in ((b"one", False), (b"one", True), (b"another", False)):
        if picture.read_bytes() != content:
            picture.write_bytes(content)
        found, cached = stored_calibration(store, calibrator, model(SeesSizes()), 0, key)
        assert cached == drawn
        assert found.samples[0]["size"] == len(content)


def test_every_file_in_a_folder_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a hidden folder, and beyond the entries that the record of a result reads."""
    monkeypatch.setattr(sources, "MOST", 1)
    counts, store, hidden = Counts(), Store(tmp_path / "store"), tmp_path / "data" / "images" / ".cats"
    hidden.mkdir(parents=True)
    for drawn, text in enumerate(("one", "another"), start=1):
        (hidden / "picture").write_text(text)
        load(store, counts, {"path": str(tmp_path / "data")})
        assert counts.drawn == drawn


def test_a_model_that_is_told_its_classes_is_told_each_time(tmp_path: Path) -> None:
    class Told:
        def set_classes(self) -> None: ...

    counts, store = Counts(), Store(tmp_path)
    for _ in range(2):
        assert not stored_calibration(store, counts, model(Told()), 0, NO_CONFIG)[1]
    assert counts.drawn == 2


@pytest.mark.parametrize("interface", [None, object()])
def test_an_empty_set(tmp_path: Path, interface: object) -> None:
    class Empty(Counts):
        def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
            return CalibrationSet("empty", ())

    assert len(stored_calibration(Store(tmp_path), Empty(), model(interface), 0, NO_CONFIG)[0]) == 0
