"""Pruning with tokens that are chosen by hand, from whole forward passes of one sample at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block, Tower
from ecoflap.prune.driver import prune
from tests import tiny

from . import reference
from .test_families import PRUNERS, uneven

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
            both = (
                states[0].reshape(len(states[0]), -1) for states in (before, _first(output))
            )  # of a token
            seen.append(1 - nn.functional.cosine_similarity(*both, dim=-1))

        handle = block.module.register_forward_hook(look, with_kwargs=True)
        self.model.loss(batch)
        handle.remove()
        return seen[0]

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
                        with reference.calls_of(block, dense) as calls:
                            reference.plain_passes(self.model, CalibrationSet("", ()), self.batches)
                        layer = reference.first_of(calls) or layer
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


def only_mixed(family: str) -> PrunableModel:
    """The model, of which the tower is pruned that reads both."""
    return tiny.build(family, towers=[MIXED[family]])
