import re
from dataclasses import replace

import pytest
import torch

from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.errors import UserError
from ecoflap.prune.driver import prune
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.masks import MaskRule
from ecoflap.prune.protocol import LayerPruner
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from tests import tiny

pytestmark = pytest.mark.any_release


@pytest.mark.parametrize("text", ["2:4", "4:8", "1:4", "2:3"])
def test_n_of_m_is_read(text: str) -> None:
    n, m = map(int, text.split(":"))
    assert MaskRule.parse(text, ("row",)) == MaskRule(text, (n, m))


@pytest.mark.parametrize("text", ["rows", "4:2", "4:4", "0:4", "2:4:8", "-1:4", "2 : 4", ""])
def test_unknown_rules(text: str) -> None:
    with pytest.raises(
        UserError, match=rf"pruner\.mask={re.escape(text)} is not known; choose row, matrix, or N:M"
    ):
        MaskRule.parse(text, ("row", "matrix"))


@pytest.mark.parametrize(("pruner", "mask"), [(SparseGPT, "row"), (Wanda, "column"), (Magnitude, "4:2")])
def test_pruners_refuse_masks_that_they_do_not_know(pruner: type, mask: str) -> None:
    with pytest.raises(UserError, match=rf"pruner\.mask={mask} is not known"):
        pruner(mask=mask)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"damping": -0.1}, r"damping=-0\.1 must be a finite number of at least 0"),
        ({"damping": float("inf")}, "damping=inf must be a finite number"),
        ({"block": 0}, "block=0 must be at least 1"),
        ({"block": 1.5}, r"block=1\.5 is a float; give a whole number"),
    ],
)
def test_sparsegpt_refuses_impossible_numbers(arguments: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        SparseGPT(**arguments)


def test_columns_that_m_does_not_divide() -> None:
    layers = tiny.build("gpt2").layers  # 16 and 24 columns
    MaskRule.parse("4:8", ()).check_layers(layers)
    with pytest.raises(
        UserError,
        match=r"2:16: transformer\.h\.0\.mlp\.c_proj\.weight has 24 columns, which 16 does not divide",
    ):
        MaskRule.parse("2:16", ()).check_layers(layers)


@pytest.mark.parametrize(
    ("rule", "right"), [("2:4", "0.5"), ("1:4", "0.75"), ("2:3", "0.3333333333"), ("1:3", "0.6666666667")]
)
def test_contradicting_sparsity_and_the_value_that_is_offered(rule: str, right: str) -> None:
    with pytest.raises(UserError, match=rf"sparsity=0\.6 was asked for; set sparsity={right}, or"):
        MaskRule.parse(rule, ()).check(0.6, uneven=False)
    MaskRule.parse(rule, ()).check(float(right), uneven=False)


def test_nothing_to_allocate() -> None:
    with pytest.raises(UserError, match="there is nothing to allocate; use allocation=auto score=auto"):
        MaskRule.parse("2:4", ()).check(0.5, uneven=True)
    MaskRule.parse("row", ("row",)).check(0.6, uneven=True)


@pytest.mark.parametrize(
    ("rule", "sparsity"), [("2:4", 0.5), ("4:8", 0.5), ("1:4", 0.75), ("2:3", 0.3333333333)]
)
@pytest.mark.parametrize("pruner", [Wanda, Magnitude, SparseGPT])
def test_every_group_of_every_row_keeps_n(pruner: type, rule: str, sparsity: float) -> None:
    model = tiny.build("gpt2", skip_layers=() if rule != "2:3" else ("attn", "c_fc"))
    built: LayerPruner = pruner(mask=rule)
    built.check(sparsity, uneven=False)
    built.check_layers(model.layers)
    report = prune(model, tiny.samples("gpt2"), built, WaterFilling()(model, None, sparsity), 2)
    n, m = built.rule.n_of_m
    for layer in model.layers:
        mask = layer.oriented(report.masks[layer.name])
        assert torch.all(mask.reshape(layer.shape[0], -1, m).sum(dim=2) == n)
        assert torch.equal(layer.matrix() != 0, mask)


def test_counts_of_a_fixed_n_of_m_are_its_own() -> None:
    """Those of a target that is a third in nine digits, but no others."""
    model = tiny.build("llama")
    allocation = WaterFilling()(model, None, 0.5)
    pruner = Wanda(mask="2:4")
    assert pruner.fitted(allocation).keep == allocation.keep
    name = next(iter(allocation.keep))
    off = replace(allocation, keep={**allocation.keep, name: allocation.keep[name] - 1})
    assert pruner.fitted(off).keep == allocation.keep
    other = replace(allocation, keep={**allocation.keep, name: allocation.keep[name] - 2})
    with pytest.raises(UserError, match=rf"keeps \d+ of the \d+ weights of {name}.*pruner.mask=n:4"):
        pruner.fitted(other)
