"""Options of the scores."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ZerothOrderOptions:
    """Scores from random probes of the end-to-end loss, without gradients.

    Attributes:
        samples: how many samples of the calibration set are used, from the first.
        batch_size: samples whose mean loss one probe moves; part of the estimate, as in the paper. Texts of
            different lengths are padded, or in batches of their own where that changes a sample's loss.
        noises: independent draws of z per layer and batch.
        eps: size of a probe, in the units of the weights.
        samples_per_pass: maximum number of samples in one forward pass, probes included; fewer if memory is
            short. Changes nothing else.
        probe: what one probe moves: layer (the paper's), derivative (the paper's in the limit of small eps,
            by a backward pass) or block (cheaper, another estimator).
        name: what logs and result files call it.
    """

    samples: int = 32
    batch_size: int = 8
    noises: int = 1
    eps: float = 1e-3
    samples_per_pass: int = 512
    probe: str = field(default="layer", metadata={"choices": ("layer", "derivative", "block")})
    name: str = "zeroth_order"


@dataclass(frozen=True)
class FirstOrderOptions:
    """Scores from gradients of the end-to-end loss.

    Attributes:
        measure: what a layer with weights w and gradient g scores: the sum of |g| (gradient), the norm of g
            (gradient_norm), the sum of |w g| (weight_gradient) or of its squares (weight_gradient_square).
        samples: how many samples of the calibration set are used, from the first.
        batch_size: samples whose mean loss is differentiated; part of the score, as in the paper. Texts of
            different lengths are padded, or in batches of their own where that changes a sample's loss.
        recompute: compute blocks again in the backward pass instead of keeping their activations: less
            memory, a third more time, the same numbers.
        name: what logs and result files call it.
    """

    measure: str = field(
        default="gradient",
        metadata={"choices": ("gradient", "gradient_norm", "weight_gradient", "weight_gradient_square")},
    )
    samples: int = 128
    batch_size: int = 8
    recompute: bool = True
    name: str = "first_order"


@dataclass(frozen=True)
class LocalOptions:
    """Scores from the fine stage's own metric, summed over each layer.

    Attributes:
        measure: the metric of the pruner that is summed: wanda or sparsegpt.
        samples: how many samples of the calibration set are used, from the first.
        batch_size: samples per forward pass; changes nothing beyond rounding, unless a loss takes negatives
            from the batch.
        name: what logs and result files call it.
    """

    measure: str = field(default="wanda", metadata={"choices": ("wanda", "sparsegpt")})
    samples: int = 128
    batch_size: int = 8
    name: str = "local"
