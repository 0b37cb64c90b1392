"""TAMP's allocation: numbers of its released code, totals, towers, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ecoflap.allocate.protocol import Context
from ecoflap.allocate.tamp import TAMP, diversity
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.data.batch import Batch
from ecoflap.errors import NumericalError, UserError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.token_kinds import TokenKinds, declaring
from ecoflap.prune.wanda import Wanda
from tests import padding, tiny, unchained
from tests.allocate import golden, toy
from tests.allocate.test_water_filling import check_counts
from tests.prune.by_hand_tokens import samples

VISUAL = 7  # tokens of the toy that stand for a picture, the first ones


def toy_loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """The toy's loss, which declares its first tokens visual."""
    visual = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    visual[:, :VISUAL] = True
    with declaring(language=TokenKinds(visual, ~visual)):
        return toy.next_token_loss(module, batch, copies)


def context(family: str = "llava") -> Context:
    return Context(Wanda(), tiny.samples(family), 2, 0)


@pytest.mark.parametrize("sparsity", golden.TAMP_SPARSITY)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_equals_the_released_code(sparsity: float, batch_size: int) -> None:
    model = replace(toy.toy(), loss_function=toy_loss)
    given = Context(Wanda(), toy.calibration(), batch_size, 0)
    allocation = TAMP()(model, None, sparsity, given)
    assert list(allocation.details["values"].values()) == pytest.approx(golden.TAMP_IMPORTANCE, rel=1e-5)
    published = [
        (1 - share) * size
        for share, size in zip(golden.TAMP_SPARSITY[sparsity], allocation.sizes.values(), strict=True)
    ]
    more = sorted(one - kept for one, kept in zip(published, allocation.keep.values(), strict=True))
    # As released, counts are rounded up, and what is too much is given once more to one large layer.
    assert more[-1] == pytest.approx(12, abs=1.5)
    assert all(-1e-3 <= one <= 1 + 1e-3 for one in more[:-1])


def by_hand(outputs: Tensor, visual: Tensor) -> float:
    """The same with one pair of tokens at a time."""
    within: dict[bool, list[float]] = {True: [], False: []}
    across = []
    for one in range(len(outputs)):
        for other in range(one + 1, len(outputs)):
            cosine = float(nn.functional.cosine_similarity(outputs[one], outputs[other], dim=0))
            if visual[one] != visual[other]:
                across.append(cosine)
            elif cosine > 0:
                within[bool(visual[one])].append(cosine)
    return sum(1 - sum(one) / max(len(one), 1) for one in (*within.values(), across))


@pytest.mark.parametrize("count", [0, 1, 2, 5, 8])
def test_diversity_pair_by_pair(count: int) -> None:
    outputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(count))
    visual = torch.arange(8) < count
    assert diversity(outputs, visual) == pytest.approx(by_hand(outputs, visual), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("family", "mixed"), [("llava", "language"), ("blip2_t5", "encoder")])
def test_importance_is_that_of_plain_forward_passes(family: str, mixed: str) -> None:
    model, given = tiny.build(family), context(family)
    found = TAMP()(model, None, 0.6, given).details["values"]
    tower = next(tower for tower in model.towers if tower.name == mixed)
    assert set(found) == {layer.name for layer in tower.layers}
    layer, outputs = tower.layers[-1], list[Tensor]()
    layer.module.register_forward_hook(lambda _, __, output: outputs.append(output[0]))
    with quiet_forward(model.module):
        for batch in tiny.one_by_one(family, given.samples, 1):
            model.loss(batch)
    kinds = [sample["input_ids"].flatten() == tiny.IMAGE_TOKEN for sample in given.samples.samples]
    expected = [by_hand(output, visual) for output, visual in zip(outputs, kinds, strict=True)]
    assert found[layer.name] == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_padding_is_neither_text_nor_visual() -> None:
    alone, padded = (
        TAMP()(padding.model(), None, 0.6, Context(Wanda(), calibration, 2, 0)).details["values"]
        for calibration in (samples("llava"), padding.samples())
    )
    assert padded == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("sparsity", [0.0, 0.613, 0.95, 0.999])
def test_totals_are_exact_and_other_towers_even(sparsity: float) -> None:
    model = tiny.build("llava")
    allocation = TAMP()(model, None, sparsity, context())
    check_counts(model, allocation, sparsity)
    vision, language = model.towers
    for layer in vision.layers:
        assert abs(allocation.keep[layer.name] - (1 - sparsity) * layer.size) <= 1
    for layer in language.layers:
        assert 1 - allocation.keep[layer.name] / layer.size <= sparsity + 0.1 + 1e-6
    assert allocation.granularity == "layer"


def test_its_margin() -> None:
    model = tiny.build("llava")
    assert TAMP(margin=0)(model, None, 0.6, context()).keep == WaterFilling()(model, None, 0.6).keep
    tried = TAMP(margin="auto", samples=3)(model, None, 0.6, context())
    losses = tried.details["losses"]
    assert tried.details["margin"] == float(min(losses, key=losses.__getitem__))
    with pytest.raises(UserError, match=r"allocation\.margin=wide is neither a number nor auto"):
        TAMP(margin="wide")


def test_refusals() -> None:
    model = tiny.build("llama")
    with pytest.raises(UserError, match=r"allocation=tamp needs a pruned tower .* choose another allocation"):
        TAMP()(model, None, 0.5, context("llama"))
    broken: PrunableModel = tiny.build("llava")
    with torch.no_grad():
        broken.towers[-1].layers[-1].weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="not finite"):
        TAMP()(broken, None, 0.5, context())


def test_experts_that_read_every_token_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """They read them in an order of their own, although there are as many as the tower has."""
    monkeypatch.setitem(unchained.MOE, "num_experts_per_tok", unchained.MOE["num_experts"])
    model = unchained.build("qwen3_vl_moe")
    calibration = unchained.samples("qwen3_vl_moe", (7,))
    with pytest.raises(UserError, match=r"experts\..*reads other tokens than those of its tower"):
        TAMP()(model, None, 0.5, Context(Wanda(), calibration, 1, 0))
