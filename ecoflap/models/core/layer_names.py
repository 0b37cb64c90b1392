"""Name some of a model's layers in messages, and the patterns of ``skip_layers`` that leave them dense."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def first_and_count(chosen: set[str], names: Sequence[str]) -> str:
    """The first of the chosen layers, and how many more there are.

    Args:
        chosen: names of the chosen layers.
        names: names of all layers, in order.
    """
    first = next(name for name in names if name in chosen)
    return f"{first} and {len(chosen) - 1} more layers" if len(chosen) > 1 else first


def skip_layers_advice(layers: set[str], names: Sequence[str]) -> str:
    """What to do about some of the layers with these names."""
    return f"leave them dense, add skip_layers=[{','.join(skip_patterns(layers, names))}]"


def skip_patterns(wanted: Iterable[str], names: Iterable[str]) -> list[str]:
    """A few short patterns for ``skip_layers`` that match the wanted layers and no others.

    Args:
        wanted: names of the layers to match.
        names: names of all layers.
    """
    unmatched = sorted(wanted)
    others = set(names) - set(unmatched)
    found: list[str] = []
    while unmatched:
        parts = unmatched[0].split(".")
        # No pattern begins with a digit, because a command line reads 1.0 as a number.
        starts = [index for index, part in enumerate(parts) if not part.isdigit()]
        runs = {".".join(parts[start:end]) for start in starts for end in range(start + 1, len(parts) + 1)}
        fitting = [run for run in runs if not _matched(run, others)] or [f"^{unmatched[0]}$"]
        best = max(fitting, key=lambda run: (len(_matched(run, unmatched)), -len(run), run))
        found.append(best)
        unmatched = [name for name in unmatched if not re.search(best, name)]
    return found


def _matched(pattern: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if re.search(pattern, name)]
