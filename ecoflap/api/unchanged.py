"""Restore everything but the weights of a model after a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ecoflap.models.core.expert_slices import OPENED, all_slices
from ecoflap.models.core.forward_modes import computed_buffers, full_precision, named_outputs
from ecoflap.models.core.hub_kernels import kernel_functions, remove_kernels
from ecoflap.models.core.mixtures import COUNTS
from ecoflap.models.core.preparation import same_tokenizer

HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@contextmanager
def unchanged(module: nn.Module, processor: Any = None) -> Iterator[None]:
    """Restore what steps change of a model, even if they are interrupted; enable gradients meanwhile.

    A caller's autocast is off meanwhile, and so are products in TF32 or bf16 and the Hub's kernels, as
    statistics, gradients and losses have the model's own precision. Gradients of an earlier training are set
    aside, as a backward pass would add to them, and so are hooks that run when a gradient is complete, in
    which an optimizer may step.

    Restored are training modes, gradients, hooks, the classes and attributes of modules, their buffers that
    are in no checkpoint where a forward replaces them, the tokenizer's padding and truncation, and the state
    of PyTorch's random numbers. What a forward writes into a buffer stays, and so do numbers of experts,
    which belong to the weights. A step cleans up after itself as well, but a notebook keeps the traceback of
    an interrupted step, and with it the generators whose hooks are still set.
    """
    slices = list(all_slices(module))
    children = [*module.modules(), *slices]
    children += [function for child in module.modules() for function in kernel_functions(child)]
    before = [_state(child) for child in children]
    weights = (*module.parameters(), *(one.weight for one in slices))
    flags = [(weight, weight.requires_grad, weight.grad, _steps(weight).copy()) for weight in weights]
    accelerator = {parameter.device for parameter in module.parameters() if parameter.is_cuda}
    try:
        for weight, _, gradient, _ in flags:
            if gradient is not None:
                weight.grad = None
            _steps(weight).clear()
        remove_kernels(module)
        with (
            same_tokenizer(processor),
            named_outputs(module),
            torch.random.fork_rng(devices=list(accelerator)),
            torch.inference_mode(False),
            torch.enable_grad(),
            _no_autocast(module),
            full_precision(),
        ):
            yield
    finally:
        for child, state in zip(children, before, strict=True):
            _restore(child, *state)
        for weight, needed, gradient, steps in flags:
            if weight.requires_grad != needed:  # else it may not even be set, in weights of inference mode
                weight.requires_grad_(needed)
            weight.grad = gradient
            _steps(weight).clear()
            _steps(weight).update(steps)


def default_cpu() -> AbstractContextManager[Any]:
    """Make the CPU the default device of new tensors, whatever ``torch.set_default_device`` has set.

    Samples are read and random numbers are drawn there.
    """
    return nullcontext() if torch.empty(0).device.type == "cpu" else torch.device("cpu")


@contextmanager
def _no_autocast(module: nn.Module) -> Iterator[None]:
    """Turn autocast off on the devices of a module."""
    with ExitStack() as stack:
        for device in {parameter.device.type for parameter in module.parameters()}:
            if torch.amp.is_autocast_available(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _steps(weight: torch.Tensor) -> dict[int, Any]:
    """The hooks that run when the gradient of a parameter is complete, {} if it never had any."""
    hooks: dict[int, Any] | None = getattr(weight, "_post_accumulate_grad_hooks", None)
    return {} if hooks is None else hooks


State = tuple[type, dict[str, Any], dict[str, dict[int, Any]], dict[str, Any]]


def _state(child: nn.Module) -> State:
    """The class of a module, its attributes, its hooks, and the buffers that are not weights."""
    hooks = {name: dict(getattr(child, name)) for name in HOOKS if hasattr(child, name)}
    return type(child), dict(vars(child)), hooks, computed_buffers(child)


def _restore(
    child: nn.Module,
    kind: type,
    own: dict[str, Any],
    hooks: dict[str, dict[int, Any]],
    buffers: dict[str, Any],
) -> None:
    child.__class__ = kind
    for name in set(vars(child)) - set(own):
        del child.__dict__[name]
    of_weights = {name: value for name, value in vars(child).items() if name in (*COUNTS, OPENED)}
    child.__dict__.update(own | of_weights)
    for name, known in hooks.items():
        present = getattr(child, name)
        present.clear()
        present.update(known)
    if buffers:
        child._buffers.update(buffers)
