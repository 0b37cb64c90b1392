"""Similarities of pictures and texts, and the classes that a model finds likeliest by them or by its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ecoflap.data.classes import Classes
from ecoflap.data.example import Example
from ecoflap.models.core.logits import finite
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.families.clip.clip import class_features


def similarity(images: Tensor, texts: Tensor) -> Tensor:
    """Cosine similarities [images, texts]; of a picture with several queries, that of the best one."""
    if images.dim() == 2:
        return images @ texts.t()
    return (images @ texts.t()).max(dim=1).values


def five_best(
    model: PrunableModel, interface: Any, classes: Classes | None
) -> Callable[[list[Example]], list[list[int]]]:
    """A function that finds the five likeliest classes of each picture of a batch, the likeliest first.

    Args:
        model: the model.
        interface: its interface.
        classes: prompts that the text tower reads; None for a classifier's own classes.
    """
    texts = None if classes is None else class_features(interface, model, classes)

    def best(batch: list[Example]) -> list[list[int]]:
        if texts is None:
            logits = interface.classify(model, batch)
        else:
            logits = similarity(interface.embed_images(model, [one.image for one in batch]), texts)
        return finite(logits).topk(min(5, logits.shape[1]), dim=-1).indices.tolist()

    return best
