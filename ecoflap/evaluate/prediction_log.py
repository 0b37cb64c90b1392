"""The prediction log: predictions on disk, batch by batch, to resume evaluations and to read answers."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from ecoflap.console.progress import track
from ecoflap.console.telemetry import out_of_memory
from ecoflap.distributed.collectives import from_first, gathered
from ecoflap.distributed.processes import is_first, rank, size
from ecoflap.errors import UserError
from ecoflap.evaluate.items import Items

log = logging.getLogger(__name__)

Item = TypeVar("Item")
FIELDS = {"key", "batch", "predictions"}


class PredictionLog:
    """The predictions of one evaluation of one model.

    Each line of the file has the key of the evaluation, the number of a batch and its predictions. So a line
    of another evaluation, or in another place, isn't taken for what it is not: a process that was suspended
    for so long that another one took its run over may append one when it wakes. Lines under another key, and
    a truncated one, are computed again.
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

        Raises:
            UserError: if there are fewer or more.
        """
        done = from_first(self._complete(batches))
        self._start(done)
        rest = batches[len(done) :]
        rounds = [rest[start : start + size()] for start in range(0, len(rest), size())]
        for several in track(rounds, "evaluate", total=len(rounds)):
            own = in_parts(compute, several[rank()]) if rank() < len(several) else []
            for batch, values in zip(several, gathered(own), strict=False):
                if len(values) != len(batch):
                    raise UserError(
                        f"a task returned {len(values)} predictions for a batch of {len(batch)} items;"
                        " correct it: there is one for each item"
                    )
                self._append(len(done), values)
                done.append(values)
        return [value for values in done for value in values]

    def note(self, items: Items) -> None:
        """Keep what the evaluation knows of its items, for reports; a log in memory keeps nothing."""
        if self.file is not None:
            self.items = items

    def read(self) -> dict[int, list[Any]]:
        """{number of a batch: its predictions}, of the lines in the file that have this key."""
        if self.file is None or not self.file.is_file():
            return {}
        lines = (line for line in _lines(self.file) if line["key"] == self.key)
        return {line["batch"]: line["predictions"] for line in lines}

    def _complete(self, batches: Sequence[list[Item]]) -> list[list[Any]]:
        """The predictions of an earlier run with the same key, of the first batches that it has all of."""
        found = self.read()
        complete = list[list[Any]]()
        for number, batch in enumerate(batches):
            if len(found.get(number, ())) != len(batch):
                break
            complete.append(found[number])
        return complete

    def _start(self, done: list[list[Any]]) -> None:
        if self.file is not None and is_first():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text("".join(map(self._line, range(len(done)), done)), encoding="utf-8")

    def _append(self, number: int, values: list[Any]) -> None:
        if self.file is not None and is_first():
            with self.file.open("a", encoding="utf-8") as lines:
                lines.write(self._line(number, values))

    def _line(self, number: int, values: list[Any]) -> str:
        return json.dumps({"key": self.key, "batch": number, "predictions": values}) + "\n"


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log that are whole, and of this format."""
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and line.keys() >= FIELDS:
            yield line


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
