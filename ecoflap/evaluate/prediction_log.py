"""Predictions on disk, batch by batch: an evaluation that was interrupted goes on where it stopped, and what
was answered can be read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from ecoflap.console.progress import track
from ecoflap.console.telemetry import out_of_memory

log = logging.getLogger(__name__)

Item = TypeVar("Item")


class PredictionLog:
    """The predictions of one evaluation of one model.

    The file's first line is the key of what is evaluated; each further line holds one batch's predictions.
    Lines of another key, and a last line that was cut off, are written anew.
    """

    def __init__(self, file: Path | None = None, key: Any = None) -> None:
        """``file``: where the predictions go; null keeps them in memory. ``key``: everything that they depend
        on, as plain JSON values.
        """
        self.file = file
        self.key = hashlib.blake2b(
            json.dumps(key, sort_keys=True, default=str).encode(), digest_size=16
        ).hexdigest()

    def run(self, batches: Sequence[list[Item]], compute: Callable[[list[Item]], Sequence[Any]]) -> list[Any]:
        """The predictions of all batches, one after the other.

        Args:
            batches: what is to be predicted, always in the same order.
            compute: predictions of one batch, as plain JSON values, one per item.
        """
        done = self._read()
        lines = [
            done[index] if index < len(done) and len(done[index]) == len(batch) else None
            for index, batch in enumerate(batches)
        ]
        kept = next((index for index, line in enumerate(lines) if line is None), len(lines))
        self._start(done[:kept])
        predictions = [value for line in done[:kept] for value in line]
        rest = batches[kept:]
        for batch in track(rest, "evaluate", total=len(rest)):
            values = in_parts(compute, batch)
            self._append(values)
            predictions += values
        return predictions

    def _read(self) -> list[list[Any]]:
        """The whole lines of an earlier run with the same key."""
        if self.file is None or not self.file.is_file():
            return []
        lines = []
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
        return lines[1:] if lines and lines[0] == {"key": self.key} else []

    def _start(self, done: list[list[Any]]) -> None:
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(
                "".join(json.dumps(line) + "\n" for line in [{"key": self.key}, *done]), encoding="utf-8"
            )

    def _append(self, values: list[Any]) -> None:
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(values) + "\n")


def in_parts(compute: Callable[[Any], Iterable[Any]], batch: Any) -> list[Any]:
    """The predictions of a batch; where memory runs out, of each half by itself, and so on."""
    try:
        return list(compute(batch))
    except RuntimeError as error:
        if len(batch) < 2 or not out_of_memory(error):
            raise
    log.warning(
        "memory ran out on %d at a time; trying half as many (task.batch_size=%d is faster)",
        len(batch),
        len(batch) // 2,
    )
    if torch.accelerator.is_available():
        torch.get_device_module(torch.accelerator.current_accelerator()).empty_cache()
    middle = len(batch) // 2
    return [*in_parts(compute, batch[:middle]), *in_parts(compute, batch[middle:])]


IN_MEMORY = PredictionLog()
