"""``tokens``: which tokens count in the statistics, against whole forward passes that are masked by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ecoflap
from ecoflap.blocks.statistics import Gram, InputStatistics, MeanSquare
from ecoflap.blocks.token_choice import most_moved
from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import NumericalError, UserError
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel, quiet_forward
from ecoflap.models.core.token_kinds import TokenKinds
from ecoflap.models.core.towers import Block, Tower
from ecoflap.prune.driver import prune
from ecoflap.prune.inputs import measure_dense
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from tests import tiny
from tests.zoo.architectures import ARCHITECTURES

from . import reference
from .test_families import PRUNERS, uneven, uniform

CHOICES = ("text", "answer", "atv")
# {family: the tower that reads both}
MIXED = {
    "llava": "language",
    "smolvlm": "language",
    "paligemma": "language",
    "internvl": "language",
    "qwen2_5_vl": "language",
    "blip2_opt": "language",
    "blip2_t5": "encoder",
}
PROPAGATE = ("pruned", "layer", "dense")


def samples(family: str) -> CalibrationSet:
    """Samples of several lengths, of which the first tokens behind the picture are no targets."""
    found = []
    for sample in tiny.samples(family, lengths=(5, 9, 5)).samples:
        labels = sample["labels"].clone()
        if labels.shape == sample["input_ids"].shape:
            labels[..., : labels.shape[-1] - 3] = -100
        found.append({**sample, "labels": labels})
    return CalibrationSet("tiny", tuple(found))


class ByHand:
    """Prunes with whole forward passes of one sample at a time, and masks of its own."""

    def __init__(self, model: PrunableModel, calibration: CalibrationSet, choice: str, mixed: str) -> None:
        self.model, self.choice, self.mixed = model, choice, mixed
        self.batches = [{name: tensor[None] for name, tensor in one.items()} for one in calibration.samples]

    def masks(self, tower: Tower, block: Block) -> list[Tensor | None]:
        """What counts of each sample, [tokens]."""
        if tower.name != self.mixed:
            return [None] * len(self.batches)
        visual = [batch["input_ids"].flatten() == tiny.IMAGE_TOKEN for batch in self.batches]
        if self.choice == "text":
            return [~one for one in visual]
        if self.choice == "answer":
            return [batch["labels"].flatten() != -100 for batch in self.batches]
        moved = [self._movement(block, batch) for batch in self.batches]
        mean = torch.cat([one[seen] for one, seen in zip(moved, visual, strict=True)]).mean().item()
        masks = []
        for one, seen in zip(moved, visual, strict=True):
            text = int((~seen).sum())
            count = min(int(seen.sum()), round(min(1.0, mean) * text))
            mask = ~seen
            ranked = sorted(range(len(seen)), key=lambda place: -float(one[place]))
            for place in [place for place in ranked if seen[place]][:count]:
                mask[place] = True
            masks.append(mask)
        return masks

    def _movement(self, block: Block, batch: Batch) -> Tensor:
        seen: list[Tensor] = []

        def look(_: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
            before = next(value for value in (*arguments, *keywords.values()) if isinstance(value, Tensor))
            seen.append(1 - nn.functional.cosine_similarity(before, _first(output), dim=-1))

        handle = block.module.register_forward_hook(look, with_kwargs=True)
        self.model.loss(batch)
        handle.remove()
        return seen[0][0]

    def inputs(self, layer: Layer, masks: list[Tensor | None]) -> Tensor:
        """What counts of a layer's inputs, [tokens, cols]."""
        found = []
        for batch, mask in zip(self.batches, masks, strict=True):
            read = reference.inputs_of(self.model, layer, CalibrationSet("", ()), [batch])
            found.append(read if mask is None else read[mask])
        return torch.cat(found)

    @torch.no_grad()
    def prune(
        self, prune_layer: reference.PruneLayer, keep: dict[str, int], propagate: str
    ) -> dict[str, Tensor]:
        """Prune in place; returns the masks [rows, cols]."""
        masks, pruned = {}, {}
        for tower in self.model.towers:
            for block in tower.blocks:
                counted, own = self.masks(tower, block), {}
                dense = set(block.layers)
                while dense:
                    layer = next(iter(dense))
                    if propagate == "layer":
                        layer = reference.next_of(
                            self.model, block, dense, CalibrationSet("", ()), self.batches
                        )
                    weight, masks[layer.name] = prune_layer(
                        layer.matrix().clone(), self.inputs(layer, counted), keep[layer.name]
                    )
                    own[layer] = weight
                    dense.remove(layer)
                    if propagate == "layer":
                        layer.write(weight)
                pruned |= own
                if propagate == "pruned":
                    for layer, weight in own.items():
                        layer.write(weight)
        for layer, weight in pruned.items():
            layer.write(weight)
        return masks


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def check(
    build: Callable[[], PrunableModel],
    calibration: CalibrationSet,
    choice: str,
    mixed: str,
    name: str,
    propagate: str = "pruned",
) -> None:
    """Pruned by the package as by hand."""
    pruner, by_hand = PRUNERS[name]
    model, other = build(), build()
    allocation = uneven(model)
    report = prune(model, calibration, pruner, allocation, 2, propagate=propagate, tokens=choice)
    with quiet_forward(other.module):
        masks = ByHand(other, calibration, choice, mixed).prune(by_hand, allocation.keep, propagate)
    for layer, expected in zip(model.layers, other.layers, strict=True):
        assert torch.equal(layer.oriented(report.masks[layer.name]), masks[layer.name]), layer.name
        torch.testing.assert_close(layer.matrix(), expected.matrix(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("family", MIXED)
def test_equals_masking_whole_forward_passes_by_hand(family: str, choice: str, name: str) -> None:
    if (family, choice) == ("blip2_t5", "answer"):
        pytest.skip("the encoder reads no answer")
    check(lambda: tiny.build(family), samples(family), choice, MIXED[family], name)


@pytest.mark.parametrize("propagate", ["layer", "dense"])
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "blip2_opt"])
def test_with_every_propagation(family: str, choice: str, propagate: str) -> None:
    check(lambda: tiny.build(family), samples(family), choice, MIXED[family], "wanda", propagate)
