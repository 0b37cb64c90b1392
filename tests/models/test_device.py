"""The devices that a name stands for."""

from __future__ import annotations

import pytest
import torch

from ecoflap.errors import UserError
from ecoflap.models.loading.device import resolve_device


def none_available() -> torch.device:
    raise RuntimeError("Cannot access accelerator device when none is available.")


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_the_cpu_where_torch_raises_an_error_without_an_accelerator(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch 2.6 for CUDA does."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", none_available)
    assert resolve_device(name) == torch.device("cpu")


def test_other_names_are_refused() -> None:
    for name, words in (("gpu", "did you mean cuda"), ("meta", "it holds no weights"), ("7", "device=7")):
        with pytest.raises(UserError, match=words):
            resolve_device(name)
