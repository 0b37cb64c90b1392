"""The result record: all that is known about a finished run, in one JSON file.

Tables, plots and W&B are views of it. JSON has no NaN or infinity, so those floats are written as the strings
"nan", "inf" and "-inf". Reading converts them back to floats in the numeric fields (metrics, sparsity,
steps); in the config and elsewhere they stay strings, since a string there may be intended.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ecoflap.storage.file_names import CHECKPOINT, RESULT
from ecoflap.storage.files import replacing
from ecoflap.storage.results.environment import redact
from ecoflap.storage.results.metrics import first_metric

SCHEMA_VERSION = 1

_NUMERIC_FIELDS = ("metrics", "standard_errors", "sparsity", "steps")
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def find_records(folder: Path) -> list[Path]:
    """Every record of a run in or below a folder; the copy beside a run's saved model is not one of them.

    A run or a sweep that was moved elsewhere is found by a link to it.
    """
    inside, linked = list[Path](), list[Path]()
    for place, folders, files in os.walk(folder):
        inside += [Path(place, RESULT)] if RESULT in files else []
        for link in (path for name in folders if (path := Path(place, name)).is_symlink()):
            linked += [*link.glob(RESULT), *link.glob(f"*/{RESULT}")]
    found = set({path.resolve(): path for path in (*sorted(linked), *sorted(inside))}.values())
    copies = {path.parent / CHECKPOINT / RESULT for path in found}
    return sorted(found - copies)


def find_copies(results: Mapping[Path, Result]) -> dict[Path, Path]:
    """{record in the folder of a saved model: record of the run that saved it}, of those that are both there.

    A model's folder is such a copy where it was moved, copied or converted to.
    """
    runs = {path: result for path, result in results.items() if result.checkpoint != "."}
    return {
        path: run
        for path in results.keys() - runs.keys()
        for run in runs
        if replace(runs[run], checkpoint=".") == results[path]
    }


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished run.

    Attributes:
        schema: Version of this layout.
        status: ``done``; a run that did not finish writes no result.
        finished: When it finished: ISO 8601, UTC; None in records that are older than this field.
        config: The resolved config, as plain dicts and lists. Secrets are redacted when it is written.
        versions: Library -> version, from ``environment()``.
        git: ``{"commit": str, "dirty": bool}`` of the project's checkout, or None outside one.
        model: ``name``, ``fingerprint`` (hash of the dense weights), ``dtype`` (of most weights),
            ``parameters``, ``prunable`` and ``block_weights`` (counts).
        data: Fingerprints of the calibration set, ``unused`` if no step looked at it, and of other data.
        metrics: ``{"dense": {task: {metric: float}}, "pruned": {...}, "finetuned": {...}}``; the first metric
            of the first task is the headline.
        sparsity: The figures of ``sparsity_section``, from the zeros counted in the pruned weights.
        steps: Step -> ``{"seconds": float, "peak_memory_bytes": int, "cached": bool}``, in the order they
            ran; ``cached`` if its result was read from the cache. An allocation that is searched for has the
            numbers of its intermediate results that were read (``recalled``) and ``computed``.
        checkpoint: Folder of the saved model relative to the record's, ``.`` beside the model itself, or None
            if none was saved.
        weights: A hash of the saved model's tensors, see ``hash_tensors``; None if none was saved, or the
            record is older than this field.
        model_files: {file: hash} of the saved model's configs, tokenizer and processor, see
            ``hash_model_files``; None if no model was saved, or the record is older than this field.
        scores: The scores of the coarse stage with their standard errors, or None without scores.
        allocation: ``granularity`` and ``details`` of the allocation, or None without one; its counts are in
            ``sparsity``.
        hardware: What computed it, see ``hardware``; None in records that are older than this field.
        standard_errors: Of the metrics that have one, laid out as they are; None for ``ecoflap.save``.
        sources: The user's own code and the files that it was made from, see ``sources_of``.
    """

    schema: int = SCHEMA_VERSION
    status: str = "done"
    finished: str | None = None
    config: dict[str, Any]
    versions: dict[str, str | None]
    git: dict[str, Any] | None
    model: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, dict[str, dict[str, float]]]
    sparsity: dict[str, Any]
    steps: dict[str, dict[str, Any]]
    checkpoint: str | None = None
    weights: str | None = None
    model_files: dict[str, str] | None = None
    scores: dict[str, Any] | None = None
    allocation: dict[str, Any] | None = None
    hardware: dict[str, Any] | None = None
    standard_errors: dict[str, dict[str, dict[str, float]]] | None = None
    sources: dict[str, Any] = field(default_factory=lambda: {"parts": {}, "files": {}})

    def headline(self) -> float | None:
        """The first metric of the first task, of the fine-tuned, else the pruned, else the dense model."""
        stages = (self.metrics.get(stage) for stage in ("finetuned", "pruned", "dense"))
        by_task = next((metrics for metrics in stages if metrics), {})
        for values in by_task.values():
            if (name := first_metric(values)) is not None:
                return values[name]
        return None

    def to_json(self) -> dict[str, Any]:
        """The record as strict JSON: fields in order, secrets redacted, NaN and infinities as strings."""
        fields = {**vars(self), "config": redact(self.config)}
        return {name: _map_leaves(value, _encode) for name, value in fields.items()}

    def digest(self) -> str:
        """A hash of all but the time, the costs and the hardware, which differ whenever a run is repeated."""
        fields = self.to_json()
        del fields["finished"], fields["steps"], fields["hardware"]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]

    def write(self, path: Path) -> None:
        """Write the record to a file atomically."""
        text = json.dumps(self.to_json(), indent=2, allow_nan=False, ensure_ascii=False)
        with replacing(Path(path)) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    @property
    def state(self) -> str:
        """The last state after pruning that the model was evaluated in: ``pruned`` or ``finetuned``."""
        return "finetuned" if self.metrics.get("finetuned") else "pruned"

    @property
    def of_a_run(self) -> bool:
        """Whether a run wrote it, and not ``ecoflap.save``, whose models come from elsewhere."""
        return "model" in self.config

    @property
    def is_structured(self) -> bool:
        """Whether whole units or experts were removed, instead of weights set to zero."""
        return self.sparsity.get("total") == "units"

    @property
    def pattern(self) -> str | None:
        """N:M, if the zeros lie in such a pattern."""
        mask = (self.config.get("pruner") or {}).get("mask")
        return mask if isinstance(mask, str) and ":" in mask else None

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read a record.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not a result record, or a newer version of the package wrote it.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"no result record at {path}: give the folder of a finished run, which holds a {RESULT}"
            )
        record = {"finished": None, "weights": None, "model_files": None, "hardware": None, **_parse(path)}
        missing = [field.name for field in dataclasses.fields(cls) if field.name not in record]
        if missing:
            raise ValueError(
                f"{path} is not a complete result record: it lacks {', '.join(missing)}; run the"
                " configuration again"
            )
        decoded = {name: _map_leaves(record[name], _decode) for name in _NUMERIC_FIELDS}
        return cls(**{field.name: {**record, **decoded}[field.name] for field in dataclasses.fields(cls)})


def read_result(folder: Path) -> Result | None:
    """The record of a run that has finished in a folder; None if it is missing or damaged."""
    try:
        return Result.read(folder / RESULT)
    except (FileNotFoundError, ValueError):
        return None


def _parse(path: Path) -> dict[str, Any]:
    """The JSON object of a file, checked to be a result record that this version can read."""
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a result record: it is not JSON ({error})") from error
    schema = record.get("schema") if isinstance(record, dict) else None
    if not isinstance(schema, int):
        raise ValueError(f"{path} is not a result record: it has no schema number")
    if schema > SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema {schema}, but this version reads up to {SCHEMA_VERSION}: update ecoflap to"
            " read it"
        )
    return record


def _map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply a function to every leaf of nested dicts and lists."""
    if isinstance(value, dict):
        return {name: _map_leaves(item, change) for name, item in value.items()}
    return [_map_leaves(item, change) for item in value] if isinstance(value, list | tuple) else change(value)


def _encode(leaf: Any) -> Any:
    """NaN and infinities as strings."""
    return str(leaf) if isinstance(leaf, float) and not math.isfinite(leaf) else leaf


def _decode(leaf: Any) -> Any:
    """The strings of NaN and infinities as floats."""
    return _NOT_FINITE.get(leaf, leaf) if isinstance(leaf, str) else leaf
