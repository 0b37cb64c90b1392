"""What each expert reads, the slow and obvious way: one expert after the other, from the whole parameters.

Nothing here runs the forward passes that the package puts in place of a model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.expert_slices import OPENED, ExpertSlice
from ecoflap.models.core.experts import SHARED_SINCE
from ecoflap.models.core.prunable import PrunableModel
from tests.zoo.decoders import DECODERS

# One with experts as most write them, many experts, biases and transposed matrices, shared experts, zeros for
# tokens of other experts, and experts one below the other.
FAMILIES = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "llama4_text", "dbrx")
Note = Callable[[ExpertSlice, Tensor], None]


def build(family: str) -> PrunableModel:
    """The family's model, the same each time; skips a test where its experts share no parameters."""
    if int(transformers.__version__.split(".")[0]) < SHARED_SINCE:
        pytest.skip("each expert is a module of its own")
    architecture = next((one for one in DECODERS if one.name == family), None)
    if architecture is None or (reason := architecture.missing()) is not None:
        pytest.skip(f"no {family}" if architecture is None else str(reason))
    return architecture.prunable()


def samples(*lengths: int, padded: int = 0) -> CalibrationSet:
    """A text per length, each with ``padded`` tokens of padding behind it."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for length in lengths:
        tokens = torch.randint(3, 60, (length,), generator=generator)
        mask = torch.tensor([1] * length + [0] * padded)
        sample = {"input_ids": torch.cat([tokens, tokens.new_zeros(padded)])}
        rows.append(sample | ({"attention_mask": mask} if padded else {}))
    return CalibrationSet("experts", tuple(rows))


def can_be_pickled(module: nn.Module) -> bool:
    """Whether a model of transformers can be: not with the local functions that the package kernels adds."""
    return not any("_kernel_funcs" in vars(child) for child in module.modules())


@contextmanager
def as_published(module: nn.Module) -> Iterator[None]:
    """Run a model's experts by the forward passes of their classes."""
    opened = [child for child in module.modules() if OPENED in vars(child)]
    forwards = [vars(child).pop("forward") for child in opened]
    try:
        yield
    finally:
        for child, forward in zip(opened, forwards, strict=True):
            child.forward = forward


@contextmanager
def noting_inputs(module: nn.Module, note: Note) -> Iterator[None]:
    """Call ``note`` with each matrix and what it reads, [routed, cols] in fp64, in every forward pass.

    The matrix is known by the slice that the package made for it.
    """

    def hook(experts: nn.Module, arguments: tuple[Any, ...]) -> None:
        for name, number, inputs in _inputs(experts, *arguments):
            if len(inputs):
                note(vars(experts)[OPENED][name][number], inputs)

    opened = [child for child in module.modules() if OPENED in vars(child)]
    handles = [child.register_forward_pre_hook(hook) for child in opened]
    try:
        with as_published(module), torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _inputs(
    experts: Any, hidden: Tensor, index: Tensor | None = None, weights: Tensor | None = None
) -> Iterator[tuple[str, int, Tensor]]:
    """(name of the parameter, number of the expert, what it reads) of every matrix."""
    kind = type(experts).__name__
    if kind == "Llama4TextExperts":  # all tokens for each expert, those of others as zeros
        for number, given in enumerate(hidden.double().split(len(hidden) // experts.num_experts)):
            read = given[[token for token in range(len(given)) if bool((given[token] != 0).any())]]
            gate, up = (read @ experts.gate_up_proj[number].double()).chunk(2, dim=-1)
            yield "gate_up_proj", number, read
            yield "down_proj", number, up * experts.act_fn(gate)
        return
    assert index is not None
    if kind.endswith("ParallelExperts"):  # all tokens sorted by expert, and how many each expert has
        for number, read in enumerate(hidden.double().split(list(index))):
            yield "weight", number, read
        return
    assert weights is not None
    tokens = hidden.double().reshape(-1, hidden.shape[-1])
    for number in range(getattr(experts, "num_routed_experts", 0) or experts.num_experts):
        reached = ((index == number) & (weights != 0)).tolist()
        read = tokens[[token for token, chosen in enumerate(reached) if any(chosen)]]
        if kind == "DbrxExperts":
            rows = slice(number * experts.ffn_hidden_size, (number + 1) * experts.ffn_hidden_size)
            gate, up = (read @ getattr(experts.mlp, name)[rows].double().t() for name in ("w1", "v1"))
            yield "mlp.w1", number, read
            yield "mlp.v1", number, read
            yield "mlp.w2", number, experts.mlp.activation_fn(gate) * up
            continue
        first = "gate_up_proj" if hasattr(experts, "gate_up_proj") else "up_proj"
        weight = getattr(experts, first)[number].double()
        units = read @ (weight if getattr(experts, "is_transposed", False) else weight.t())
        if hasattr(experts, f"{first}_bias"):
            units = units + getattr(experts, f"{first}_bias")[number].double()
        yield first, number, read
        if hasattr(experts, "_apply_gate") and first == "gate_up_proj":
            yield "down_proj", number, experts._apply_gate(units)
        else:
            gate, up = units.chunk(2, dim=-1) if first == "gate_up_proj" else (units, 1.0)
            yield "down_proj", number, experts.act_fn(gate) * up
