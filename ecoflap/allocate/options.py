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
class InContextOptions:
    """Small steps of the sparsities down the pruned model's own loss.

    Attributes:
        granularity: what shares one sparsity: layer or block.
        samples: samples of each step; the steps take turns through the calibration set.
        batch_size: samples that share a backward pass.
        ramp_start: the first budget of the ramp; a target below it has none.
        ramp_width: the distance of two budgets of the ramp.
        ramp_steps: steps at each budget below the target.
        steps: steps at the target.
        rate: half of the largest change of a sparsity in one step; it falls to a third at the target.
        band: how much sparser and denser a layer is pruned to learn what its next weights are worth.
        recompute: recompute the activations of blocks in the backward pass instead of storing them.
        name: what logs and result files call it.
    """

    granularity: str = field(default="layer", metadata={"choices": ("layer", "block")})
    samples: int = 16
    batch_size: int = 16
    ramp_start: float = 0.5
    ramp_width: float = 0.05
    ramp_steps: int = 2
    steps: int = 10
    rate: float = 0.03
    band: float = 0.05
    recompute: bool = True
    name: str = "in_context"
