"""Common code of the adapters of salesforce-lavis: build models from sizes, load and save LAVIS' format.

LAVIS' own constructors download weights before a checkpoint can replace them. Here a model is built on the
meta device, and takes its weights from one complete state dict.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ecoflap.errors import UserError
from ecoflap.models.families.lavis.keys import read_lavis_checkpoint
from ecoflap.models.families.lavis.options import LavisPretrainedOptions
from ecoflap.models.loading.device import check_fits, resolve_dtype
from ecoflap.models.loading.hub import require_folder
from ecoflap.storage.saved_model import LAVIS

log = logging.getLogger(__name__)


def require_lavis() -> None:
    """Import LAVIS, without its warnings about its own dependencies.

    Raises:
        UserError: if it is not installed, or does not work with this transformers.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import lavis.models  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"this model needs salesforce-lavis, which can't be imported here ({error}); "
            "install it into an environment of its own: pip install -e '.[lavis]'"
        ) from None


def write_checkpoint(module: nn.Module, folder: Path) -> None:
    """Write what LAVIS' ``load_checkpoint`` reads, and the model's sizes beside it."""
    config: Any = module.config
    config.save_pretrained(folder)
    state = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
    torch.save({"model": state}, folder / LAVIS)


def fill(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Fill a module on the meta device with weights.

    Args:
        module: on the meta device.
        state: its state dict; names that the module doesn't have are ignored with a warning.
        source: the source of the state dict, for the message.

    Raises:
        UserError: if a weight is missing or has another shape.
    """
    positions = {
        name: torch.arange(buffer.shape[-1])[None]
        for name, buffer in module.named_buffers()
        if name.endswith("position_ids")
    }
    try:
        report = module.load_state_dict(positions | dict(state), strict=False, assign=True)
    except RuntimeError as error:
        raise UserError(
            f"{source} does not fit model.architecture: {str(error).splitlines()[1].strip()}"
        ) from None
    lacking = [name for name, parameter in module.named_parameters() if parameter.is_meta]
    if lacking:
        raise UserError(
            f"{source} lacks {len(lacking)} weights of its model, such as {lacking[0]}; give a whole"
            " checkpoint of this model"
        )
    if report.unexpected_keys:
        log.warning(
            "%s: %d tensors are not part of the model, such as %s",
            source,
            len(report.unexpected_keys),
            report.unexpected_keys[0],
        )


def read_tokenizer(tokenizer_class: Any, source: str) -> Any:
    """Read a tokenizer from the hub or a folder.

    Raises:
        UserError: if it is missing.
    """
    path = require_folder(source, "model.tokenizer")
    try:
        return tokenizer_class.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.tokenizer={source} could not be loaded ({str(error).splitlines()[0]}); give a local"
            " folder, or go online (HF_HUB_OFFLINE unset)"
        ) from error


def downloaded(model_class: Any, model_type: str) -> dict[str, Tensor]:
    """The weights that LAVIS downloads for a model type.

    Raises:
        UserError: if there is no such type, or no network.
    """
    known = model_class.PRETRAINED_MODEL_CONFIG_DICT
    if model_type not in known:
        raise UserError(f"model.model_type={model_type} is not known to LAVIS; it has {', '.join(known)}")
    try:
        state: dict[str, Tensor] = model_class.from_pretrained(model_type).state_dict()
    except (OSError, RuntimeError, UnpicklingError) as error:
        raise UserError(
            f"LAVIS could not download model.model_type={model_type} ({str(error).splitlines()[0]}); "
            "go online (HF_HUB_OFFLINE unset), or give a local file with model.checkpoint=FILE"
        ) from error
    return state


@dataclass(frozen=True)
class LavisPretrained(LavisPretrainedOptions):
    """A model of LAVIS; each family adds its class and its loss."""

    shapes_first: ClassVar[bool] = True
    in_lavis_format: ClassVar[bool] = True
    in_float32: ClassVar[tuple[str, ...]] = ()
    """Parts that compute in fp32 whatever the dtype of the rest."""

    def read(self, module: nn.Module, lavis_class: Any, device: torch.device) -> None:
        """Fill a module on the meta device and move it to the device.

        Raises:
            UserError: if the weights are missing, belong to another model, or do not fit on the device.
        """
        dtype = resolve_dtype(self.dtype) or torch.float32
        check_fits(module, dtype, device)
        if self.checkpoint is not None:
            fill(module, read_lavis_checkpoint(self.checkpoint), f"model.checkpoint={self.checkpoint}")
        else:
            fill(module, downloaded(lavis_class, self.model_type), f"model.model_type={self.model_type}")
        module.to(device, dtype)
        for path in self.in_float32:
            module.get_submodule(path).float()
