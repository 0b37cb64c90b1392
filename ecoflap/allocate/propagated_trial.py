"""Trials of a run that prunes layer by layer: the inputs of the layers come from the pruned model.

A pass over the calibration set prunes each layer when its input is known, exactly as the fine stage does. It
leaves for each layer the statistic of that input, and the weights that the pruner began with, which are the
compensated ones where the run compensates. Trials nearby prune these weights with these statistics, until the
next pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ecoflap.allocate.protocol import Context
from ecoflap.allocate.trial import Group, TrialPruner, idle_device, restoring, trial_pruner, write_weights
from ecoflap.blocks.dense_twin import DenseTwin
from ecoflap.blocks.drifts import Drifts
from ecoflap.blocks.layer_calls import require_calls
from ecoflap.blocks.statistics import Statistic
from ecoflap.blocks.walk import Visit, walk
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import NumericalError
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel, quiet_forward
from ecoflap.prune.layers import weights_to_prune


class PropagatedTrial(TrialPruner):
    """Prunes a model as the fine stage does; its groups are those of the last pass, none before the first."""

    def __init__(self, model: PrunableModel, context: Context, dense: Mapping[Layer, Tensor]) -> None:
        """Prepare a model for trials.

        Args:
            model: dense.
            context: its calibration set runs through the model, and its pruner prunes.
            dense: the weights of all layers, [rows, cols] each.
        """
        super().__init__(model, context.pruner, [])
        self._context, self._dense = context, dense
        require_calls(model, context.samples.batches(context.batch_size), every_layer=True)

    @torch.no_grad()
    def settle(self, keep: Mapping[str, int], calibration: CalibrationSet) -> None:
        """Prune the dense model layer by layer to the given counts, or the nearest that the mask can have.

        Args:
            keep: {layer: number of weights to keep}.
            calibration: the samples to prune with.

        Raises:
            NumericalError: if the pruner can't compute with the weights or the inputs.
            UserError: if a layer's input can't be known before it is called.
        """
        context, model, keep = self._context, self._model, self.fitted(keep)
        write_weights(model, self._dense)
        self.groups, batches = [], calibration.batches(context.batch_size)
        twin = DenseTwin() if context.propagate == "compensated" else None
        with quiet_forward(model.module):
            for visit in walk(model, model.towers, batches, "prune", tokens=context.tokens, twin=twin):
                self._prune_block(visit, keep)

    def _prune_block(self, visit: Visit, keep: Mapping[str, int]) -> None:
        """Prune the layers of a block one after the other, and remember what they were pruned from."""
        if not visit.block.layers:
            if visit.twin is not None:
                visit.twin.leave()
            visit.leave()
            return
        placement, idle = self._model.placement, idle_device(self._model)
        assert self._pruner.statistic is not None

        def together(layers: Sequence[Layer], statistic: Statistic, drifts: Drifts | None) -> None:
            if drifts is None:
                weights = [self._dense[layer] for layer in layers]
            else:
                weights = [weight.to(idle) for weight in weights_to_prune(layers, statistic, drifts)]
            group = Group(visit.block, tuple(layers), tuple(weights), statistic)
            for layer, weight in zip(layers, self.solve(group, keep), strict=True):
                layer.write(weight)
            self.groups = [*self.groups, group]

        with placement.using(visit.block):
            visit.prune_on_the_way(self._pruner.statistic, together)
            placement.changed(visit.block)
        if not visit.finite:
            raise NumericalError(
                f"the output of {visit.block.name} is not finite when the model is pruned in a trial; use"
                " model.dtype=float32 or bfloat16, or a larger pruner.damping"
            )


@contextmanager
def trial_as_used(model: PrunableModel, context: Context) -> Iterator[TrialPruner]:
    """Prune a model in trials as the run will do, as ``trial_pruner`` does with another ``propagate``.

    Afterwards the weights are dense again, bit for bit.

    Args:
        model: dense.
        context: the run that is allocated for.
    """
    if not propagates(context):
        with trial_pruner(model, context) as trial:
            yield trial
    else:
        with restoring(model) as dense:
            yield PropagatedTrial(model, context, dense)


def propagates(context: Context) -> bool:
    """Whether the run prunes layer by layer, so that inputs depend on what is pruned before."""
    return context.propagate in ("layer", "compensated") and context.pruner.statistic is not None
