"""Models whose library has no checkpoint folders: their weights are one file with a state dict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from typing_extensions import override

from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.storage.file_names import WEIGHTS_FILE


@dataclass(frozen=True)
class SavesStateDict(PrunableModel):
    """A model that is saved as one safetensors file with the names of its state dict.

    Attributes:
        architecture: the name or the settings by which its library builds it, as its module has no config.
    """

    architecture: Any = None

    @override
    def _settings(self) -> list[Any]:
        """Those of the module and its architecture."""
        return [*super()._settings(), self.architecture]

    @override
    def save(self, folder: Path) -> None:
        """Write ``model.safetensors``."""
        state = {name: tensor.contiguous().clone() for name, tensor in self.module.state_dict().items()}
        save_file(state, folder / WEIGHTS_FILE)


def read_tensors(file: Path, option: str) -> Any:
    """The contents of a safetensors file, or of a PyTorch file, of which only tensors are unpickled.

    Args:
        file: the file.
        option: the option that names it, for the message.

    Raises:
        UserError: if the file is neither.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(
            f"{option}={file} can't be read ({str(error).splitlines()[0]}); it is damaged, or holds other"
            " things than tensors"
        ) from None


def read_weights(module: nn.Module, file: Path, option: str) -> None:
    """Load the weights of a file into a module; the names have to be the same.

    Args:
        module: the module.
        file: the file.
        option: the option that names it, for the message.

    Raises:
        UserError: if the file can't be read, or belongs to another model.
    """
    state, own = dict(read_tensors(file, option)), module.state_dict()
    wrong = sorted(set(own) ^ set(state)) + [
        name for name in own.keys() & state.keys() if own[name].shape != state[name].shape
    ]
    if wrong:
        raise UserError(
            f"{option}={file} is of another model: {len(wrong)} weights do not fit, such as {wrong[0]}"
        )
    module.load_state_dict(state)
