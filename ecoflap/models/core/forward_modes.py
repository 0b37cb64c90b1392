"""Contexts that change how a module runs, and restore it: in fp32, in full precision, and as steps run it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from ecoflap.models.core.expert_slices import all_slices, refresh
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.wide_parts import DTYPE_OPTION, dtype_of_config
from ecoflap.models.offload.placement import is_placeholder, placeholder

HALF = (torch.float16, torch.bfloat16)


@contextmanager
def in_float32(module: nn.Module, without: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Hold every half-precision weight and buffer in fp32 in this context, and restore them bit for bit.

    Widening and narrowing again loses nothing. Offloaded weights load in the dtype of their placeholders.
    Configs say fp32 meanwhile, as some models convert pixels to the dtype that a config names.

    Args:
        module: the module.
        without: modules inside it whose weights and buffers stay as they are.
    """
    left = {id(tensor) for one in without for tensor in (*one.parameters(), *one.buffers())}
    tensors = [
        tensor
        for tensor in (*module.parameters(), *module.buffers())
        if tensor.dtype in HALF and id(tensor) not in left
    ]
    dtypes = [tensor.dtype for tensor in tensors]
    configs = [(config, getattr(config, DTYPE_OPTION)) for config in _half_configs(module)]
    try:
        for tensor in tensors:
            tensor.data = _cast(tensor.data, torch.float32)
        for config, _ in configs:
            setattr(config, DTYPE_OPTION, torch.float32)
        refresh(module)
        yield
    finally:
        for config, named in configs:
            setattr(config, DTYPE_OPTION, named)
        for tensor, dtype in zip(tensors, dtypes, strict=True):
            tensor.data = _cast(tensor.data, dtype)
        refresh(module)


def _half_configs(module: nn.Module) -> list[PretrainedConfig]:
    """The configs of a module and its parts that name half precision, each once."""
    configs = (config for config in configs_of(module) if isinstance(config, PretrainedConfig))
    return [config for config in configs if dtype_of_config(config) in HALF]


def configs_of(module: nn.Module) -> list[Any]:
    """The configs of a module and its parts, each once."""
    found: list[Any] = [getattr(part, "config", None) for part in module.modules()]
    return list({id(config): config for config in found if config is not None}.values())


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in another dtype; the placeholder of an offloaded weight keeps its single number."""
    return placeholder(tensor.shape, dtype) if is_placeholder(tensor) else tensor.to(dtype)


@contextmanager
def block_by_block_in_float32(model: PrunableModel) -> Iterator[None]:
    """Hold each block in fp32 while it runs in this context, and what is outside blocks throughout.

    An offloaded model loads its blocks one by one as it is. A model that uses the weights of a block outside
    its call fails, as they are in half precision there.
    """
    stays = model.placement.kind == "none"
    blocks = dict.fromkeys(block.module for block in model.blocks) if stays else {}
    wide: dict[nn.Module, ExitStack] = {}

    def enter(module: nn.Module, _: Any) -> None:
        wide[module].enter_context(in_float32(module))

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        wide[module].close()

    with ExitStack() as stack:
        stack.enter_context(in_float32(model.module, blocks))
        for block in blocks:
            wide[block] = stack.enter_context(ExitStack())
            stack.callback(block.register_forward_pre_hook(enter).remove)
            stack.callback(block.register_forward_hook(leave).remove)
        yield


@contextmanager
def all_gradients(module: nn.Module) -> Iterator[None]:
    """Run a module as ``quiet_forward`` does, but with gradients of all weights, as a training needs them."""
    with quiet_forward(module), torch.enable_grad():
        for parameter in module.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        yield


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply fp32 matrices in fp32 in this context, not in TF32 or bf16, whatever the process has set.

    The statistics and solutions of pruners need it: rounded products change masks. Convolutions, whose
    precision is a setting of cuDNN, stay as they are.
    """
    restore = _precision()
    if restore is not None:
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if restore is not None:
            restore()


def _precision() -> Callable[[], None] | None:
    """What sets the present precision of products again; None if that is full."""
    try:
        before: str | None = torch.get_float32_matmul_precision()
    except RuntimeError:  # the backends differ, as they can in torch 2.9 and later
        before = None
    if before == "highest":
        return None
    modules: tuple[Any, ...] = (torch.backends.cuda, torch.backends.mkldnn)
    backends = [one.matmul for one in modules if hasattr(one, "matmul")]
    each = [(one, one.fp32_precision) for one in backends if hasattr(one, "fp32_precision")]
    return partial(_set_precision, before, each)


def _set_precision(before: str | None, each: Iterable[tuple[Any, str]]) -> None:
    """Set the precision of products, and then of the products of each backend."""
    if before is not None:
        torch.set_float32_matmul_precision(before)
    for backend, precision in each:
        backend.fp32_precision = precision


def computed_buffers(child: nn.Module) -> dict[str, Any]:
    """The buffers that are in no checkpoint, such as the frequencies of dynamic rotary embeddings."""
    buffers, computed = getattr(child, "_buffers", {}), getattr(child, "_non_persistent_buffers_set", ())
    return {name: buffers[name] for name in computed if name in buffers}


@contextmanager
def as_before(module: nn.Module) -> Iterator[None]:
    """Restore the buffers of a module that are in no checkpoint, and the numbers beside them.

    Rotary embeddings that grow with the input keep the frequencies of the longest text that was read, and its
    length. What is measured would depend on what was measured before.
    """
    before = [
        (child, buffers, {name: value for name, value in vars(child).items() if type(value) in (int, float)})
        for child in module.modules()
        if (buffers := computed_buffers(child))
    ]
    try:
        yield
    finally:
        for child, buffers, numbers in before:
            child._buffers.update(buffers)
            vars(child).update(numbers)


@contextmanager
def named_outputs(module: nn.Module) -> Iterator[None]:
    """Return outputs with names in this context, also where a config says ``return_dict=False``."""
    plain = [config for config in configs_of(module) if getattr(config, "return_dict", None) is False]
    try:
        for config in plain:
            config.return_dict = True
        yield
    finally:
        for config in plain:
            config.return_dict = False


@contextmanager
def quiet_forward(module: nn.Module) -> Iterator[None]:
    """Run a module in evaluation mode, without key-value cache and without gradients of weights.

    A cache object that blocks share would grow at each replay and change the result. PyTorch's fused encoder
    layer is disabled, too, because hooks see nothing inside it. Everything is restored afterwards, see also
    ``as_before``.
    """
    training = {child: child.training for child in module.modules()}
    weights = (*module.parameters(), *(one.weight for one in all_slices(module)))
    gradients = [(weight, weight.requires_grad) for weight in weights]
    configs = [config for config in configs_of(module) if getattr(config, "use_cache", None) is not None]
    caching = [(config, config.use_cache) for config in configs]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        module.eval()
        for weight in weights:
            weight.requires_grad_(False)
        for config, _ in caching:
            config.use_cache = False
        with as_before(module):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for child, flag in training.items():
            child.training = flag
        for weight, flag in gradients:
            weight.requires_grad_(flag)
        for config, flag in caching:
            config.use_cache = flag
