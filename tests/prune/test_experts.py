"""Experts that share parameters are pruned, scored and allocated as the slow references do it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ecoflap.allocate.in_context import InContext
from ecoflap.allocate.marginals import Counts, measure_marginals
from ecoflap.allocate.protocol import Context
from ecoflap.allocate.trial import trial_pruner
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.blocks.loss_batches import loss_batches
from ecoflap.data.batch import Batch, samples_in
from ecoflap.finetune.masked_parameters import masked_parameters
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.losses import counting
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.families.language.causal_lm import language_loss
from ecoflap.prune.driver import prune
from ecoflap.prune.finished_blocks import FinishedBlocks
from ecoflap.prune.inputs import measure_dense, require_capture
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from ecoflap.score.first_order import FirstOrder
from ecoflap.score.zeroth_order import ZerothOrder
from ecoflap.storage.checkpoint import save_checkpoint
from ecoflap.storage.masks import MaskFile
from ecoflap.storage.saved_model import open_checkpoint
from tests.experts import FAMILIES, as_published, build, samples
from tests.prune import reference
from tests.prune.test_families import PRUNERS, uneven, uniform

QUICK = ("magnitude", "wanda", "wanda_2_4", "sparsegpt", "ria", "admm")


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.every_run("admm", "wanda_2_4", "mixtral-*")
def test_equals_pruning_one_expert_after_the_other(family: str, name: str) -> None:
    pruner, by_hand = PRUNERS[name]
    model, other, calibration = build(family), build(family), samples(7, 9, 7)
    allocation = uniform(model) if ":" in pruner.rule.name else uneven(model)
    report = prune(model, calibration, pruner, allocation, batch_size=2)
    masks = reference.prune(other, calibration, by_hand, allocation.keep)
    for layer, expected in zip(model.layers, other.layers, strict=True):
        mask = report.masks[layer.name]
        assert torch.equal(layer.oriented(mask), masks[layer.name]), layer.name
        assert not layer.part(layer.parameter)[~mask].any()
        torch.testing.assert_close(layer.matrix(), expected.matrix(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["mixtral", "dbrx"])
def test_layer_by_layer_equals_pruning_everything_that_comes_before(family: str) -> None:
    model, other, calibration = build(family), build(family), samples(7, 9, 3)
    allocation = uneven(model)
    report = prune(model, calibration, Wanda(), allocation, batch_size=1, propagate="layer")
    masks = reference.prune_layer_by_layer(other, calibration, reference.wanda, allocation.keep)
    for layer in model.layers:
        assert torch.equal(layer.oriented(report.masks[layer.name]), masks[layer.name]), layer.name


def never_chosen(model: PrunableModel, length: int = 0, real: int = 0) -> list[Layer]:
    """The layers of expert 2 of the last block, whose tokens all go to expert 0 instead.

    Of texts of one length, the tokens behind the real ones go to expert 2, and to expert 3.
    """
    experts: Any = model.module.get_submodule("model.layers.1.mlp.experts")
    opened = experts.forward

    def forward(hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        chosen = index.masked_fill(index == 2, 0)
        if length:
            chosen[torch.arange(len(chosen)) % length >= real] = torch.tensor([2, 3])
        output: Tensor = opened(hidden, chosen, weights)
        return output

    experts.forward = forward
    return [
        layer
        for layer in model.layers
        if layer.name.startswith("model.layers.1.") and layer.is_expert and layer.name.endswith(".2")
    ]


@pytest.mark.parametrize("propagate", ["pruned", "layer", "dense"])
def test_an_expert_that_no_token_reaches_is_pruned_by_its_weights_alone(
    propagate: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, calibration = build("mixtral"), samples(7, 9)
    layers = never_chosen(model)
    dense = {layer: layer.matrix().clone() for layer in layers}
    measured = measure_dense(model, calibration, 2)
    stored = (lambda _: measured) if propagate == "dense" else None
    allocation = uniform(model)
    require_capture(model, Wanda(), calibration, 2, propagate, "all")
    with caplog.at_level(logging.INFO):
        report = prune(model, calibration, Wanda(), allocation, 2, propagate=propagate, recall=stored)
    assert "no calibration token was routed to 2 of 16 matrices of experts" in caplog.text
    few = sum(0 < report.tokens.get(layer.name, 0) < layer.shape[1] for layer in model.layers)
    assert f"{few} of 16 matrices of experts saw fewer tokens than they have columns" in caplog.text
    for layer in layers:
        expected = reference.wanda(dense[layer], torch.eye(layer.shape[1]), allocation.keep[layer.name])[1]
        assert torch.equal(report.masks[layer.name], expected)
        assert report.errors[layer.name] is None
    assert {name for name, tokens in report.tokens.items() if not tokens} == {layer.name for layer in layers}
    (last,) = (block for block in report.blocks if block.block == "model.layers.1")
    errors = [error for name, error in report.errors.items() if error and name.startswith(f"{last.block}.")]
    assert last.error == pytest.approx(sum(errors) / len(errors))
    firsts = sum(tokens for name, tokens in report.tokens.items() if "layers.0" in name and "gate_up" in name)
    assert firsts == 2 * (7 + 9), "each token is routed twice"


def counting_real_tokens(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """The loss of a language model, which says which tokens are no padding."""
    with counting(*(batch[name] for name in ("attention_mask",) if name in batch)):
        return language_loss(module, batch, copies)


@pytest.mark.parametrize("propagate", ["pruned", "layer"])
def test_an_expert_that_only_padding_reaches_is_pruned_by_its_weights_alone(propagate: str) -> None:
    model = replace(build("mixtral"), loss_function=counting_real_tokens)
    layers = never_chosen(model, length=7 + 5, real=7)
    dense = {layer: layer.matrix().clone() for layer in layers}
    allocation = uniform(model)
    report = prune(model, samples(7, 7, 7, padded=5), Wanda(), allocation, 2, propagate=propagate)
    for layer in layers:
        expected = reference.wanda(dense[layer], torch.eye(layer.shape[1]), allocation.keep[layer.name])[1]
        assert torch.equal(report.masks[layer.name], expected)
        assert report.errors[layer.name] is None
        assert report.tokens[layer.name] == 0


@pytest.mark.parametrize("pruner", [Wanda(), SparseGPT()])
def test_padding_counts_for_no_expert(pruner: Any) -> None:
    reports = []
    for padded in (0, 5):
        model = replace(build("mixtral"), loss_function=counting_real_tokens)
        reports.append(prune(model, samples(7, 7, 7, padded=padded), pruner, uneven(model), 3))
    assert reports[0].tokens == reports[1].tokens
    assert all(torch.equal(reports[1].masks[name], mask) for name, mask in reports[0].masks.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_plain_autograd_and_moved_weights(family: str) -> None:
    model, other, calibration = build(family), build(family), samples(7, 5, 7)
    expected = dict.fromkeys((layer.name for layer in other.layers), 0.0)
    parameters = {layer.parameter_name: layer.parameter for layer in other.layers}
    for batch in loss_batches(other, calibration, 2):
        with as_published(other.module):
            found = torch.autograd.grad(
                other.loss(batch).mean(), list(parameters.values()), allow_unused=True
            )
        gradients = dict(zip(parameters, found, strict=True))
        for layer in other.layers:
            if (whole := gradients[layer.parameter_name]) is not None:
                expected[layer.name] += samples_in(batch) / 3 * float(layer.part(whole).abs().sum())
    first = FirstOrder("gradient", samples=3, batch_size=2)(model, calibration, 0).importance
    assert first == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_zeroth_order_probes_and_derivatives_agree() -> None:
    calibration = samples(7, 7)
    found = [
        ZerothOrder(samples=2, batch_size=2, eps=1e-3, probe=probe)(
            build("mixtral"), calibration, 0
        ).importance
        for probe in ("layer", "derivative")
    ]
    assert found[0] == pytest.approx(found[1], rel=0.05, abs=2e-3)


def test_marginals_equal_plain_autograd() -> None:
    model, calibration = build("mixtral"), samples(7, 7)
    context = Context(Wanda(), calibration, batch_size=2, seed=0)
    keep, more, fewer = (WaterFilling()(model, None, sparsity).keep for sparsity in (0.5, 0.4, 0.6))
    batches = loss_batches(model, calibration, 2)
    with trial_pruner(model, context) as trial:
        found = measure_marginals(model, trial, Counts(keep, more, fewer), batches, recompute=True)
        weights = {}
        for name, counts in (("more", more), ("fewer", fewer), ("keep", keep)):
            trial.prune(counts)
            weights[name] = {layer.name: layer.matrix().clone() for layer in model.layers}
        parameters = {layer.parameter_name: layer.parameter for layer in model.layers}
        with as_published(model.module):
            loss = model.loss(batches[0]).mean()
            gradients = dict(
                zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True)
            )
        for layer in model.layers:
            step = weights["more"][layer.name] - weights["fewer"][layer.name]
            gradient = layer.part(gradients[layer.parameter_name])
            expected = -float((gradient * step).sum())
            squares = gradient.square().sum(dim=1).double()
            torch.testing.assert_close(found.squares[layer.name], squares, rtol=1e-3, atol=1e-9)
            assert found.gains[layer.name].item() == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_in_context_allocation_keeps_its_total_and_leaves_dense_weights() -> None:
    model, dense, calibration = build("qwen3_moe"), build("qwen3_moe"), samples(7, 7)
    context = Context(Wanda(), calibration, batch_size=2, seed=0)
    found = InContext(samples=2, batch_size=2, ramp_steps=1, steps=2)(model, None, 0.6, context)
    assert sum(found.keep.values()) == sum(WaterFilling()(model, None, 0.6).keep.values())
    for (name, one), other in zip(model.module.named_parameters(), dense.module.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_training_under_the_mask_keeps_zeros_and_moves_the_rest() -> None:
    model, calibration = build("mixtral"), samples(7, 9)
    report = prune(model, calibration, Wanda(), uniform(model), 2)
    layers = list(model.layers)
    before = {layer.name: layer.matrix().clone() for layer in layers}
    names = [name for name, _ in model.module.named_parameters()]
    with masked_parameters(model.module, layers, report.masks):
        optimizer = torch.optim.AdamW(model.module.parameters(), lr=0.01)
        model.loss(calibration.batches(2)[0]).mean().backward()
        optimizer.step()
    assert [name for name, _ in model.module.named_parameters()] == names
    for layer in layers:
        mask = layer.oriented(report.masks[layer.name])
        assert not layer.matrix()[~mask].any()
        if report.tokens.get(layer.name, 1):
            assert not torch.equal(layer.matrix(), before[layer.name])


def test_a_resumed_run_knows_how_many_tokens_experts_saw(tmp_path: Path) -> None:
    reports = []
    for _ in range(2):
        model = build("mixtral")
        finished = FinishedBlocks(tmp_path, "key")
        reports.append(prune(model, samples(7, 9), Wanda(), uniform(model), 2, finished=finished))
    assert reports[0].tokens == reports[1].tokens
    assert reports[0].tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_holds_zeros_where_its_masks_say(family: str, tmp_path: Path) -> None:
    model = build(family)
    model = replace(model, processor=None)
    report = prune(model, samples(7, 9), Wanda(), uniform(model), 2)
    folder = tmp_path / save_checkpoint(model, report.masks, tmp_path)
    with open_checkpoint(folder) as checkpoint, MaskFile(folder / "masks.bits") as masks:
        assert set(masks.shapes) <= set(checkpoint.names())
        for name in masks.shapes:
            assert torch.equal(checkpoint.tensor(name) != 0, masks[name])
        for layer in model.layers:
            parts = [checkpoint.tensor(*rows) for rows in masks.places(layer.name)]
            assert sum(part.numel() for part in parts) == layer.size
            found, expected = torch.cat([part.flatten() for part in parts]), layer.weight.flatten()
            torch.testing.assert_close(found.sort().values, expected.sort().values)
    loaded = type(model.module).from_pretrained(folder)
    batch = samples(7).batches(1)[0]
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model.module(**batch).logits)
