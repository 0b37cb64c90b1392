"""Published architectures by the names of their classes: the defaults of their configs, on the meta
device.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import nn


@cache
def architecture(name: str) -> nn.Module:
    """The model of a class of transformers; a test of one that the installed release lacks, or can't build
    so, is skipped.
    """
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    model_class: Any = getattr(transformers, name)
    try:
        with torch.device("meta"):
            module: nn.Module = model_class(model_class.config_class())
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        if transformers.__version__ >= "5":
            raise
        pytest.skip(
            f"the defaults of transformers {transformers.__version__} for {name} are no model ({error})"
        )
    return module


def tree(*paths: str, features: int = 4) -> nn.Module:
    """A module tree with a linear weight at each path; what stands before a number in a path is a list."""
    root = nn.Module()
    for path in paths:
        parent, parts = root, path.split(".")
        for part, behind in zip(parts, [*parts[1:], ""], strict=True):
            if part not in dict(parent.named_children()):
                parent.add_module(part, _child(behind, features))
            parent = parent.get_submodule(part)
    return root


def _child(behind: str, features: int) -> nn.Module:
    if not behind:
        return nn.Linear(features, features)
    return nn.ModuleList() if behind.isdigit() else nn.Module()
