"""Options of the allocation."""

from __future__ import annotations

from dataclasses import dataclass, field

AUTO = "auto"
Parameter = float | int | str
"""A number, or ``auto``."""


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
class OWLOptions:
    """More weights for blocks with many outliers among the sizes of weights times the norms of their inputs.

    Attributes:
        spread: half of the difference between the largest and the smallest share that a block keeps (the
            paper's lambda), or auto: the one of several with the smallest loss on the calibration set.
        outlier: how many times the mean of its block an outlier is (the paper's M).
        scope: one budget for the whole model (model), or each tower reaches the target by itself (tower).
        samples: how many samples of the calibration set auto compares, from the first.
        name: what logs and result files call it.
    """

    spread: Parameter = 0.08
    outlier: float = 5.0
    scope: str = field(default="tower", metadata={"choices": ("model", "tower")})
    samples: int = 32
    name: str = "owl"


@dataclass(frozen=True)
class DLPOptions:
    """More weights for blocks whose weights times the norms of their inputs are small.

    Attributes:
        spread: half of the difference between the largest and the smallest share that a block keeps (the
            paper's alpha); null for the published one at the target sparsity; auto: the one of several with
            the smallest loss on the calibration set.
        average: what sums a block up: median (the paper) or mean (the released code).
        scope: one budget for the whole model (model), or each tower reaches the target by itself (tower).
        samples: how many samples of the calibration set auto compares, from the first.
        name: what logs and result files call it.
    """

    spread: Parameter | None = None
    average: str = field(default="median", metadata={"choices": ("median", "mean")})
    scope: str = field(default="tower", metadata={"choices": ("model", "tower")})
    samples: int = 32
    name: str = "dlp"


@dataclass(frozen=True)
class LSAOptions:
    """More weights where removing a share of the weights changes the outputs of layers little.

    Attributes:
        granularity: what has one error: block, sublayer (attention and the rest of a block) or layer.
        spread: half of the difference between the largest and the smallest share (the paper's alpha); null
            for the published one; auto: the one of several with the smallest loss on the calibration set.
        share: the share of each row's weights that is removed to measure the error.
        columns: columns of which a row's weights are removed one by one, each time the cheapest.
        scope: one budget for the whole model (model), or each tower reaches the target by itself (tower).
        samples: how many samples of the calibration set auto compares, from the first.
        name: what logs and result files call it.
    """

    granularity: str = field(default="block", metadata={"choices": ("block", "sublayer", "layer")})
    spread: Parameter | None = None
    share: float = 0.5
    columns: int = 128
    scope: str = field(default="tower", metadata={"choices": ("model", "tower")})
    samples: int = 32
    name: str = "lsa"


@dataclass(frozen=True)
class ATPOptions:
    """Sparsities that grow from block to block by the same step.

    Attributes:
        beta: the step; auto: the one of several with the smallest loss on the calibration set.
        scope: one budget for the whole model (model), or each tower reaches the target by itself (tower).
        samples: how many samples of the calibration set auto compares, from the first.
        name: what logs and result files call it.
    """

    beta: Parameter = AUTO
    scope: str = field(default="tower", metadata={"choices": ("model", "tower")})
    samples: int = 32
    name: str = "atp"


@dataclass(frozen=True)
class AlphaPruningOptions:
    """More weights for blocks whose spectra have heavy tails; needs no data.

    Attributes:
        epsilon: how far the sparsity of a block may be from the target, as a share of it, before all are
            scaled to meet it; null for the published one of the pruner; auto: the one of several with the
            smallest loss on the calibration set.
        tail: where the tail of a spectrum begins: where a power law fits best, near the peak (peak), or at
            the median (median).
        scope: one budget for the whole model (model), or each tower reaches the target by itself (tower).
        samples: how many samples of the calibration set auto compares, from the first.
        name: what logs and result files call it.
    """

    epsilon: Parameter | None = None
    tail: str = field(default="peak", metadata={"choices": ("peak", "median")})
    scope: str = field(default="model", metadata={"choices": ("model", "tower")})
    samples: int = 32
    name: str = "alpha_pruning"


@dataclass(frozen=True)
class EROptions:
    """Densities in proportion to (rows + columns) / (rows x columns) of each layer (Erdős-Rényi).

    Attributes:
        scope: one budget for the whole model (model), or each tower reaches the target by itself (tower).
        name: what logs and result files call it.
    """

    scope: str = field(default="model", metadata={"choices": ("model", "tower")})
    name: str = "er"


@dataclass(frozen=True)
class TAMPOptions:
    """More weights for layers whose output tokens are diverse, within text and pictures and across both.

    Attributes:
        margin: how far the sparsity of a layer may be above the target (published: 0.1), or auto: the one of
            several with the smallest loss on the calibration set.
        samples: how many samples of the calibration set auto compares, from the first.
        name: what logs and result files call it.
    """

    margin: Parameter = 0.1
    samples: int = 32
    name: str = "tamp"


@dataclass(frozen=True)
class MultiflowOptions:
    """The sparsities that removing the smallest weights of each tower gives its layers.

    Attributes:
        scope: weights compete with those of their tower (tower), or of the whole model (model).
        name: what logs and result files call it.
    """

    scope: str = field(default="tower", metadata={"choices": ("model", "tower")})
    name: str = "multiflow"


@dataclass(frozen=True)
class InContextOptions:
    """Small steps of the sparsities that lower the pruned model's own loss.

    Attributes:
        granularity: what shares one sparsity: layer or block; row needs a pruner with pruner.mask=row.
        rows: how the rows of a layer share its count: by how strongly the loss reacts to each (weighted),
            or evenly (even); auto is weighted where the pruner and its mask can weigh rows, which N:M can't.
        samples: samples of each step; each step uses the next samples of the calibration set.
        batch_size: samples that share a backward pass.
        ramp_start: sparsity at which the ramp starts; a lower target has no ramp.
        ramp_width: difference in sparsity between two steps of the ramp.
        ramp_steps: steps at each sparsity of the ramp.
        steps: steps at the target.
        rate: a step changes a sparsity by at most twice this; it falls to a third of this at the target.
        band: how much sparser and denser a layer is pruned to learn what its next weights are worth.
        recompute: recompute the activations of blocks in the backward pass instead of storing them.
        name: what logs and result files call it.
    """

    granularity: str = field(default="layer", metadata={"choices": ("row", "layer", "block")})
    rows: str = field(default="auto", metadata={"choices": ("auto", "weighted", "even")})
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


@dataclass(frozen=True)
class NeuronalOptions:
    """Sparsities on a straight line over the blocks, with the slope that changes activations least.

    Attributes:
        spreads: the lambdas that are tried; null for the published ones: 0.01, 0.02, ..., 0.1, 0.12, 0.15,
            0.2, and 0.25 at sparsities below 0.8.
        samples: how many samples of the calibration set are used, from the first.
        scope: a line over the blocks of each tower (tower), each with its own slope, or one over the blocks
            of all towers (model).
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
        levels: maximum number of steps by which a layer becomes denser or sparser.
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
