"""Batches of a fixed number of samples for losses: texts of different lengths are padded.

A score depends on how many samples share a batch (it is the gradient of their mean loss), so text lengths
must not decide that number. Statistics of the fine stage are sums over tokens and independent of it: they are
gathered from ``CalibrationSet.batches``, which never pads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ecoflap.console.telemetry import errors_suppressed
from ecoflap.data.batch import Batch, Sample
from ecoflap.data.calibration_set import CalibrationSet, split, stack
from ecoflap.models.core.forward_modes import block_by_block_in_float32, quiet_forward
from ecoflap.models.core.losses import IGNORED
from ecoflap.models.core.prunable import PrunableModel

log = logging.getLogger(__name__)

# The padding of each tensor [..., tokens]: any token, which the mask hides, and no target.
FILLS = {
    **dict.fromkeys(("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids"), 0),
    **dict.fromkeys(("mm_token_type_ids", "moe_mm_token_type_ids"), 0),
    **dict.fromkeys(("qformer_input_ids", "qformer_attention_mask"), 0),
    "labels": IGNORED,
}
Kind = tuple[tuple[str, tuple[int, ...]], ...]


def loss_batches(model: PrunableModel, calibration: CalibrationSet, size: int) -> list[dict[str, Tensor]]:
    """The samples in their order, in batches of ``size``; see ``batching``."""
    return batching(model, calibration, size)(calibration)


def batching(
    model: PrunableModel, calibration: CalibrationSet, size: int
) -> Callable[[CalibrationSet], list[dict[str, Tensor]]]:
    """How to make batches of ``size`` of some of the samples, in their order.

    Texts of different lengths are padded at their end and get an ``attention_mask``. One mixed batch shows
    whether the model's loss respects the mask. If padding changes a sample's loss (a custom loss that
    counts padding, or one that compares samples), or other tensors than texts differ in shape, each batch
    holds samples of one shape only.

    Args:
        model: in evaluation mode; its loss is tried on one batch.
        calibration: all samples.
        size: samples per batch.
    """
    mixed = _mixed(calibration, size)
    if mixed is not None and not _padding_keeps_losses(model, mixed):
        log.info(
            "score: %s is scored on batches of texts of one length: its loss is another one when they are"
            " filled up",
            model.name,
        )
        return lambda some: some.batches(size)
    return lambda some: [padded(part) for part in _parts(some, size)]


def _mixed(calibration: CalibrationSet, size: int) -> list[Sample] | None:
    """Samples of different lengths that could share a batch; the first batch of such, if there is one."""
    groups = _alike(calibration.samples) if size > 1 else []
    for samples in [*_parts(calibration, size), *groups]:
        other = next((one for one in samples if _shapes(one) != _shapes(samples[0])), None)
        if other is not None:
            return samples if len(samples) <= size else [samples[0], other]
    return None


def _parts(calibration: CalibrationSet, size: int) -> list[list[Sample]]:
    """The samples of each batch; they differ in nothing but the lengths of texts."""
    return [list(part) for group in _alike(calibration.samples) for part in split(group, size)]


def padded(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Stack samples whose texts may differ in length into one batch."""
    if len({_shapes(sample) for sample in samples}) == 1:
        return stack(samples)
    masked = [_masked(sample) for sample in samples]
    longest = {
        name: max(sample[name].shape[-1] for sample in masked)
        for name in FILLS
        if name in masked[0] and masked[0][name].dim()
    }
    return stack(
        [
            {name: _filled(name, tensor, longest.get(name)) for name, tensor in sample.items()}
            for sample in masked
        ]
    )


def _masked(sample: Sample) -> Sample:
    """A sample with a mask of its text; a causal decoder is not affected by padding on the right."""
    if "input_ids" not in sample or "attention_mask" in sample:
        return sample
    return {**sample, "attention_mask": torch.ones_like(sample["input_ids"])}


def _filled(name: str, tensor: Tensor, length: int | None) -> Tensor:
    return tensor if length is None else pad(tensor, (0, length - tensor.shape[-1]), value=FILLS[name])


def _alike(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Group samples whose shapes are the same, except for the lengths of texts."""
    groups: dict[Kind, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample_kind(sample), []).append(sample)
    return list(groups.values())


def sample_kind(sample: Sample) -> Kind:
    """The names and shapes of a sample's tensors, without the lengths of texts."""
    has_text = "input_ids" in sample or "decoder_input_ids" in sample
    texts = {name for name in FILLS if has_text and name in sample and sample[name].dim()}
    return tuple(
        (name, tuple(tensor.shape[:-1] if name in texts else tensor.shape)) for name, tensor in sample.items()
    )


def _shapes(sample: Sample) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for tensor in sample.values())


@torch.no_grad()
def _padding_keeps_losses(model: PrunableModel, samples: Sequence[Sample]) -> bool:
    """Whether padding changes no sample's loss.

    Losses are compared in fp32, as half precision rounds them by as much as padding may change them. Of a
    model that doesn't run in fp32 they are compared to the digits of its weights' dtype.
    """
    exact = torch.finfo(torch.float32).eps ** 0.5
    rounding = torch.finfo(next(model.module.parameters()).dtype).eps
    with quiet_forward(model.module):
        with errors_suppressed(), block_by_block_in_float32(model):
            return _same_losses(model, [widened(sample) for sample in samples], exact)
        return _same_losses(model, samples, max(exact, 2 * rounding))


def _same_losses(model: PrunableModel, samples: Sequence[Sample], tolerance: float) -> bool:
    """Whether the losses of samples in a batch are those of each one alone."""
    alone = torch.cat([model.loss(stack([sample])) for sample in samples])
    return torch.allclose(model.loss(padded(samples)), alone, rtol=tolerance, atol=tolerance)


def widened(inputs: Batch) -> dict[str, Tensor]:
    """Inputs for a model that is held in fp32: half-precision numbers, such as a picture's, become fp32."""
    half = (torch.float16, torch.bfloat16)
    return {name: tensor.float() if tensor.dtype in half else tensor for name, tensor in inputs.items()}
