"""Options of the pruners."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class MetricOptions:
    """Removal of the weights with the smallest metric.

    Attributes:
        mask: which weights compete: those of each row, of the matrix, N:M (keeps N of every M weights of a
            row, such as 2:4), or n:M (likewise, with an N for each layer that the allocation chooses).
        refine: swaps (pruned and kept weights of a row swap while that lowers its output error) or none.
        swaps: maximum number of swaps per row.
        repair: whether ADMM updates the kept weights to compensate for the pruned ones.
    """

    mask: str = "row"
    refine: str = field(default="none", metadata={"choices": ("none", "swaps")})
    swaps: int = 100
    repair: bool = False


@dataclass(frozen=True)
class MagnitudeOptions(MetricOptions):
    """Removal of the smallest weights by absolute value.

    Attributes:
        name: what logs and result files call it.
    """

    mask: str = "matrix"
    name: str = "magnitude"


@dataclass(frozen=True)
class WandaOptions(MetricOptions):
    """Removal of the weights with the smallest absolute value times the norm of their input column.

    Attributes:
        name: what logs and result files call it.
    """

    name: str = "wanda"


@dataclass(frozen=True)
class RIAOptions(MetricOptions):
    """Removal of the weights with the smallest share of their row and column times a power of the input norm.

    Attributes:
        power: of the norm of the input column.
        name: what logs and result files call it.
    """

    mask: str = "matrix"
    power: float = 0.5
    name: str = "ria"


@dataclass(frozen=True)
class ADMMOptions:
    """Gradual removal of weights; the kept weights adapt after each step.

    Attributes:
        mask: which weights compete: those of each row, of the matrix, N:M (keeps N of every M weights of a
            row, such as 2:4), or n:M (likewise, with an N for each layer that the allocation chooses).
        iterations: steps in which the weights adapt (published: 20).
        schedule: the first steps, each of which removes weights (published: 15).
        trial_iterations: steps in the trials of an allocation, at most as many as iterations; the same share
            of them removes weights.
        relaxation: length of the steps, from 1 (as published) to below 2; longer steps need fewer of them.
        damping: share of the mean diagonal that is added to the diagonal of the normalised Gram matrix.
        penalty: of the distance between the weights and their masked version.
        name: what logs and result files call it.
    """

    mask: str = "row"
    iterations: int = 12
    schedule: int = 10
    trial_iterations: int = 4
    relaxation: float = 1.8
    damping: float = 0.1
    penalty: float = 1.0
    name: str = "admm"


@dataclass(frozen=True)
class SparseGPTOptions:
    """Removal of the weights with the smallest output error; the others are updated to compensate.

    Attributes:
        mask: which weights compete: matrix (as published: those of all rows of each block of columns), N:M
            (keeps N of every M weights of a row, such as 2:4), or n:M (likewise, with an N for each layer
            that the allocation chooses).
        damping: share of the mean diagonal that is added to the Hessian's diagonal.
        block: number of columns that a mask is chosen for at once.
        name: what logs and result files call it.
    """

    mask: str = "matrix"
    damping: float = 0.01
    block: int = 128
    name: str = "sparsegpt"


@dataclass(frozen=True)
class GlobalMagnitudeOptions:
    """Removal of the smallest weights of the model or of each tower by absolute value.

    Attributes:
        scope: model (one threshold) or tower (one each).
        name: what logs and result files call it.
    """

    scope: str = field(default="model", metadata={"choices": ("model", "tower")})
    name: str = "global_magnitude"


@dataclass(frozen=True)
class GlobalGradientOptions:
    """Removal of the weights with the smallest absolute value times mean absolute gradient, in several steps.

    Attributes:
        scope: model (one threshold) or tower (one each, the paper's).
        iterations: steps of rising sparsity.
        samples: how many samples of the calibration set are used, from the first.
        batch_size: samples whose mean loss is differentiated.
        name: what logs and result files call it.
    """

    scope: str = field(default="tower", metadata={"choices": ("model", "tower")})
    iterations: int = 3
    samples: int = 128
    batch_size: int = 1
    name: str = "global_gradient"


@dataclass(frozen=True)
class UPopOptions:
    """Removal of attention dimensions and MLP units by gates that are trained.

    Attributes:
        steps: optimizer steps of the search.
        interval: steps between two updates of the multipliers.
        batch_size: samples per step.
        learning_rate: learning rate of AdamW at the start; it falls as a half cosine to zero.
        weight_decay: decoupled weight decay of AdamW.
        name: what logs and result files call it.
    """

    steps: int = 300
    interval: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-5
    weight_decay: float = 0.05
    name: str = "upop"


@dataclass(frozen=True)
class REAPOptions:
    """Removal of whole experts by the mean of the router weight times the norm of the expert's output.

    Attributes:
        batch_size: samples per forward pass; changes nothing beyond rounding.
        name: what logs and result files call it.
    """

    batch_size: int = 8
    name: str = "reap"
