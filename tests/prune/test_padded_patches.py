"""Patches that pad a picture: they count in no statistic unless the loss reads them; all others count."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import Tensor

from ecoflap.data.batch import Sample
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.vlm.real_patches import real_patches
from ecoflap.models.loading.loader import prunable
from ecoflap.prune.inputs import measure_dense

if int(transformers.__version__.partition(".")[0]) < 5:
    pytest.skip("the zoo is of models of transformers 5", allow_module_level=True)

from tests.zoo.architecture import Draw
from tests.zoo.architectures import ARCHITECTURES


def test_patches_that_pad_a_picture_do_not_count() -> None:
    """LFM2-VL pads pictures to a number of patches, and its vision tower computes with the padding."""
    architecture = ARCHITECTURES["lfm2_vl"]
    model = architecture.prunable()
    expected, found = (
        measure_dense(model, one, 2) for one in (architecture.samples(), padded(architecture.samples(), 9))
    )
    assert any("vision" in name for name in expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("names", [("vision", "language"), ("eyes", "mouth")])
def test_texts_of_as_many_tokens_as_patches_count_whole(names: tuple[str, str]) -> None:
    """Each text has 20 tokens, and each picture 20 patches, of which 4 are padding."""
    architecture = ARCHITECTURES["lfm2_vl"]
    drawn = architecture.sample(Draw(16, torch.Generator().manual_seed(1)))
    calibration = CalibrationSet("zoo", (drawn, drawn))
    module = architecture.module()
    paths = [tower.path for tower in architecture.prunable().every_tower]
    model = prunable(
        "lfm2_vl", module, None, architecture.loss, Selection(), dict(zip(names, paths, strict=True))
    )
    expected, found = (measure_dense(model, one, 2) for one in (calibration, padded(calibration, 4)))
    assert drawn["input_ids"].shape == (1, 16 + 4)
    assert {int(kept[-1]) for name, kept in found.items() if "language" in name} == {2 * 20}
    assert {int(kept[-1]) for name, kept in found.items() if "vision" in name} == {2 * 16}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-7)


def padded(calibration: CalibrationSet, count: int) -> CalibrationSet:
    """The samples with so many patches of padding behind the real ones of each picture."""
    padding = {"pixel_values": count, "pixel_attention_mask": count}
    return replace(
        calibration,
        samples=[
            {name: pad(value, padding.get(name, 0)) for name, value in sample.items()}
            for sample in calibration.samples
        ],
    )


def pad(value: Tensor, count: int) -> Tensor:
    """Zeros behind the second dimension, [pictures, patches, ...]."""
    return torch.cat([value, value.new_zeros(len(value), count, *value.shape[2:])], dim=1) if count else value


def test_masks_of_real_patches() -> None:
    mask, places = torch.tensor([[1, 1, 0]]), torch.tensor([[[0, 0], [0, 1], [-1, -1]]])
    assert masks("lfm2_vl", pixel_attention_mask=mask) == {"vision": [[1, 1, 0]]}
    assert masks("gemma4", image_position_ids=places) == {"vision": [[True, True, False]]}
    assert masks("smolvlm", pixel_attention_mask=torch.ones(1, 2, 4, 4)) == {}
    assert masks("llava", input_ids=mask) == {}
    pixels = torch.ones(
        1, 4, 5
    )  # two patches and a half in a row; of the last whole one, one pixel is missing
    pixels[0, 1, 3] = pixels[0, 2:, 2:] = 0
    assert masks("aria", pixel_mask=pixels) == {"vision": [[True, True, True, False]]}
    shown = torch.stack([torch.zeros(1, 3, 4, 5), torch.ones(1, 3, 4, 5)], dim=1)  # no picture, and one
    found = masks("idefics2", pixel_values=shown, pixel_attention_mask=torch.stack([pixels, pixels], dim=1))
    assert found == {"vision": [[True, False, True, False]]}
    patches = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert masks("pix2struct", flattened_patches=patches) == {"encoder": [[True, False]]}
    assert masks("pix2struct", flattened_patches=patches, attention_mask=mask) == {"encoder": [[1, 1, 0]]}
    for name in ("aria", "idefics2"):
        assert masks(name, input_ids=mask) == {}


def masks(name: str, **inputs: Tensor) -> dict[str, list[list[int]]]:
    """What counts of the patches of a model whose patches have 2 x 2 pixels."""
    config = SimpleNamespace(model_type=name, vision_config=SimpleNamespace(patch_size=2))
    found = real_patches(SimpleNamespace(config=config), inputs)
    return {kind: mask.tolist() for kind, mask in found.items()}


@pytest.mark.parametrize("name", ["aria", "idefics2", "pix2struct", "idefics3", "smolvlm"])
def test_patches_below_a_picture_count_where_the_loss_reads_them(name: str) -> None:
    """The picture fills the upper half of the frame, two of four patches."""
    architecture = ARCHITECTURES[name]
    model = architecture.prunable(["encoder" if name == "pix2struct" else "vision"])
    samples = [
        [half(sample, filler) for sample in architecture.samples().samples[:2]] for filler in (0.0, 5.0)
    ]
    losses = [model.loss({key: value[None] for key, value in made[0].items()}) for made in samples]
    read = not torch.allclose(*losses, rtol=1e-6)
    assert read == (name in ("idefics3", "smolvlm"))
    expected, found = (measure_dense(model, CalibrationSet("zoo", tuple(made)), 2) for made in samples)
    for layer, value in expected.items():
        assert int(value[-1]) == 2 * (4 if read else 2)
        assert read or torch.allclose(found[layer], value, rtol=1e-4, atol=1e-7)


def half(sample: Sample, filler: float) -> Sample:
    """A sample whose picture fills the upper half of the frame, and a number in the other pixels."""
    if "flattened_patches" in sample:  # behind the row and column of each
        patches, mask = (sample[name].clone() for name in ("flattened_patches", "attention_mask"))
        patches[:, 2:, 2:], mask[:, 2:] = filler, 0
        return {**sample, "flattened_patches": patches, "attention_mask": mask}
    pixels = sample["pixel_values"].clone()
    mask = torch.ones(*pixels.shape[:-3], *pixels.shape[-2:], dtype=torch.bool)
    pixels[..., 8:, :], mask[..., 8:, :] = filler, False
    return {
        **sample,
        "pixel_values": pixels,
        "pixel_mask" if pixels.ndim == 4 else "pixel_attention_mask": mask,
    }
