"""``tokens``: which tokens count in the statistics, against whole forward passes that are masked by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import ecoflap
from ecoflap.blocks.input_statistics import InputStatistics
from ecoflap.blocks.statistics import Gram, MeanSquare
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
from ecoflap.prune.wanda import Wanda
from tests import tiny

if int(transformers.__version__.partition(".")[0]) < 5:
    pytest.skip("the zoo is of models of transformers 5", allow_module_level=True)

from tests.zoo.architecture import IMAGE_TOKEN
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


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("family", MIXED)
def test_equals_masking_whole_forward_passes_by_hand(family: str, choice: str) -> None:
    if (family, choice) == ("blip2_t5", "answer"):
        with pytest.raises(UserError, match="tokens=answer: the calibration samples have no such tokens in"):
            prune(only_mixed(family), samples(family), Wanda(), uniform(only_mixed(family)), 2, tokens=choice)
        return
    check(lambda: only_mixed(family), samples(family), choice, MIXED[family], "wanda")


@pytest.mark.parametrize(
    ("family", "choice"), [("llava", "text"), ("qwen2_5_vl", "atv"), ("blip2_opt", "answer")]
)
def test_weights_of_sparsegpt_in_all_towers(family: str, choice: str) -> None:
    check(lambda: tiny.build(family), samples(family), choice, MIXED[family], "sparsegpt")


@pytest.mark.parametrize(
    ("family", "choice", "propagate"),
    [
        ("llava", "atv", "layer"),
        ("llava", "text", "dense"),
        ("qwen2_5_vl", "answer", "layer"),
        ("blip2_opt", "atv", "dense"),
    ],
)
def test_with_every_propagation(family: str, choice: str, propagate: str) -> None:
    check(lambda: only_mixed(family), samples(family), choice, MIXED[family], "wanda", propagate)


def test_where_the_model_adds_features_between_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen3-VL's DeepStack, whose blocks are captured one by one."""
    architecture = ARCHITECTURES["qwen3_vl"]
    if (missing := architecture.missing()) is not None:
        pytest.skip(missing)
    monkeypatch.setattr(tiny, "IMAGE_TOKEN", IMAGE_TOKEN)
    check(lambda: architecture.prunable(["language"]), architecture.samples(), "atv", "language", "wanda")


def counts(family: str, choice: str) -> dict[str, int]:
    """How many tokens count in each layer of the dense model."""
    found = measure_dense(tiny.build(family), samples(family), 2, tokens=choice)
    return {name: int(kept[-1]) for name, kept in found.items()}


def test_which_tokens_count() -> None:
    found = {choice: counts("llava", choice) for choice in ("all", *CHOICES)}
    for name in found["all"]:
        numbers = [found[choice][name] for choice in ("all", "text", "answer", "atv")]
        if ".language_model." not in name and "language_model." not in name:
            assert len(set(numbers)) == 1, "in the image tower, all count"
            continue
        every, text, answer, moved = numbers
        assert (every, text, answer) == (4 * 3 + 19, 19, 9)
        assert text < moved < every, "some visual tokens count, and not all"


@pytest.mark.parametrize("choice", CHOICES)
def test_batch_size_and_stored_statistics_change_nothing(choice: str) -> None:
    masks = []
    for size, stored in ((1, False), (3, False), (2, True)):
        model = only_mixed("llava")
        given = measure_dense(model, samples("llava"), size, tokens=choice) if stored else None
        report = prune(
            model,
            samples("llava"),
            Wanda(),
            uneven(model),
            size,
            propagate="dense",
            tokens=choice,
            precomputed_statistics=given,
        )
        masks.append(report.masks)
    for other in masks[1:]:
        assert all(torch.equal(other[name], mask) for name, mask in masks[0].items())


def test_the_visual_tokens_that_move_most() -> None:
    visual = torch.tensor([[True, True, True, False, False], [True, True, False, False, False]])
    moved = torch.tensor([[0.2, 0.8, 0.8, 9.0, 9.0], [0.6, 0.1, 9.0, 9.0, 9.0]])
    kinds = [TokenKinds(visual, ~visual)]
    # The mean is 0.5: one visual token beside two of text, and round(1.5) = 2 beside three.
    expected = torch.tensor([[False, True, False, True, True], [True, True, True, True, True]])
    assert torch.equal(most_moved(kinds, [moved])[0], expected)
    assert torch.equal(most_moved(kinds, [0 * moved])[0], ~visual)
    expected = torch.tensor([[False, True, True, True, True], [True, True, True, True, True]])
    assert torch.equal(most_moved(kinds, [2 * moved + 1])[0], expected), (
        "no more than text, and than there are"
    )
    with pytest.raises(NumericalError, match="not finite"):
        most_moved(kinds, [moved.where(moved != 0.1, float("nan"))])


class Routed(nn.Module):
    """A layer that reads all tokens, and an expert that reads them in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.experts = nn.ModuleList([nn.Linear(2, 2)])
        self.merged = nn.Linear(4, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        """[batch, tokens, features] -> the same."""
        self.experts[0](hidden.flatten(0, 1).flip(0))
        self.merged(hidden.flatten(1).unflatten(1, (-1, 4)))
        self.first(hidden.transpose(0, 1))
        output: Tensor = self.first(hidden.flatten(0, 1)).view_as(hidden)
        return output


@torch.no_grad()
def test_masks_are_never_put_on_other_tokens() -> None:
    """Flat rows are the tokens in their order; of selected, merged and transposed ones, all count."""
    module = Routed()
    names = {"first": module.first, "experts.0.": module.experts[0], "merged": module.merged}
    layers = [Layer(name, one) for name, one in names.items()]
    hidden = torch.arange(8.0).view(1, 4, 2)
    mask, statistics = torch.tensor([[True, False, False, True]]), InputStatistics(MeanSquare)
    with statistics.gathering(layers):
        statistics.begin_run((mask,), [])
        module(hidden)
    assert [statistics[layer].tokens for layer in layers] == [4 + 2, 4, 2]
    flat = InputStatistics(Gram)
    with flat.gathering(layers[:1]):
        flat.begin_run((mask,), [])
        module.first(hidden.flatten(0, 1))
    kept = hidden[0][mask[0]]
    torch.testing.assert_close(flat[layers[0]].value, kept.t() @ kept / 2)


def test_a_layer_without_tokens_that_count_is_refused() -> None:
    layer, statistics = Layer("first", nn.Linear(2, 2)), InputStatistics(MeanSquare)
    with statistics.gathering([layer]):
        statistics.begin_run((torch.zeros(1, 3, dtype=torch.bool),), [])
        layer.module(torch.ones(1, 3, 2))
    with pytest.raises(UserError, match="first reads none of the tokens that count"):
        statistics[layer]


def test_in_python() -> None:
    masks = {}
    for tokens in ("all", "text"):
        model = only_mixed("llava")
        found = ecoflap.prune(
            model, data=samples("llava"), sparsity=0.5, score="none", batch_size=2, tokens=tokens
        )
        assert found.record.config["tokens"] == tokens
        masks[tokens] = found.masks
    model = only_mixed("llava")
    expected = prune(model, samples("llava"), Wanda(), uniform(model), 2, tokens="text").masks
    assert all(torch.equal(masks["text"][name], mask) for name, mask in expected.items())
    assert not all(torch.equal(masks["text"][name], mask) for name, mask in masks["all"].items())
    with pytest.raises(UserError, match="tokens=visual is not known; choose all, text, answer or atv"):
        ecoflap.prune(model, data=samples("llava"), sparsity=0.5, tokens="visual")
    with pytest.raises(UserError, match="pruner=global_magnitude measures no inputs"):
        ecoflap.prune(model, sparsity=0.5, pruner="global_magnitude", tokens="text")
