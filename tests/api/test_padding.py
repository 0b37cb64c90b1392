"""Padding of any model inputs is removed: a padded batch gives the masks that its samples give one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

import ecoflap
from ecoflap.models.core.losses import IGNORED
from tests.api.masked_inputs import KINDS, Rows, seen_loss, shaped, siglip2


def filled(tensors: list[Tensor], dim: int, value: float, side: str) -> Tensor:
    """The tensors at one length along a dimension, one after the other in a batch."""
    longest = max(tensor.shape[dim] for tensor in tensors)
    rows = []
    for tensor in tensors:
        shape = list(tensor.shape)
        shape[dim] = longest - shape[dim]
        parts = (tensor, tensor.new_full(shape, value))
        rows.append(torch.cat(parts if side == "right" else parts[::-1], dim=dim))
    return torch.stack(rows)


def padded(rows: Rows, name: str | None, side: str) -> dict[str, Tensor]:
    """A batch as a collator makes it; labels of tokens are padded as these are, others at their end."""
    joins = "flattened_patches" in rows[0]
    rows = [{name: tensor[0] if joins else tensor for name, tensor in row.items()} for row in rows]
    together = name == "inputs_embeds" and all(len(row["labels"]) == len(row[name]) for row in rows)
    labels = filled([row["labels"] for row in rows], 0, IGNORED, side if together else "right")
    if name is None:
        (name,) = set(rows[0]) - {"labels"}
        return {name: torch.stack([row[name] for row in rows]), "labels": labels}
    ones = [torch.ones(len(row[name])).long() for row in rows]
    return {
        name: filled([row[name] for row in rows], 0, 1, side),
        "attention_mask": filled(ones, 0, 0, side),
        "labels": labels,
    }


def masks(module: Any, data: Any, loss: Any) -> dict[str, Tensor]:
    model = ecoflap.load(module, **({} if loss is None else {"loss": loss}))
    choices = {"pruner": "wanda", "score": "none", "propagate": "dense", "batch_size": 2}
    return dict(ecoflap.prune(model, data=data, sparsity=0.5, **choices).masks)


def assert_alike(
    make: Callable[[], Any], samples: Callable[[], Rows], batched: Callable[[Rows], Any], loss: Any
) -> None:
    """Prune with the samples one by one and with a batch of them, and compare the masks."""
    found = []
    for batch in (False, True):
        torch.manual_seed(0)
        rows, module = samples(), make().eval()
        found.append(masks(module, [batched(rows)] if batch else rows, loss))
    alone, together = found
    assert any(mask.any() and not mask.all() for mask in alone.values())
    assert not [layer for layer, mask in alone.items() if not torch.equal(mask, together[layer])]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.every_run("t5", "bert", "qwen3", "whisper-right", "pix2struct-left", "captioner-right")
def test_a_padded_batch_is_pruned_as_its_samples_are(kind: str, side: str) -> None:
    make, samples, name, loss = KINDS[kind]
    if name is None and side == "left":
        pytest.skip("nothing that the encoder reads is padded")
    assert_alike(make, samples, lambda rows: padded(rows, name, side), loss)


@pytest.mark.skipif(not hasattr(hf, "Siglip2ForImageClassification"), reason="a newer model")
def test_a_padded_batch_of_patches_is_pruned_as_its_pictures_are() -> None:
    def batched(rows: Rows) -> dict[str, Tensor]:
        names = ("pixel_values", "pixel_attention_mask")
        patches = {name: filled([row[name] for row in rows], 0, 0, "right") for name in names}
        return {"spatial_shapes": torch.stack([row["spatial_shapes"] for row in rows]), **patches}

    assert_alike(siglip2, shaped, batched, seen_loss)
