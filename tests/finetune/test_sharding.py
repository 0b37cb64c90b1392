"""Training shards is training whole weights, and leaves a whole model as it found it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ecoflap.distributed.processes import rank
from ecoflap.errors import UserError
from ecoflap.finetune.learner import Learner
from ecoflap.finetune.masked_parameters import masked_parameters
from ecoflap.finetune.sharding import sharded
from ecoflap.finetune.training_set import Collator
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block
from tests import experts
from tests.distributed.together import together
from tests.finetune.test_masked_parameters import pruned
from tests.tiny import COMPARING, build, samples

SHARDS = pytest.mark.skipif(
    not hasattr(FSDPModule, "set_reduce_scatter_unused_params"), reason="this torch is too old to shard"
)

# Tied weights, transposed ones, several towers, scalars, packed attentions, a weight read outside of its
# block, towers that are not used to the end, shared experts.
CHOSEN = ("llama", "gpt2", "t5", "blip2_opt", "clip", "blip_vqa", "open_clip", "llava", "mixtral")


def batch_of(model: PrunableModel, chosen: list[int]) -> dict[str, Any]:
    """Samples of lengths 5, 7, 5, 7, 5, in groups of one length."""
    drawn = experts.samples(5, 7, 5, 7, 5) if "mixtral" in model.name else samples(model.name)
    return Collator(model)([drawn.samples[index] for index in chosen])


def shares_of(family: str) -> list[list[int]]:
    """The samples of each process: two groups in the first one, one in the second."""
    return [[0, 1, 2]] * 2 if family in COMPARING else [[0, 1], [2, 4]]


def descend(learner: Learner, batch: dict[str, Any]) -> list[Tensor]:
    """Take three steps; returns all parameters and the optimizer's states."""
    parameters = list(learner.parameters())
    optimizer = torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        learner(**batch).backward()
        optimizer.step()
    return [*parameters, *(state["momentum_buffer"] for state in optimizer.state.values())]


def held(tensors: list[Tensor]) -> int:
    """How many numbers of tensors are in this process."""
    return sum((tensor.to_local() if isinstance(tensor, DTensor) else tensor).numel() for tensor in tensors)


def anatomy(module: nn.Module) -> list[Any]:
    """The class, attributes, hooks and parameter objects of each module."""
    return [
        (
            type(child),
            sorted(vars(child)),
            [len(value) for value in vars(child).values() if isinstance(value, dict)],
            [(name, id(value), value.requires_grad) for name, value in child.named_parameters(recurse=False)],
        )
        for child in module.modules()
    ]


def family_of(name: str) -> tuple[PrunableModel, dict[str, Tensor]]:
    return pruned(name, experts.build if name == "mixtral" else build)


@SHARDS
@pytest.mark.parametrize("family", CHOSEN)
@pytest.mark.every_run("llama", "t5", "llava", "mixtral")
def test_shards_are_trained_like_whole_weights(family: str) -> None:
    model, masks = family_of(family)
    shares = shares_of(family)
    everything = [0, 1, 2] if family in COMPARING else [index for share in shares for index in share]
    with masked_parameters(model.module, model.layers, masks):
        whole = held(descend(Learner(model), batch_of(model, everything)))

    def work() -> tuple[int, dict[str, Tensor]]:
        own, own_masks = family_of(family)
        before = anatomy(own.module)
        with masked_parameters(own.module, own.layers, own_masks):
            learner = Learner(own, in_step=True)
            with sharded(learner, own.blocks):
                mine = held(descend(learner, batch_of(own, shares[rank()])))
        assert anatomy(own.module) == before
        return mine, own.module.state_dict()

    for mine, state in together(2, work):
        assert mine <= 0.55 * whole
        for name, value in model.module.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5, msg=name)
        for name, mask in masks.items():
            if name in state:
                assert not state[name][~mask].any()


class Routing(nn.Module):
    """A block that uses one of its experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 2)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, inputs: Tensor) -> Tensor:
        expert: Any = self.experts[rank()]
        output: Tensor = expert(inputs) * self.gate(inputs).sum()
        return output


@SHARDS
def test_processes_may_use_different_experts() -> None:
    inputs = torch.ones(1, 4)

    def work() -> list[Tensor]:
        torch.manual_seed(0)
        block: Any = Routing()
        module = nn.Sequential(block)
        reference = torch.autograd.grad(block(inputs).sum(), list(block.experts[rank()].parameters()))
        start = block.experts[rank()].weight.detach().clone()
        with sharded(module, [Block("0", block, ())]):
            module(inputs).sum().backward()
            torch.optim.SGD(module.parameters(), lr=1.0).step()
        torch.testing.assert_close(block.experts[rank()].weight, start - reference[0] / 2)
        return list(module.parameters())

    one, other = together(2, work)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_samples_with_different_inputs_are_refused() -> None:
    """Some would not run through all blocks, and the processes would wait for each other."""

    def work() -> str:
        model, _ = pruned("llama")
        batch = batch_of(model, [0])
        if rank():
            batch["groups"][0]["pixel_values"] = torch.zeros(1)
        with pytest.raises(UserError) as refused:
            Learner(model, in_step=True)(**batch)
        return str(refused.value)

    for said in together(2, work):
        assert "finetune.shard=true" in said
        assert "pixel_values" in said
