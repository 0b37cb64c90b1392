"""Experts that no token reaches count neither for nor against the block that they lie in."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ecoflap.allocate.dlp import DLP
from ecoflap.allocate.lsa import LSA
from ecoflap.allocate.owl import OWL
from ecoflap.allocate.protocol import Context
from ecoflap.blocks.gram import Gram
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import greedy_removal_error
from ecoflap.prune.wanda import Wanda
from ecoflap.score.local import Local
from tests import experts

REACHED = 2
CONTEXT = Context(Wanda(), experts.samples(*[7] * 8), 4, 0)


@pytest.fixture(scope="module")
def model() -> PrunableModel:
    """Two blocks, of which the second sends all tokens to the first two of its four experts."""

    def send(_: Any, arguments: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        hidden, chosen, weights = arguments
        return hidden, torch.arange(REACHED).expand_as(chosen).contiguous(), weights

    model = experts.build("qwen3_moe")
    block: Any = model.blocks[1].module
    block.mlp.experts.register_forward_pre_hook(send)
    return model


def is_reached(layer: Layer) -> bool:
    expert = int(layer.name.rpartition(".")[2]) if layer.is_expert else 0
    return expert < REACHED or not layer.name.startswith("model.layers.1.")


def inputs_of(model: PrunableModel) -> dict[str, Tensor]:
    """{layer: all rows that it reads}, of layers that read some."""
    found: dict[str, list[Tensor]] = {}
    handles = [
        layer.module.register_forward_pre_hook(
            lambda _, args, name=layer.name: found.setdefault(name, []).append(args[0].flatten(0, -2))
        )
        for layer in model.layers
    ]
    with torch.no_grad():
        for batch in CONTEXT.calibration.batches(1):
            model.loss(batch)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows).float() for name, rows in found.items() if sum(map(len, rows))}


@pytest.fixture(scope="module")
def inputs(model: PrunableModel) -> dict[str, Tensor]:
    found = inputs_of(model)
    assert [layer.name in found for layer in model.layers] == [is_reached(layer) for layer in model.layers]
    return found


def sizes(model: PrunableModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """{block: the sizes of all weights of reached layers}."""
    return {
        block.name: torch.cat(
            [
                (layer.matrix().abs() * inputs[layer.name].square().mean(dim=0).sqrt()).flatten()
                for layer in block.layers
                if layer.name in inputs
            ]
        )
        for block in model.blocks
    }


def test_blocks_are_measured_by_the_others(model: PrunableModel, inputs: dict[str, Tensor]) -> None:
    for name, size in sizes(model, inputs).items():
        outliers = 100 * float((size > 3 * size.mean()).float().mean())
        assert OWL(outlier=3)._values(model, CONTEXT)[name] == pytest.approx(outliers, rel=1e-3)
        assert DLP()._values(model, CONTEXT)[name] == pytest.approx(float(size.median()), rel=1e-3)
        mean = DLP(average="mean")._values(model, CONTEXT)[name]
        assert mean == pytest.approx(float(size.mean()), rel=1e-3)


def test_lsa_takes_the_mean_of_reached_experts(model: PrunableModel, inputs: dict[str, Tensor]) -> None:
    rule = LSA()
    values = rule._values(model, CONTEXT)
    for layer in model.blocks[1].layers:
        if is_reached(layer):
            rows = inputs[layer.name]
            expected = greedy_removal_error(
                layer.matrix(), rows.t() @ rows / len(rows), rule.share, rule.columns
            )
        else:
            alike = [one for one in model.blocks[1].layers if one.is_expert and one.shape == layer.shape]
            reached = [values[one.name] for one in alike if is_reached(one)]
            assert len(reached) == REACHED
            expected = sum(reached) / REACHED
        assert values[layer.name] == pytest.approx(expected, rel=1e-3)


@dataclass(eq=False)
class Part:
    """A layer [4, 4] that may be an expert."""

    name: str
    is_expert: bool
    scale: float
    shape: tuple[int, int] = (4, 4)

    def matrix(self) -> Tensor:
        return self.scale * torch.ones(4, 4)


def test_lsa_takes_no_projection_of_the_shape_of_an_expert_for_one() -> None:
    device = torch.device("cpu")
    layers = [Part("attention", False, 5.0), Part("reached", True, 1.0), Part("unreached", True, 2.0)]
    statistics: Any = {layer: Gram.unseen(4, device) for layer in layers}
    for layer in layers[:2]:
        statistics[layer].assumed = False
    block: Any = SimpleNamespace(layers=layers)
    found = LSA().measure_block(block, statistics)
    assert found["attention"] > found["reached"] == found["unreached"] > 0


def test_their_local_score_is_zero(model: PrunableModel) -> None:
    scores = Local(samples=8)(model, CONTEXT.calibration, 0).importance
    assert [scores[layer.name] > 0 for layer in model.layers] == [is_reached(layer) for layer in model.layers]
