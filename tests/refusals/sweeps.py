"""Bad sweeps."""

from __future__ import annotations

from tests.refusals.case import Case

CASES: list[Case] = []
