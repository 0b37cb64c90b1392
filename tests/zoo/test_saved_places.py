"""Checkpoints that join, divide or reorder the weights of layers have masks in the same form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ecoflap
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.storage.file_names import MASKS
from ecoflap.storage.masks import MaskFile
from ecoflap.storage.results import verify
from ecoflap.storage.saved_model import open_checkpoint
from tests.zoo.architecture import Architecture
from tests.zoo.architectures import ARCHITECTURES

# The checkpoint has a layer's projections in one tensor, also in other orders and of other towers, a layer's
# two halves apart, rows in another order, and another shape under another name.
CONVERTED = ("lara_mini", "molmo2", "step3p7", "minimax_m3_vl", "mistral_large4", "inkling2_text")
IN_EVERY_RUN = ("lara_mini", "minimax_m3_vl")


def cases() -> list[object]:
    """The architectures; most run with the zoo only."""
    return [name if name in IN_EVERY_RUN else pytest.param(name, marks=pytest.mark.zoo) for name in CONVERTED]


@pytest.mark.parametrize("skipped", [(), ("q_proj", "in_proj_z")], ids=["all", "some"])
@pytest.mark.parametrize("name", cases())
def test_a_checkpoint_holds_zeros_where_its_masks_say(
    name: str, skipped: tuple[str, ...], tmp_path: Path
) -> None:
    """Also where some of the layers in one tensor are left dense."""
    architecture = installed(name)
    towers = [tower.name for tower in architecture.prunable().every_tower if tower.layers]
    layers = [layer.name for layer in architecture.prunable(towers).layers]
    dense = [pattern for pattern in skipped if any(pattern in layer for layer in layers)]
    model = architecture.prunable(towers, dense)
    check(model, tmp_path)
    with MaskFile(tmp_path / MASKS) as masks:
        assert any(masks.parts.get(layer.name) and not layer.is_expert for layer in model.layers)


def test_experts_that_are_saved_under_the_name_of_those_they_are_tied_to(tmp_path: Path) -> None:
    """Those of DiffusionGemma's encoder are its decoder's, whose names alone are in the checkpoint."""
    model = installed("diffusion_gemma").prunable()
    check(model, tmp_path)
    with MaskFile(tmp_path / MASKS) as masks:
        places = {layer.name: masks.places(layer.name) for layer in model.layers if layer.is_expert}
    assert all(name.startswith("model.encoder.") for name in places)
    assert all(rows.name.startswith("model.decoder.") for found in places.values() for rows in found)


def installed(name: str) -> Architecture:
    """An architecture; a test of one that the installed transformers lacks is skipped."""
    if name not in ARCHITECTURES or (reason := ARCHITECTURES[name].missing()) is not None:
        pytest.skip(f"no {name}" if name not in ARCHITECTURES else str(reason))
    return ARCHITECTURES[name]


def check(model: PrunableModel, folder: Path) -> None:
    """Prune a model, save it, and compare its weights with the checkpoint, its masks, and the loaded one."""
    result = ecoflap.prune(model, pruner="magnitude", score="none", sparsity=0.5)
    ecoflap.save(result, folder)
    assert verify(folder) == []
    with open_checkpoint(folder) as checkpoint, MaskFile(folder / MASKS) as masks:
        for layer in model.layers:
            places = masks.places(layer.name)
            found = torch.cat([checkpoint.tensor(*rows).flatten() for rows in places])
            kept = torch.cat([masks[rows.name][rows.start : rows.stop].flatten() for rows in places])
            assert torch.equal(found != 0, kept)
            assert torch.equal(found.sort().values, layer.weight.detach().flatten().sort().values)
    loaded = ecoflap.load_pruned(folder, device="cpu").state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in model.module.state_dict().items())
