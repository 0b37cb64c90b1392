"""Config files as they were when a sweep in this process first read them."""

from __future__ import annotations

import copy
from typing import Any

from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.plugins.config_source import ConfigResult


class Frozen(CachingConfigRepository):
    """Reads each config once, over the compositions of all jobs; Hydra would read it for each of them."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        """A config, as it was at its first reading."""
        return copy.deepcopy(super().load_config(config_path))

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        """The same for one composition, which may change where it searches."""
        other = copy.copy(self)
        other.delegate = copy.deepcopy(self.delegate, memo)
        return other


def freeze(loader: ConfigLoader) -> None:
    """Let a loader read each config once: what the check of a sweep's jobs reads is what they get."""
    repository: Any = loader.repository  # type: ignore[attr-defined]
    if not isinstance(repository, Frozen):
        loader.repository = Frozen(repository)  # type: ignore[attr-defined]
