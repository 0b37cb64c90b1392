"""How far pruned models are from the dense one on some samples, or how large their loss is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ecoflap.allocate.layer_trials import LayerTrials
from ecoflap.allocate.trial import mean_loss
from ecoflap.blocks.loss_batches import batching
from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.distributed.collectives import share, summed
from ecoflap.errors import UserError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.logits import collecting_logits
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import kl_divergence

KL, LOSS = "kl", "loss"


class Distance:
    """Measures allocations by the model that is pruned to them."""

    def __init__(
        self,
        model: PrunableModel,
        trials: LayerTrials,
        samples: CalibrationSet,
        batch_size: int,
        measure: str,
    ) -> None:
        """Set what is measured.

        Args:
            model: dense, as the trials find it.
            trials: prunes the model.
            samples: all samples.
            batch_size: samples per forward pass.
            measure: ``kl``: the mean over targets of the divergence of the pruned model's prediction from the
                dense model's; ``loss``: the mean loss per sample.
        """
        self._model, self._trials, self._samples, self._measure = model, trials, samples, measure
        with torch.no_grad(), quiet_forward(model.module):
            self._batches = batching(model, samples, batch_size)

    @torch.no_grad()
    def __call__(self, allocations: Sequence[Mapping[str, int]], chosen: Sequence[int]) -> list[float]:
        """Measure some allocations.

        Args:
            allocations: {layer: weights that it keeps}, each.
            chosen: indices of the samples to measure on.

        Raises:
            UserError: if divergences are asked for and the loss shows no logits.
        """
        # In order, so that the same samples share a batch each time: a contrastive loss compares them.
        batches, found = self._batches(self._samples.chosen(sorted(chosen))), []
        with quiet_forward(self._model.module):
            dense: list[list[Tensor]] = []
            if self._measure == KL:
                self._trials.prune(self._trials.dense)
                dense = [[logits.cpu() for logits in self._logits(batch)] for batch in share(batches)]
            for keep in allocations:
                self._trials.prune(keep)
                if self._measure == KL:
                    found.append(self._divergence(share(batches), dense))
                else:
                    found.append(mean_loss(self._model, batches))
        return found

    def _divergence(self, batches: Sequence[Batch], dense: Sequence[Sequence[Tensor]]) -> float:
        """The mean over the targets of all processes, of which each has its batches."""
        total, targets = 0.0, 0
        for batch, wanted in zip(batches, dense, strict=True):
            for logits, target in zip(self._logits(batch), wanted, strict=True):
                total += float(kl_divergence(logits, target.to(logits.device)).cpu().double().sum())
                targets += len(logits)
        total, targets = summed(torch.tensor([total, targets], dtype=torch.float64)).tolist()
        return total / targets

    def _logits(self, batch: Batch) -> list[Tensor]:
        """The logits of all targets of a batch, [targets, classes] for each part of the loss.

        Raises:
            UserError: if the loss shows none.
        """
        with collecting_logits() as found:
            self._model.loss(batch)
        if not found:
            raise UserError(
                f"allocation.fitness=kl compares predictions, and the loss of {self._model.name} shows none;"
                " use allocation.fitness=loss"
            )
        return found
