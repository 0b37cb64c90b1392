"""Options of image classifiers."""

from __future__ import annotations

from dataclasses import dataclass, field

from ecoflap.models.loading.options import ANY_DTYPE, PretrainedOptions


@dataclass(frozen=True)
class ImageClassifierOptions(PretrainedOptions):
    """An image classifier of transformers.

    Attributes:
        loss: classification, or a function by its dotted path.
    """

    name: str = "image_classifier"
    loss: str = "classification"


@dataclass(frozen=True)
class TorchvisionOptions:
    """A classifier of torchvision.

    Attributes:
        architecture: its name in ``torchvision.models.list_models()``.
        weights: one of torchvision's tags (DEFAULT, IMAGENET1K_V1, ...), or a local checkpoint file.
        name: what logs and result files call it.
        dtype: dtype of the weights: float32 (what auto means here too), float16 or bfloat16.
        loss: classification, or a function by its dotted path.
        towers: {tower: path of its block list}, where it should not be found from the tree.
        save: write the pruned weights into the run's folder: true or dense, bitmask, coded.
    """

    architecture: str
    weights: str = "DEFAULT"
    name: str = "torchvision"
    dtype: str = field(default="float32", metadata={"choices": ANY_DTYPE})
    loss: str = "classification"
    towers: dict[str, str] | None = None
    save: bool | str = False
