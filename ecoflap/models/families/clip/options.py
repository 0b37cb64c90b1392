"""Options of CLIP."""

from __future__ import annotations

from dataclasses import dataclass, field

from ecoflap.models.loading.options import ANY_DTYPE, PretrainedOptions


@dataclass(frozen=True)
class ClipOptions(PretrainedOptions):
    """A CLIP of transformers.

    Attributes:
        loss: contrastive, classification, or a function by its dotted path.
    """

    name: str = "clip"
    loss: str = "contrastive"


@dataclass(frozen=True)
class OpenClipOptions:
    """A model of open_clip.

    Attributes:
        architecture: its name in ``open_clip.list_models()``.
        pretrained: a tag of ``open_clip.list_pretrained()``, or a local checkpoint file.
        name: what logs and result files call it.
        dtype: dtype of the weights: float32 (what auto means here too), float16 or bfloat16.
        loss: contrastive, classification (through the text classifier, at the true temperature), or a
            function by its dotted path.
        towers: {tower: path of its block list}, where it should not be found from the tree.
        save: write the pruned weights into the run's folder: true or dense, bitmask, coded.
    """

    architecture: str
    pretrained: str
    name: str = "open_clip"
    dtype: str = field(default="float32", metadata={"choices": ANY_DTYPE})
    loss: str = "classification"
    towers: dict[str, str] | None = None
    save: bool | str = False
