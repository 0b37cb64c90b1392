"""A stage cache in memory."""

import json
from collections.abc import Callable, Mapping
from typing import Any


class Memory:
    """Recalls what was computed, as the stage cache does: names and values pass through JSON.

    Attributes:
        asked: the names that were asked for.
        computed: those whose values had to be computed.
        fail_after: after how many computed values the next one is interrupted; None for never.
    """

    def __init__(self, fail_after: int | None = None) -> None:
        self.asked = list[Mapping[str, Any]]()
        self.computed = list[Mapping[str, Any]]()
        self.fail_after = fail_after
        self._known: dict[str, str] = {}

    def __call__(self, name: Mapping[str, Any], compute: Callable[[], Any], dense: bool = False) -> Any:
        key = json.dumps(name, sort_keys=True)
        self.asked.append(name)
        if key not in self._known:
            if len(self.computed) == self.fail_after:
                raise KeyboardInterrupt
            self.computed.append(name)
            self._known[key] = json.dumps(compute())
        return json.loads(self._known[key])
