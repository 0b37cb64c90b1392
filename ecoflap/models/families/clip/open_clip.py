"""CLIPs of the open_clip package, EVA-CLIP among them (extra ``open-clip``)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize
from typing_extensions import override

from ecoflap.console.logs import silenced
from ecoflap.data.batch import Sample
from ecoflap.errors import UserError, did_you_mean
from ecoflap.models.core.losses import counting
from ecoflap.models.core.pictures import Pixels
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection, block_lists
from ecoflap.models.families.clip.clip import DualInterface, dual_loss
from ecoflap.models.families.clip.options import OpenClipOptions
from ecoflap.models.loading.device import check_fits, resolve_dtype
from ecoflap.models.loading.hub import from_hub
from ecoflap.models.loading.loader import prunable
from ecoflap.models.loading.state_dict import SavesStateDict
from ecoflap.storage.installation import install_extra


class OpenClipInterface(DualInterface):
    """Pictures and captions of an open_clip model.

    CLIP's own tokenizer pads texts with zeros after the end token, which have no effect, as the text tower is
    causal. One of transformers, such as SigLIP's, pads them to the length that the tower reads, and a tower
    without any mask reads the padding as well.
    """

    def __init__(
        self, pixels: Pixels, tokenizer: Any, classification: bool, ignored: int | None = None
    ) -> None:
        """Take the parts.

        Args:
            pixels: reads the pictures.
            tokenizer: of open_clip.
            classification: whether the loss is classification.
            ignored: the padding of a tokenizer of transformers that has no effect; None if all of it has.
        """
        super().__init__(pixels, tokenizer, 0, classification)
        self.ignored, self.is_clips = ignored, _wrapped(tokenizer) is None

    @override
    def image_features(self, module: Any, pixels: Tensor) -> Tensor:
        return normalize(module.encode_image(pixels), dim=-1)

    @override
    def text_features(self, module: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        missing = module.context_length - input_ids.shape[1] if self.is_clips else 0
        ids, mask = (torch.nn.functional.pad(tensor, (0, missing)) for tensor in (input_ids, attention_mask))
        with counting(mask):
            return normalize(module.encode_text(ids), dim=-1)

    @override
    def _tokens(self, texts: Sequence[str]) -> list[Sample]:
        """Tokens of each text; CLIP's up to the end token, which has the highest number."""
        rows = self.tokenizer(list(texts))
        if not self.is_clips:
            real = torch.ones_like(rows) if self.ignored is None else (rows != self.ignored).long()
            return [{"input_ids": row, "attention_mask": mask} for row, mask in zip(rows, real, strict=True)]
        ends = (rows.argmax(dim=-1) + 1).tolist()
        return [
            {"input_ids": row[:end], "attention_mask": torch.ones(end, dtype=torch.long)}
            for row, end in zip(rows, ends, strict=True)
        ]


def _wrapped(tokenizer: Any) -> Any:
    """The tokenizer of transformers in one of open_clip; None of CLIP's own."""
    return getattr(tokenizer, "tokenizer", None)


def _ignored_padding(module: Any, tokenizer: Any) -> int | None:
    """The padding of a tokenizer of transformers, if the text tower is one of transformers or causal."""
    tower = getattr(module, "text", module)
    ignores = hasattr(tower, "config") or getattr(tower, "attn_mask", None) is not None
    return _wrapped(tokenizer).pad_token_id if ignores and _wrapped(tokenizer) is not None else None


@dataclass(frozen=True)
class OpenClip(OpenClipOptions):
    """A model of open_clip."""

    shapes_first: ClassVar[bool] = True

    def load(self, device: torch.device, selection: Selection) -> PrunableModel:
        """Load weights, transform and tokenizer.

        Raises:
            UserError: if the package or the model is missing, the model does not fit, or a tower is unknown.
        """
        open_clip = _package()
        if self.architecture not in open_clip.list_models():
            raise UserError(
                f"model.architecture={self.architecture} is not known to open_clip;"
                f" {did_you_mean(self.architecture, open_clip.list_models())}"
            )
        with torch.device("meta"), silenced(logging.WARNING):  # it would warn that no weights are loaded
            shape = open_clip.create_model(
                self.architecture, pretrained=None, load_weights=False, pretrained_text=False, device="meta"
            )
        if device.type == "meta":
            return prunable(
                self.name, shape, None, dual_loss(self.loss, None), selection, self.towers or _towers(shape)
            )
        dtype = resolve_dtype(self.dtype)
        check_fits(shape, dtype, device)
        file = Path(self.pretrained).expanduser()
        source = str(file) if file.is_file() else self.pretrained
        with silenced(logging.INFO):
            module, _, transform = from_hub(
                lambda: open_clip.create_model_and_transforms(self.architecture, pretrained=source), source
            )
            tokenizer = from_hub(
                lambda: open_clip.get_tokenizer(self.architecture), self.architecture, "the tokenizer of "
            )
        interface = OpenClipInterface(
            Pixels(transform),
            tokenizer,
            self.loss == "classification",
            _ignored_padding(module, tokenizer),
        )
        module.to(device, dtype)
        model = prunable(
            self.name,
            module,
            None,
            dual_loss(self.loss, interface),
            selection,
            self.towers or _towers(module),
            interface,
        )
        return SavesStateDict(**vars(model), architecture=open_clip.get_model_config(self.architecture))


def _towers(module: Any) -> dict[str, str]:
    """{tower: path}; the text tower's blocks lie at the top of some of open_clip's classes."""
    return {"vision" if path.startswith("visual") else "text": path for path in block_lists(module)}


def _package() -> Any:
    """The open_clip package.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import open_clip
    except ImportError:
        raise UserError(f"this model needs the open_clip package: {install_extra('open-clip')}") from None
    return open_clip
