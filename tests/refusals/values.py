"""Values that are out of range, of the wrong type or no choice."""

from __future__ import annotations

from tests.refusals.case import Case

CASES: list[Case] = [
    Case(("sparsity=1.0",), ("sparsity=1.0", "[0, 1)")),
]
