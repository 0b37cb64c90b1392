"""About how long a training will take, from forward and backward passes of one batch."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from ecoflap.data.batch import Sample
from ecoflap.finetune.learner import Learner
from ecoflap.finetune.protocol import Finetuner
from ecoflap.finetune.training_set import Collator
from ecoflap.models.core.forward_modes import all_gradients, in_float32
from ecoflap.models.core.prunable import PrunableModel

FEW = 2
ENOUGH = 2.0
"""Seconds of few samples after which they stand for a batch, whose samples take less each."""


def training_seconds(
    finetuner: Finetuner, model: PrunableModel, samples: Sequence[Sample], sparsity: float, batch_size: int
) -> float | None:
    """About how many seconds a training takes, without its held-out losses; None if that is not known.

    The steps of the optimizer are not timed: they read each number once, and a pass multiplies it.

    Args:
        finetuner: trains the model.
        model: the model, pruned or not.
        samples: what it trains on.
        sparsity: of its layers.
        batch_size: of the run.

    Raises:
        UserError: if the model can't read the samples.
    """
    passes, footprint = finetuner.passes(len(samples)), finetuner.footprint(model, sparsity)
    if passes is None or footprint is None:
        return None
    batch = min(footprint.batch_size or batch_size, len(samples))
    few = min(FEW, batch)
    precise = footprint.float32
    _pass(model, samples[:few], precise)  # warms up
    seconds = _pass(model, samples[:few], precise)
    if seconds < ENOUGH and batch > few:
        few, seconds = batch, _pass(model, samples[:batch], precise)
    return passes * seconds / few


def _pass(model: PrunableModel, samples: Sequence[Sample], precise: bool) -> float:
    """Seconds of a forward and backward pass through all weights, which stay as they are.

    Args:
        model: the model.
        samples: of one batch.
        precise: compute in fp32, and not in bf16 where a training does.
    """
    learner, batch, module = Learner(model), Collator(model)(samples), model.module
    with (
        in_float32(module),
        all_gradients(module),
        torch.autocast(model.device.type, torch.bfloat16, enabled=not precise),
    ):
        started = time.perf_counter()
        loss = learner(**batch)
        loss.backward()
        loss.item()  # waits for the accelerator
        seconds = time.perf_counter() - started
        for parameter in module.parameters():
            parameter.grad = None
    return seconds
