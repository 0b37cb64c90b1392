"""The prediction log: predictions on disk, batch by batch, to resume evaluations and to read answers."""

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
from ecoflap.distributed.collectives import from_first, gathered
from ecoflap.distributed.processes import is_first, rank, size
from ecoflap.evaluate.items import Items

log = logging.getLogger(__name__)

Item = TypeVar("Item")


class PredictionLog:
    """The predictions of one evaluation of one model.

    The file's first line is the key of the evaluation; each further line holds one batch's predictions. Lines
    under another key, and a truncated last line, are written again.
    """

    def __init__(self, file: Path | None = None, key: Any = None, dense: PredictionLog | None = None) -> None:
        """Describe a log; ``run`` reads and writes it.

        Args:
            file: the log's file; None keeps the predictions in memory.
            key: everything that the predictions depend on, as plain JSON values.
            dense: the dense model's log of the same evaluation, for the log of a pruned one.
        """
        self.file, self.dense = file, dense
        self.items: Items | None = None
        text = json.dumps(key, sort_keys=True, default=str)
        self.key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def run(self, batches: Sequence[list[Item]], compute: Callable[[list[Item]], Sequence[Any]]) -> list[Any]:
        """The predictions of all batches, in order; those in the log are not computed again.

        The processes of a run take one batch each at a time, and the first one writes.

        Args:
            batches: the inputs, always in the same order.
            compute: returns the predictions of one batch, as plain JSON values, one per item.
        """
        done = from_first(self.read())
        complete = [len(line) == len(batch) for line, batch in zip(done, batches, strict=False)]
        reused = next((index for index, whole in enumerate(complete) if not whole), len(complete))
        self._start(done[:reused])
        predictions = [value for line in done[:reused] for value in line]
        rest = batches[reused:]
        rounds = [rest[start : start + size()] for start in range(0, len(rest), size())]
        for several in track(rounds, "evaluate", total=len(rounds)):
            own = in_parts(compute, several[rank()]) if rank() < len(several) else []
            for values in gathered(own)[: len(several)]:
                self._append(values)
                predictions += values
        return predictions

    def note(self, items: Items) -> None:
        """Keep what the evaluation knows of its items, for reports; a log in memory keeps nothing."""
        if self.file is not None:
            self.items = items

    def read(self) -> list[list[Any]]:
        """The predictions in the file, by batch; a line that was cut off, and another key's, are left out."""
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
        if self.file is not None and is_first():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(line) + "\n" for line in [{"key": self.key}, *done])
            self.file.write_text(text, encoding="utf-8")

    def _append(self, values: list[Any]) -> None:
        if self.file is not None and is_first():
            with self.file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(values) + "\n")


def in_parts(compute: Callable[[Any], Iterable[Any]], batch: Any) -> list[Any]:
    """The predictions of a batch; if memory runs out, of each half separately, and so on."""
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
