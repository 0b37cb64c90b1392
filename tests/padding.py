"""LLaVA with padded texts, and a loss that declares both the padding and the kinds of tokens."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.losses import IGNORED, counting, next_token_loss
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.token_kinds import declaring, placeholder_kinds
from ecoflap.models.families.vlm.joining import join_samples
from tests.prune import by_hand_tokens


def model() -> PrunableModel:
    """Its language tower is pruned."""
    return replace(by_hand_tokens.only_mixed("llava"), loss_function=_loss)


def samples() -> CalibrationSet:
    """Those of ``by_hand_tokens`` with different numbers of tokens of padding behind them."""
    found = []
    for count, sample in zip((3, 0, 2), by_hand_tokens.samples("llava").samples, strict=True):
        fillers = {"input_ids": 5, "labels": IGNORED, "attention_mask": 0}
        texts = {
            name: nn.functional.pad(sample[name], (0, count), value=filler)
            for name, filler in fillers.items()
        }
        found.append({**sample, **texts})
    return CalibrationSet("padded", tuple(found))


def _loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    inputs = join_samples(module, batch)
    labels = inputs.pop("labels")
    kinds = placeholder_kinds(module, inputs["input_ids"], labels)
    with counting(language=inputs["attention_mask"]), declaring(language=kinds):
        return next_token_loss(module(**inputs).logits, labels)
