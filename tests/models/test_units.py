"""Cutting units away is the same as gating them with zero, for every BLIP."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from ecoflap.errors import UserError
from ecoflap.models.core.units import cut_all, find_units, narrowed, total_cost
from tests.tiny import BLIP, FAMILIES, build, samples

OURS = [family for family in BLIP if family in FAMILIES and family != "blip2_itm"]


@pytest.mark.parametrize("family", OURS)
def test_a_cut_model_is_the_gated_one(family: str) -> None:
    model, generator = build(family), torch.Generator().manual_seed(0)
    batch, units = samples(family, (6, 6, 6)).batches(3)[0], find_units(model)
    keep = [torch.rand(one.count, generator=generator) < 0.5 for one in units]
    for kept in keep:
        kept[0] = True
    before = sum(layer.size for layer in model.layers)
    with torch.no_grad(), ExitStack() as stack:
        dense = model.loss(batch)
        for one, kept in zip(units, keep, strict=True):
            stack.enter_context(one.gated(kept.float()))
        gated = model.loss(batch)
    cut_all(model.module, units, [kept.nonzero().flatten() for kept in keep])
    with torch.no_grad():
        torch.testing.assert_close(model.loss(batch), gated, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(dense, gated)
    gone = sum(one.cost * int((~kept).sum()) for one, kept in zip(units, keep, strict=True))
    assert sum(layer.size for layer in model.layers) == before - gone


@pytest.mark.parametrize("family", OURS)
def test_units_cover_every_prunable_weight(family: str) -> None:
    model = build(family)
    assert total_cost(find_units(model)) == sum(layer.size for layer in model.layers)


@pytest.mark.parametrize("family", OURS)
def test_gates_of_one_change_nothing(family: str) -> None:
    model = build(family)
    batch = samples(family, (6, 6, 6)).batches(3)[0]
    with torch.no_grad(), ExitStack() as stack:
        dense = model.loss(batch)
        for one in find_units(model):
            stack.enter_context(one.gated(torch.ones(one.count)))
        torch.testing.assert_close(model.loss(batch), dense)


def test_another_family_is_refused() -> None:
    with pytest.raises(UserError, match="BLIP"):
        find_units(build("llama"))


def test_parts_of_an_attention_are_refused() -> None:
    with pytest.raises(UserError, match="skip_layers"):
        find_units(build("blip_vqa", skip_layers=("query",)))


def test_a_saved_cut_model_is_loaded_at_its_size(tmp_path: Path) -> None:
    model = build("blip_vqa")
    units = find_units(model)
    cut_all(model.module, units, [torch.arange(0, one.count, 2) for one in units])
    module: Any = model.module
    module.save_pretrained(tmp_path)
    config = type(module.config).from_pretrained(tmp_path)
    again = narrowed(type(module), config).from_pretrained(tmp_path)
    assert {name: tuple(value.shape) for name, value in again.state_dict().items()} == {
        name: tuple(value.shape) for name, value in module.state_dict().items()
    }
    batch = samples("blip_vqa", (6, 6)).batches(2)[0]
    with torch.no_grad():
        torch.testing.assert_close(model.loss_function(again.eval(), batch, 1), model.loss(batch))
