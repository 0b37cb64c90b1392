"""Towers that run other blocks for other batches, or hand on no tensor, are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ecoflap.blocks.capture import Flow, flows
from ecoflap.data.batch import Batch
from ecoflap.errors import UserError
from ecoflap.models.core.towers import Selection
from ecoflap.models.loading.loader import prunable
from tests.blocks.stacks import (
    Block,
    Model,
    batches,
    built,
    model_of,
    plainly,
)


@torch.no_grad()
def test_blocks_that_return_dicts_are_refused() -> None:
    class Named(Block):
        def forward(self, hidden: Tensor, *_: Any) -> dict[str, Tensor]:
            return {"hidden": super().forward(hidden)}

    def named(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
        for block in layers:
            hidden = block(hidden)["hidden"]
        return hidden

    module = Model(named, Named)
    model = prunable("toy", module, None, lambda module, batch, _: module(**batch).mean((1, 2)), Selection())
    with pytest.raises(UserError, match=r"a block returned a dict, .* change what its forward returns"):
        Flow(model, model.towers[1], batches("in all"))


@torch.no_grad()
def test_a_batch_that_leaves_blocks_out_is_refused() -> None:
    model = model_of("side_by_side")
    flow = Flow(model, model.towers[1], batches("not in the last"))
    with pytest.raises(
        UserError, match=r"batch 3 of 3 calls layers\.1 0 times and the first block of tower language 1 times"
    ):
        flow.enter(1)


@torch.no_grad()
def test_blocks_of_which_some_are_called_more_often_are_refused() -> None:
    def first_twice(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
        return plainly(layers, layers[0](hidden), states)

    model = built(first_twice, Block)
    with pytest.raises(UserError, match=r"tower language \(layers\) are called 1 to 2 times per batch"):
        Flow(model, model.towers[1], batches("in all"))


@torch.no_grad()
def test_a_batch_that_leaves_out_replayed_blocks_is_refused() -> None:
    def first_alone(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
        return layers[0](hidden) if len(states) == 1 else plainly(layers, hidden, states)

    model = built(first_alone, Block)
    with pytest.raises(
        UserError, match=r"batch 3 of 3 calls layers\.1 0 times and the first block of tower language 1 times"
    ):
        Flow(model, model.towers[1], batches("not in the last"))


@torch.no_grad()
def test_a_batch_that_runs_a_tower_more_often_is_refused() -> None:
    model, given = model_of("given_end"), batches("in all")
    given[2]["image"][2] = 9

    def loss(module: Any, batch: Batch, _: int) -> Tensor:
        if (batch["image"] == 9).any():
            module.see(batch["image"])
        return module(**batch).mean(dim=(1, 2))

    carried = flows(replace(model, loss_function=loss), model.towers, given)
    vision = next(carried)
    for index in range(len(vision.tower.blocks)):
        vision.leave(index)
    with pytest.raises(UserError, match=r"a batch runs tower vision \(vision\) more than 1 times"):
        next(carried)


@torch.no_grad()
@pytest.mark.parametrize(
    ("lengths", "bare", "runs_twice"),
    [
        ((5, 5, 5), 1, lambda batch: "image" not in batch),
        ((5, 3, 5), None, lambda batch: batch["hidden"].shape[1] == 3),
        ((5, 5, 3), 1, lambda batch: batch["hidden"].shape[1] == 3),
        ((3, 4, 5), None, lambda batch: batch["hidden"].shape[1] == 5),
    ],
    ids=["other inputs", "another length", "another length beside other inputs", "the longest"],
)
def test_a_kind_of_batch_that_runs_the_tower_more_often_is_refused(
    lengths: tuple[int, ...], bare: int | None, runs_twice: Callable[[Batch], bool]
) -> None:
    model = model_of("given_end")
    given = [
        {name: tensor[:, :length] for name, tensor in batch.items()}
        for batch, length in zip(batches("in all"), lengths, strict=True)
    ]
    if bare is not None:
        del given[bare]["image"]

    def loss(module: Any, batch: Batch, _: int) -> Tensor:
        hidden, image = batch["hidden"], batch.get("image", batch["hidden"])
        for _ in range(2 if runs_twice(batch) else 1):
            hidden = module(hidden, image)
        return hidden.mean(dim=(1, 2))

    with pytest.raises(
        UserError, match=r"one batch runs tower language \(layers\) 1 times and another 2 times; calibrate on"
    ):
        Flow(replace(model, loss_function=loss), model.towers[1], given)
