"""Refuse modules whose layers run, or are saved, in another way than those of a plain model."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ecoflap.errors import UserError
from ecoflap.models.core.layers import is_linear
from ecoflap.models.loading.quantised import is_matrix


def refuse_wrapped(module: nn.Module) -> None:
    """Refuse a model inside another module, whose layers would run or be named in another way.

    Raises:
        UserError: if it is compiled, parallel or has adapters, or its weights can't be changed or, those of
            its layers, are computed.
    """
    wrapped = type(module).__name__
    if any(weight.is_inference() for weight in module.parameters()):
        raise UserError(
            f"the weights of {wrapped} were made under torch.inference_mode(), outside of which they can't be"
            " changed; make the model without it, or under torch.no_grad()"
        )
    if isinstance(module, DataParallel | DistributedDataParallel):
        raise UserError(f"{wrapped} wraps the model to prune; pass its .module")
    if hasattr(module, "_orig_mod"):
        raise UserError(f"{wrapped}: a compiled model can't be pruned; pass its ._orig_mod")
    if hasattr(module, "merge_and_unload"):
        raise UserError(
            f"{wrapped} adds adapters to a model; give what its .merge_and_unload() returns, or .unload() to"
            " prune it without them"
        )
    for name, child in module.named_modules():
        if hasattr(child, "_orig_mod"):
            raise UserError(f"{name} is what torch.compile returned; put its ._orig_mod back in its place")
        _refuse_adapter(name, child)
        _refuse_computed(name, child)


def refuse_compiled(module: nn.Module) -> None:
    """Refuse a model of which a part is compiled in place, as its calls may pass over hooks.

    That is, a part whose method ``compile`` was called, or whose ``forward`` is what torch.compile returned.
    Such a part is saved like any other.

    Raises:
        UserError: if there is one.
    """
    for name, child in module.named_modules():
        if getattr(child, "_compiled_call_impl", None) is not None:
            undo = "set {}._compiled_call_impl = None"
        elif hasattr(vars(child).get("forward"), "_torchdynamo_orig_callable"):
            undo = "del {}.forward"
        else:
            continue
        what, here = (name, f'model.get_submodule("{name}")') if name else (type(child).__name__, "model")
        raise UserError(
            f"{what} is compiled in place, and a compiled model can't be pruned; {undo.format(here)}, and"
            " compile the pruned model"
        )


def refuse_quantised(module: nn.Module) -> None:
    """Refuse a model with weights that are quantised or sharded.

    Raises:
        UserError: if there are any.
    """
    if getattr(module, "is_quantized", False):
        raise UserError(
            f"the weights of {type(module).__name__} are quantised, and pruning needs them as plain numbers;"
            " load the model without quantization_config"
        )
    for name, child in module.named_modules():
        if type(child).__module__.startswith("torch.ao.nn.quantized"):
            raise UserError(
                f"{name} is a quantised {type(child).__name__}, and pruning needs plain floating-point"
                " numbers; prune the model before it is quantised"
            )
    for name, parameter in module.named_parameters():
        dtype = parameter.dtype
        narrow = dtype.is_floating_point and parameter.element_size() == 1
        whole = not (dtype.is_floating_point or dtype.is_complex)
        integers = whole and is_matrix(name, parameter.dim())
        if hasattr(parameter, "__tensor_flatten__") or narrow or integers:
            kind = type(parameter.data).__name__
            raise UserError(
                f"{name} is a {kind} of {dtype}, and pruning needs plain floating-point numbers of"
                " at least 16 bits; prune the model before it is quantised or sharded"
            )


def _refuse_adapter(name: str, child: nn.Module) -> None:
    """Refuse a layer that an adapter of peft's wraps, which would be pruned and saved beside its weight.

    Raises:
        UserError: if it is one.
    """
    if hasattr(child, "base_layer") and (hasattr(child, "lora_A") or hasattr(child, "adapter_layer_names")):
        raise UserError(
            f"{name} has a peft adapter, which is not a layer of its own; merge the adapters first, and"
            " give what .merge_and_unload() of the PeftModel returns"
        )


def _refuse_computed(name: str, child: nn.Module) -> None:
    """Refuse a layer whose weight is computed from others, which would be left dense and saved in parts.

    Convolutions, which are not layers, may be normalised this way, as in speech models; they are saved as
    loaded.

    Raises:
        UserError: if it is one.
    """
    here = f'model.get_submodule("{name}")'
    has_layers = is_linear(child) or isinstance(child, nn.MultiheadAttention)
    for hook in child._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            tensor = hook._tensor_name
            raise UserError(
                f"{name}.{tensor} is masked by torch.nn.utils.prune, and a checkpoint would lack it; call"
                f' torch.nn.utils.prune.remove({here}, "{tensor}") first'
            )
        if has_layers and isinstance(hook, WeightNorm | SpectralNorm):
            remove = "remove_weight_norm" if isinstance(hook, WeightNorm) else "remove_spectral_norm"
            raise UserError(
                f"{name}.{hook.name} is computed by a {type(hook).__name__} before each forward, and a"
                f' checkpoint would lack it; call torch.nn.utils.{remove}({here}, "{hook.name}") first'
            )
    if has_layers and is_parametrized(child):
        tensor, _ = next(child.get_submodule("parametrizations").named_children())
        raise UserError(
            f"{name}.{tensor} has parametrizations, and a checkpoint would lack it; call"
            f' torch.nn.utils.parametrize.remove_parametrizations({here}, "{tensor}") first'
        )
