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


@dataclass(frozen=True)
class EvoPressOptions:
    """An evolutionary search over the sparsities of layers, each candidate measured on the pruned model.

    Attributes:
        generations: how many generations there are (published: 400).
        offspring: candidates of a generation (published: 64).
        survivors: candidates that each stage of selection leaves, the last one 1 (published: 8, 2, 1).
        samples: samples of the calibration set that each stage measures its candidates on (published: 2048,
            16384 and 65536 tokens).
        levels: most steps by which a layer becomes denser or sparser.
        step: weights in a step; null for 0.5 min(s, 1 - s) / levels of the median layer.
        fitness: the divergence from the dense model's predictions (kl), or the loss (loss).
        scope: each tower reaches the target by itself (tower), or the whole model does (model).
        name: what logs and result files call it.
    """

    generations: int = 100
    offspring: int = 16
    survivors: list[int] = field(default_factory=lambda: [4, 2, 1])
    samples: list[int] = field(default_factory=lambda: [8, 32, 128])
    levels: int = 8
    step: int | None = None
    fitness: str = field(default="kl", metadata={"choices": ("kl", "loss")})
    scope: str = field(default="tower", metadata={"choices": ("model", "tower")})
    name: str = "evopress"
