"""The store of stage values in a run of several processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from ecoflap.distributed.collectives import from_first
from ecoflap.distributed.processes import is_first
from ecoflap.storage.cache.entries import AS_JSON, Codec
from ecoflap.storage.cache.store import Store
from ecoflap.storage.files import JSON

COMPUTE = "compute"


@dataclass
class SharedStore(Store):
    """A store that the first process reads and writes; what it lacks, all processes compute together."""

    @override
    def get_or_compute(
        self, stage: str, key: Mapping[str, JSON], compute: Callable[[], Any], codec: Codec = AS_JSON
    ) -> tuple[Any, bool]:
        """The value of a stage, the same in all processes."""
        if is_first():

            def together() -> Any:
                from_first(COMPUTE)
                return compute()

            return from_first(super().get_or_compute(stage, key, together, codec))
        told: Any = from_first(None)
        if told == COMPUTE:
            compute()
            told = from_first(None)
        value, stored = told
        return value, stored
