"""Training the kept values is training the whole matrix with a masked gradient, step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ecoflap.finetune.masked_parameters import count_trained, masked_parameters
from ecoflap.models.core.prunable import PrunableModel
from tests.tiny import FAMILIES, build, samples

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda values: torch.optim.AdamW(values, lr=1e-2, weight_decay=0.1),
    "sgd": lambda values: torch.optim.SGD(values, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "rmsprop": lambda values: torch.optim.RMSprop(values, lr=1e-3),
}


def pruned(
    family: str, build: Callable[[str], PrunableModel] = build
) -> tuple[PrunableModel, dict[str, Tensor]]:
    """A tiny model half of whose weights are zero; one kept weight is zero too, and one layer loses
    everything.
    """
    model = build(family)
    generator = torch.Generator().manual_seed(3)
    masks = {layer.name: torch.rand(layer.weight.shape, generator=generator) < 0.5 for layer in model.layers}
    masks[model.layers[-1].name] = torch.zeros_like(masks[model.layers[-1].name])
    with torch.no_grad():
        for layer in model.layers:
            layer.weight[~masks[layer.name]] = 0.0
        first = model.layers[0]
        first.weight.view(-1)[int(masks[first.name].flatten().int().argmax())] = 0.0
    return model, masks


def train_whole_matrices(
    model: PrunableModel,
    masks: dict[str, Tensor],
    optimizer: Callable[..., torch.optim.Optimizer],
    steps: int,
) -> None:
    """The slow reference: gradients of whole matrices, masked, and the mask applied after each step."""
    chosen, batches = optimizer(model.module.parameters()), samples(model.name).batches(2)
    for step in range(steps):
        chosen.zero_grad()
        model.loss(batches[step % len(batches)]).mean().backward()
        with torch.no_grad():
            for layer in model.layers:
                if layer.weight.grad is not None:
                    layer.weight.grad.mul_(masks[layer.name])
            chosen.step()
            for layer in model.layers:
                layer.weight.mul_(masks[layer.name])


def train_kept_values(
    model: PrunableModel,
    masks: dict[str, Tensor],
    optimizer: Callable[..., torch.optim.Optimizer],
    steps: int,
) -> int:
    """The same through ``masked_parameters``; returns the number of values that the optimizer has a state
    for.
    """
    batches = samples(model.name).batches(2)
    with masked_parameters(model.module, model.layers, masks):
        chosen = optimizer(model.module.parameters())
        for step in range(steps):
            chosen.zero_grad()
            model.loss(batches[step % len(batches)]).mean().backward()
            chosen.step()
        return sum(state["exp_avg"].numel() for state in chosen.state.values() if "exp_avg" in state)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "blip_vqa", "open_clip"])
def test_it_equals_training_whole_matrices_under_a_mask(family: str, optimizer: str) -> None:
    if family not in FAMILIES:
        pytest.skip(f"transformers has no {family}")
    model, masks = pruned(family)
    reference = copy.deepcopy(model.module)
    slow = build(family)
    slow.module.load_state_dict(reference.state_dict())
    train_whole_matrices(slow, masks, OPTIMIZERS[optimizer], 4)
    train_kept_values(model, masks, OPTIMIZERS[optimizer], 4)
    for (name, one), other in zip(model.module.named_parameters(), slow.module.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name, rtol=1e-4, atol=1e-6)
    assert any(
        not torch.equal(one, other)
        for one, other in zip(model.module.parameters(), reference.parameters(), strict=True)
    )
    for layer in model.layers:
        assert not layer.weight[~masks[layer.name]].any()


def test_the_optimizer_holds_states_of_kept_weights_only() -> None:
    model, masks = pruned("llama")
    removed = sum(int((~mask).sum()) for mask in masks.values())
    with masked_parameters(model.module, model.layers, masks):
        assert count_trained(model.module) == model.parameter_count()  # which counts values, too
    assert train_kept_values(model, masks, OPTIMIZERS["adamw"], 1) == model.parameter_count() - removed


def test_afterwards_parameters_are_the_same_objects_under_the_same_names() -> None:
    model, masks = pruned("blip_vqa")
    names, before = (
        list(model.module.state_dict()),
        {name: id(value) for name, value in model.module.named_parameters()},
    )
    fingerprint = model.fingerprint()
    with masked_parameters(model.module, model.layers, masks):
        assert model.loss(samples("blip_vqa").batches(1)[0]).isfinite().all()
    assert list(model.module.state_dict()) == names
    assert {name: id(value) for name, value in model.module.named_parameters()} == before
    assert model.fingerprint() == fingerprint


def test_an_error_in_the_training_leaves_whole_matrices() -> None:
    model, masks = pruned("llama")
    fingerprint = model.fingerprint()
    with pytest.raises(RuntimeError), masked_parameters(model.module, model.layers, masks):
        raise RuntimeError
    assert model.fingerprint() == fingerprint


def test_a_weight_of_two_owners_stays_one() -> None:
    model, masks = pruned("llama")
    layer = model.layers[0]
    twin = nn.Linear(layer.weight.shape[1], layer.weight.shape[0], bias=False)
    twin.weight = layer.weight
    model.module.twin = twin
    with masked_parameters(model.module, model.layers, masks):
        assert twin.parametrizations.weight.original is layer.module.parametrizations.weight.original  # type: ignore[union-attr]
        with torch.no_grad():
            twin.parametrizations.weight.original.add_(1.0)  # type: ignore[union-attr]
        assert torch.equal(twin.weight, layer.module.weight)  # type: ignore[arg-type]
    assert twin.weight is layer.weight
    assert not layer.weight[~masks[layer.name]].any()
