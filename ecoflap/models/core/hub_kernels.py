"""Compute with the operations of torch instead of the Hub's kernels.

Since transformers 5.25, ``from_pretrained`` replaces operations of a model on an accelerator, such as
activations and norms, by compiled ones that it downloads from the Hub. In evaluation mode, some of them have
no backward pass, so gradients would end there without an error.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def no_kernels() -> dict[str, Any]:
    """The option of ``from_pretrained`` that leaves operations as they are; {} where that is the default."""
    from transformers import PreTrainedModel

    return {"use_kernels": False} if hasattr(PreTrainedModel, "reset_kernels") else {}


def remove_kernels(module: nn.Module) -> None:
    """Make all parts of a model compute with torch, in place.

    The package ``kernels`` replaces an operation by an attribute ``forward`` of the module that computes it,
    or of a module that is in its ``_kernel_funcs`` and not among its children.
    """
    for child in module.modules():
        if vars(child).get("_use_kernels"):
            vars(child)["_use_kernels"] = False  # otherwise train() and eval() would replace them again
        for part in (child, *kernel_functions(child)):
            if hasattr(type(part), "kernel_layer_name") and not hasattr(part, "_hf_hook"):
                vars(part).pop("forward", None)


def kernel_functions(child: nn.Module) -> list[nn.Module]:
    """The modules that compute functions of a module and are not among its children."""
    return list(getattr(child, "_kernel_funcs", {}).values())
