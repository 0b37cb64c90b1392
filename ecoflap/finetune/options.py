"""Options of what trains a pruned model."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ScheduleOptions:
    """How long, how fast and on what a pruned model is trained.

    Attributes:
        loss: dotted path of a loss function of your own, (module, batch, copies) -> [batch]; null for the one
            that the model is scored with.
        data: training (the whole training split of the calibration data) or calibration (the run's own few
            samples).
        samples: how many of the training split; null for all.
        held_out: how many of the samples are not trained on; their loss is in the curve and decides which
            checkpoint is best.
        epochs: passes over the samples.
        steps: optimizer steps; null leaves it to ``epochs``.
        batch_size: samples per step, process and accumulated part.
        accumulation: parts whose gradients are summed for one step.
        learning_rate: the highest learning rate of the schedule.
        warmup: share of the steps in which the rate rises to it; then it falls as a half cosine to zero.
        weight_decay: decoupled weight decay of AdamW.
        clip: largest norm of the gradient.
        precision: auto (bfloat16 where the accelerator has it, else float32), float32, bfloat16 or float16;
            weights are held in fp32 throughout.
        recompute: recompute activations in the backward pass instead of keeping them.
        shard: split weights, gradients and optimizer states over the processes (FSDP); false trains a whole
            copy in each (DDP).
        every: steps between two checkpoints, each with a held-out loss; null for one per epoch.
        patience: stop after this many checkpoints without a better held-out loss; null never stops early.
        log_every: steps between two points of the curve, which has points of the first and the last step too.
        workers: processes that read samples; 0 reads in the training process.
    """

    loss: str | None = None
    data: str = field(default="training", metadata={"choices": ("training", "calibration")})
    samples: int | None = None
    held_out: int = 0
    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 32
    accumulation: int = 1
    learning_rate: float = 1e-5
    warmup: float = 0.0
    weight_decay: float = 0.05
    clip: float = 1.0
    precision: str = field(default="auto", metadata={"choices": ("auto", "float32", "bfloat16", "float16")})
    recompute: bool = False
    shard: bool = False
    every: int | None = None
    patience: int | None = None
    log_every: int = 50
    workers: int = 0


@dataclass(frozen=True)
class FullOptions(ScheduleOptions):
    """Training of all parameters; pruned weights stay zero.

    Attributes:
        name: what logs and result files call it.
    """

    name: str = "full"


@dataclass(frozen=True)
class LoraOptions(ScheduleOptions):
    """Low-rank updates of the pruned weights, merged under their masks.

    Attributes:
        rank: rank r of an update B A.
        alpha: an update is scaled by alpha / r.
        name: what logs and result files call it.
    """

    rank: int = 8
    alpha: int = 16
    name: str = "lora"


@dataclass(frozen=True)
class ReconstructOptions:
    """Training of each block to match the dense model's outputs.

    Attributes:
        samples: how many of the run's calibration samples are used, from the first; null for all.
        epochs: passes of each block over the samples.
        learning_rate: learning rate of Adam at the start; it falls as a half cosine to zero over the block's
            steps.
        name: what logs and result files call it.
    """

    samples: int | None = None
    epochs: int = 10
    learning_rate: float = 2e-4
    name: str = "reconstruct"
