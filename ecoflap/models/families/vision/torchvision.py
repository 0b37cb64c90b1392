"""Image classifiers of torchvision, such as its ViTs, whose attentions are PyTorch's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from ecoflap.data.batch import Batch
from ecoflap.data.example import Example
from ecoflap.errors import UserError, did_you_mean
from ecoflap.models.core.losses import class_loss, find_loss
from ecoflap.models.core.pictures import Pixels
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.tower_names import name_towers
from ecoflap.models.core.towers import Selection, block_lists
from ecoflap.models.families.vision.image_classifier import ClassifierInterface
from ecoflap.models.families.vision.options import TorchvisionOptions
from ecoflap.models.loading.device import check_fits, resolve_dtype
from ecoflap.models.loading.loader import prunable
from ecoflap.models.loading.state_dict import SavesStateDict, read_weights


def classification_loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """Cross-entropy of the right class, per sample, [batch]."""
    return class_loss(module(batch["pixel_values"].to(next(module.parameters()).dtype)), batch["labels"])


class TorchvisionInterface(ClassifierInterface):
    """Pictures and their classes."""

    @torch.no_grad()
    @override
    def classify(self, model: PrunableModel, examples: Sequence[Example]) -> Tensor:
        pixels = self.pixels([example.image for example in examples])
        logits: Tensor = model.module(pixels.to(next(model.module.parameters())))
        return logits.float().cpu()


@dataclass(frozen=True)
class Torchvision(TorchvisionOptions):
    """A classifier of torchvision."""

    shapes_first: ClassVar[bool] = True

    def load(self, device: torch.device, selection: Selection) -> PrunableModel:
        """Load weights and transform.

        Raises:
            UserError: if there is no such model or weights, they do not fit, or a tower is unknown.
        """
        from torchvision import models

        if self.architecture not in models.list_models():
            known = did_you_mean(self.architecture, models.list_models())
            raise UserError(f"model.architecture={self.architecture} is not known to torchvision; {known}")
        loss = find_loss(self.loss, {"classification": classification_loss})
        with torch.device("meta"):
            shape = models.get_model(self.architecture, weights=None)
        towers = self.towers or name_towers(block_lists(shape), reads="vision")
        if device.type == "meta":
            return prunable(self.name, shape, None, loss, selection, towers)
        dtype = resolve_dtype(self.dtype)
        check_fits(shape, dtype, device)
        module, tag = self._read(models)
        interface = TorchvisionInterface(Pixels(tag.transforms()), tag.meta["categories"])
        model = prunable(self.name, module.to(device, dtype), None, loss, selection, towers, interface)
        return SavesStateDict(**vars(model), architecture=self.architecture)

    def _read(self, models: Any) -> tuple[nn.Module, Any]:
        """The model, and the tag that its transform and class names come from.

        Raises:
            UserError: if there is no such tag, or it can't be downloaded.
        """
        tags = models.get_model_weights(self.architecture)
        if Path(self.weights).expanduser().is_file():
            module = models.get_model(self.architecture, weights=None)
            read_weights(module, Path(self.weights).expanduser(), "model.weights")
            return module, tags.DEFAULT
        try:
            tag = getattr(tags, self.weights)
            return models.get_model(self.architecture, weights=tag), tag
        except AttributeError:
            names = ", ".join(one.name for one in tags)
            raise UserError(
                f"model.weights={self.weights} is neither a file nor one of torchvision's tags ({names})"
            ) from None
        except OSError as error:
            raise UserError(
                f"model.weights={self.weights} could not be downloaded ({error}); give a local checkpoint"
                " file"
            ) from error
