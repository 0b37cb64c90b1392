"""NLVR2: is a sentence true of two photographs? Accuracy on the development and the public test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ecoflap.data.example import Example
from ecoflap.data.folder import require_images
from ecoflap.data.nlvr2.options import Nlvr2TaskOptions
from ecoflap.data.nlvr2.reading import OBTAIN, check_splits, read_pairs
from ecoflap.data.sources import picture_sources
from ecoflap.errors import UserError, require_positive
from ecoflap.evaluate.inputs import commonest, fingerprint, parts, percent, percent_errors, spread
from ecoflap.evaluate.items import Items
from ecoflap.evaluate.prediction_log import IN_MEMORY, PredictionLog
from ecoflap.models.core.logits import finite
from ecoflap.models.core.protocols import Classifies, require
from ecoflap.models.core.prunable import PrunableModel


@dataclass(frozen=True)
class Nlvr2(Nlvr2TaskOptions):
    """Share of sentences that are judged right, per split; the first split is the headline."""

    def __post_init__(self) -> None:
        require_positive("task", self, "limit", "batch_size")
        check_splits(self.splits, "task.splits")

    def check_data(self, group: str) -> None:
        """Refuse missing sentences or pictures.

        Raises:
            UserError: if sentences or pictures are missing.
        """
        self.chosen(group)

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that does not classify.

        Raises:
            UserError: if the model does not classify.
        """
        require(model, Classifies, f"task={self.name}")

    def chosen(self, group: str) -> dict[str, list[Example]]:
        """The sentences to judge, by split.

        Raises:
            UserError: if files or pictures are missing, or the limit is out of range.
        """
        pairs = {
            split: spread(read_pairs(self.path, split, group), self.limit, f"sentences in {split}")
            for split in self.splits
        }
        require_images(
            (image for of_it in pairs.values() for one in of_it for image in one.images),
            f"{group}={self.name}",
            OBTAIN,
        )
        return pairs

    def load(self, model: PrunableModel) -> Nlvr2Evaluation:
        """Read the sentences.

        Raises:
            UserError: if files or pictures are missing, the model does not classify, or the limit is out of
                range.
        """
        self.check_model(model)
        return Nlvr2Evaluation(self, self.chosen("task"), model.interface)


@dataclass
class Nlvr2Evaluation:
    """The task with its sentences in memory; call it with a model."""

    task: Nlvr2
    pairs: dict[str, list[Example]]
    interface: Any

    @property
    def sources(self) -> frozenset[str]:
        """The sources of the data, which must not be used for calibration."""
        return picture_sources(image for one in self._everything() for image in one.images)

    def identity(self) -> dict[str, Any]:
        """Everything that the metrics depend on beside the model."""
        return {
            "metric": "accuracy",
            "inputs": fingerprint(self._everything(), self.interface),
            "splits": [[split, len(of_it)] for split, of_it in self.pairs.items()],
        }

    def chance(self) -> float:
        """The accuracy of saying the commoner of true and false each time, in percent, on the first split."""
        return commonest(one.label for one in next(iter(self.pairs.values())))

    @torch.no_grad()
    def __call__(self, model: PrunableModel, prediction_log: PredictionLog = IN_MEMORY) -> dict[str, float]:
        """Accuracy in percent on each split, and the number of sentences.

        Raises:
            NumericalError: if a logit is not finite.
        """
        model.module.eval()
        everything = self._everything()
        judged = iter(
            prediction_log.run(
                parts(everything, self.task.batch_size), lambda batch: self._judge(model, batch)
            )
        )
        right = {
            f"accuracy_{split}": [next(judged) == one.label for one in of_it]
            for split, of_it in self.pairs.items()
        }
        prediction_log.note(Items(*next(iter(right.items()))))
        return {
            **{name: percent(of_it) for name, of_it in right.items()},
            "sentences": len(everything),
            **percent_errors(right),
        }

    def _everything(self) -> list[Example]:
        return [one for of_it in self.pairs.values() for one in of_it]

    def _judge(self, model: PrunableModel, batch: Sequence[Example]) -> list[int]:
        logits = self.interface.classify(model, batch)
        if logits.shape[-1] != 2:
            raise UserError(
                f"task={self.task.name} needs a model that tells true from false, and {model.name} knows"
                f" {logits.shape[-1]} classes; choose such as model=blip_nlvr"
            )
        judged: list[int] = finite(logits).argmax(dim=-1).tolist()
        return judged
