"""Parts that transformers keeps in fp32 in a model of half precision, such as BLIP-2's queries in float16."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

import torch

IS_FOURTH = version("transformers").startswith("4.")
# The old name makes the fifth release warn at each load; releases before 4.56 know no other.
DTYPE_OPTION = "torch_dtype" if IS_FOURTH else "dtype"
PARTS = {
    torch.float16: ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"),
    torch.bfloat16: ("_keep_in_fp32_modules_strict",),
}
"""By the model's dtype, the attributes of its class that list such parts."""


def wide_names(module: Any, dtype: torch.dtype) -> set[str]:
    """Names of the tensors that ``from_pretrained`` keeps in fp32 when it loads a model in a dtype.

    It finds a part, such as ``wo`` or ``router.classifier``, anywhere in a name since the fifth release, and
    before only between dots.
    """
    listed = [part for option in PARTS.get(dtype, ()) for part in getattr(module, option, None) or ()]
    around = r"(^|\.){}($|\.)" if IS_FOURTH else "{}"
    patterns = [re.compile(around.format(part.replace("*", ".*"))) for part in listed]
    return {
        name
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if tensor.is_floating_point() and any(pattern.search(name) for pattern in patterns)
    }


def half_precision(module: Any) -> torch.dtype | None:
    """The dtype that a model was loaded in, if it is a narrow one and all wider weights are such parts."""
    dtype = dtype_of_config(getattr(module, "config", None))
    if dtype not in PARTS:
        return None
    others = {name for name, weight in module.named_parameters() if weight.dtype != dtype}
    return dtype if others <= wide_names(module, dtype) else None


def dtype_of_config(config: Any) -> torch.dtype | None:
    """The dtype that a config of transformers names; None if it names none, or is something else."""
    dtype = getattr(config, DTYPE_OPTION, None)
    return getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
