"""Options of the pruners."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class MagnitudeOptions:
    """Removal of the smallest weights by absolute value.

    Attributes:
        mask: which weights compete: those of the matrix, of each row, or N:M (N of every M weights of a row
            stay, such as 2:4).
        name: what logs and result files call it.
    """

    mask: str = "matrix"
    name: str = "magnitude"


@dataclass(frozen=True)
class WandaOptions:
    """Removal of the weights of smallest absolute value times the norm of their input column.

    Attributes:
        mask: which weights compete: those of each row (as published), of the matrix, or N:M (N of every M
            weights of a row stay, such as 2:4).
        name: what logs and result files call it.
    """

    mask: str = "row"
    name: str = "wanda"


@dataclass(frozen=True)
class SparseGPTOptions:
    """Removal of weights, and correction of those that stay.

    Attributes:
        mask: which weights compete: matrix (as published: those of all rows of each block of columns), or N:M
            (N of every M weights of a row stay, such as 2:4).
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
    """Removal of the weights of smallest absolute value times mean absolute gradient, in several steps.

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
