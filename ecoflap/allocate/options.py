"""Options of the allocation."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class WaterFillingOptions:
    """A budget shared by score; uniform where there are no scores.

    Attributes:
        granularity: what shares one sparsity: layer, block, tower or model.
        aggregate: a group's score is the sum of its layers' scores (sum), or that sum per weight (average).
        cap: the largest sparsity of any group; null for sparsity + 0.1, the paper's rule.
        scope: one budget for the whole model (model), or each tower reaches the target by itself (tower).
        name: what logs and result files call it.
    """

    granularity: str = field(default="block", metadata={"choices": ("layer", "block", "tower", "model")})
    aggregate: str = field(default="sum", metadata={"choices": ("sum", "average")})
    cap: float | None = None
    scope: str = field(default="model", metadata={"choices": ("model", "tower")})
    name: str = "water_filling"


@dataclass(frozen=True)
class FromFileOptions:
    """The counts of an ``allocation.json`` that an earlier run wrote.

    Attributes:
        path: the file, ``allocation.json`` of a run's folder.
        total: ``exact``: its counts must add up to the target; ``as_given``: they need not, and the result
            says so.
        name: what logs and result files call it.
    """

    path: str
    total: str = field(default="exact", metadata={"choices": ("exact", "as_given")})
    name: str = "file"


@dataclass(frozen=True)
class NeuronalOptions:
    """Sparsities on a straight line over the blocks, as steep as keeps the activations most alike.

    Attributes:
        spreads: the lambdas that are tried; null for the published ones: 0.01, 0.02, ..., 0.1, 0.12, 0.15,
            0.2, and 0.25 at sparsities below 0.8.
        samples: how many samples of the calibration set are used, from the first.
        scope: a line over the blocks of each tower (tower), each as steep as fits that tower, or one over the
            blocks of all towers (model).
        name: what logs and result files call it.
    """

    spreads: list[float] | None = None
    samples: int = 8
    scope: str = field(default="tower", metadata={"choices": ("model", "tower")})
    name: str = "neuronal"
