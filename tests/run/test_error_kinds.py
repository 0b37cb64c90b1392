"""What a record says of its layers' errors: which kind they are, by the statistic that the pruner reads."""

from __future__ import annotations

import pytest

from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.protocol import Pruner
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from ecoflap.run.record import kind_of_errors
from ecoflap.storage.results import LayerCount


@pytest.mark.parametrize(
    ("pruner", "error", "kind"),
    [
        (Wanda(), 0.1, "uncorrelated"),
        (Wanda(refine="swaps"), 0.1, "exact"),
        (SparseGPT(), 0.1, "exact"),
        (SparseGPT(), None, None),
        (Magnitude(), None, None),
    ],
)
def test_errors_are_exact_from_a_gram_matrix(pruner: Pruner, error: float | None, kind: str | None) -> None:
    counts = {"layer": LayerCount("text", 4, 2, 2, error)}
    assert kind_of_errors(counts, pruner) == kind
