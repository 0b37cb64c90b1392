"""Rows of pruned models in use: BLIP's forward pass with half of its weights set to zero, and with half of
them cut away as UPop does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from benchmarks.measure import Row, interleaved, medians
from benchmarks.models import device
from ecoflap.data.batch import Batch
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.core.units import cut_all, find_units
from ecoflap.models.families.blip.text import vqa_loss
from ecoflap.models.loading.loader import prunable
from ecoflap.ops import select_in_matrix
from ecoflap.prune.upop import choose


def blip_vqa_base() -> PrunableModel:
    """BLIP's base model for questions at its published size, with random weights: no cost depends on them."""
    from transformers import BlipConfig, BlipForQuestionAnswering

    torch.manual_seed(0)
    config = BlipConfig(text_config={"num_attention_heads": 12})
    return prunable("blip_vqa", BlipForQuestionAnswering(config).to(device()), None, vqa_loss, Selection())


def question(samples: int, pixels: int) -> Batch:
    """Pictures with a question of eight tokens and an answer of three."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(1000, 20000, (samples, 11), generator=generator)
    picture = torch.randn(samples, 3, pixels, pixels, generator=generator)
    return {
        "pixel_values": picture,
        "input_ids": words[:, :8],
        "attention_mask": torch.ones_like(words[:, :8]),
        "labels": words[:, 8:],
    }


@torch.no_grad()
def half_zero(model: PrunableModel) -> PrunableModel:
    """A copy, half of whose prunable weights are zero."""
    model = copy.deepcopy(model)
    for layer in model.layers:
        layer.weight.mul_(
            select_in_matrix(torch.rand(layer.weight.shape, device=model.device), layer.size // 2)
        )
    return model


def half_cut(model: PrunableModel) -> PrunableModel:
    """A copy without half of its prunable weights: units drawn at random, their matrices made smaller."""
    model = copy.deepcopy(model)
    units = find_units(model)
    going = choose([torch.rand(one.count, device=model.device) for one in units], units, 0.5)
    cut_all(model.module, units, [(~gone).nonzero().flatten() for gone in going])
    return model


def forward(name: str, model: PrunableModel, batch: Batch, runs: int) -> Iterator[Row]:
    """The loss of one batch, by the model itself and by its two halves, in turns."""
    models = {"dense": model, "zero": half_zero(model), "cut": half_cut(model)}
    stored = {side: one.parameter_count() for side, one in models.items()}
    batch = {key: tensor.to(model.device) for key, tensor in batch.items()}

    def run(one: PrunableModel) -> None:
        with torch.no_grad(), quiet_forward(one.module):
            one.loss(batch)

    sides = {side: lambda one=one: run(one) for side, one in models.items()}
    interleaved(sides, 1)  # warms up
    seconds = medians(interleaved(sides, runs))
    for side, what in (
        ("zero", "half of the weights zero"),
        ("cut", "half of the weights cut away, as UPop does"),
    ):
        kept = f"{stored[side] / stored['dense']:.0%} of the parameters stored"
        yield Row(
            f"{name}, {what}",
            "the dense model",
            "s",
            seconds["dense"],
            seconds[side],
            seconds["dense"] / seconds[side],
            None,
            kept,
        )


def rows(runs: int) -> Iterator[Row]:
    for samples in (1, 8):
        yield from forward(
            f"forward pass of BLIP's base model, {samples} x 384 px",
            blip_vqa_base(),
            question(samples, 384),
            runs,
        )
