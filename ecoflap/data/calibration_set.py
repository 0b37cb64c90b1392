"""A calibration set: samples drawn once, kept on the CPU, and read by every later step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ecoflap.data.batch import Sample
from ecoflap.errors import UserError

Shapes = tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]


@dataclass(frozen=True)
class CalibrationSet:
    """Frozen model inputs.

    Attributes:
        name: shown in logs and written to result files.
        samples: one dict of tensors per sample, without a batch dimension.
        sources: names of the pictures or texts that they were made of, see ``ecoflap.data.sources``; tasks
            that read them are refused.
    """

    name: str
    samples: Sequence[Sample]
    sources: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, count: int) -> CalibrationSet:
        """The first ``count`` samples."""
        return replace(self, samples=self.samples[:count])

    def repeat(self, count: int) -> CalibrationSet:
        """As many samples as ``count``: from the first one again if there are fewer."""
        return self.chosen(place % len(self) for place in range(count))

    def chosen(self, indices: Iterable[int]) -> CalibrationSet:
        """The samples at some indices."""
        return replace(self, samples=[self.samples[index] for index in indices])

    def batches(self, size: int) -> list[dict[str, Tensor]]:
        """The samples in batches of at most ``size``, each of one shape.

        Samples of different lengths are never padded to one length: padding tokens would enter every
        statistic, and the result would depend on which samples share a batch. For scores, on which the batch
        size has an influence, see ``ecoflap.blocks.loss_batches``.
        """
        groups = by_shape(self.samples)
        return [stack(part) for shape in sorted(groups) for part in split(groups[shape], size)]

    def fingerprint(self) -> str:
        """A hash of all values of all samples."""
        digest = hashlib.blake2b(digest_size=16)
        for sample in self.samples:
            for name, tensor in sample.items():
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def by_shape(samples: Iterable[Sample]) -> dict[Shapes, list[Sample]]:
    """{shapes and names of its tensors: samples}, in the order in which they come."""
    groups: dict[Shapes, list[Sample]] = {}
    for sample in samples:
        shapes = tuple(tuple(tensor.shape) for tensor in sample.values())
        groups.setdefault((shapes, tuple(sample)), []).append(sample)
    return groups


def split(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    """The samples in parts of at most ``size``."""
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


def stack(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Samples of one shape as a batch."""
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def draw(total: int, count: int, seed: int) -> list[int]:
    """Draw ``count`` different indices below ``total`` by a seed; all of them if there are no more."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return order[:count].tolist()


def require_train(split: str) -> None:
    """Refuse calibration on data that tasks evaluate.

    Raises:
        UserError: if the split is not the training split.
    """
    if split != "train":
        raise UserError(
            f"calibration.split={split}: models are measured on the other splits; choose train, whose"
            " pictures are in none of them"
        )
