"""The parts of a run whose memory is planned, and the memory that a step needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ecoflap.blocks.footprint import Footprint
from ecoflap.finetune.protocol import Finetuner
from ecoflap.prune.protocol import Pruner
from ecoflap.run.plan import Plan
from ecoflap.score.protocol import Scorer


@dataclass(frozen=True)
class Need:
    """The memory that a step needs, in bytes.

    Attributes:
        step: its name.
        weights: weights on the device at a time, with gradients and moments where they are trained.
        states: hidden states and block outputs on the device.
        work: activations of one pass, gradients and statistics.
        offloaded: hidden states on the CPU or the disk.
        wide: whether the weights are converted to fp32.
        batch_size: the option that sets the samples per pass.
        of_batch: whether the hidden states on the device are those of a batch, and not of all samples.
        together: whether the run needs all weights in memory at once, so that no offload is possible.
        less_weights: options that need less memory for weights.
        less_work: options beside the samples per pass that need less memory for activations.
        learning: activations while it is learned how blocks are called, before any hidden states wait.
    """

    step: str
    weights: int
    states: int
    work: int
    offloaded: int = 0
    wide: bool = False
    batch_size: str = "batch_size"
    of_batch: bool = False
    together: bool = False
    less_weights: tuple[str, ...] = ()
    less_work: tuple[str, ...] = ()
    learning: int = 0

    @property
    def one_pass(self) -> int:
        """What is beside weights and hidden states at most, of which there are none yet while it learns."""
        return max(self.work, self.learning - self.states)

    @property
    def total(self) -> int:
        """All bytes on the device."""
        return self.weights + self.states + self.one_pass


@dataclass(frozen=True)
class Workload:
    """The parts whose memory is planned, and what they read.

    Attributes:
        pruner: prunes layers or the whole model.
        samples: number of samples in the calibration set.
        batch_size: samples per forward pass of the fine stage.
        scorer: None if nothing is scored.
        allocating: what the allocator keeps in memory; None if it runs no samples.
        propagate: what comes before a layer when the pruner measures its inputs.
        devices: how many processes share the samples, with a device each.
        together: whether a step needs all weights in memory at once.
        steps: of the run.
        finetuner: None if nothing is fine-tuned.
        sparsity: of the model that is fine-tuned.
    """

    pruner: Pruner
    samples: int = 1
    batch_size: int = 1
    scorer: Scorer | None = None
    allocating: Footprint | None = None
    propagate: str = "pruned"
    devices: int = 1
    together: bool = False
    steps: Sequence[str] = ("prune",)
    finetuner: Finetuner | None = None
    sparsity: float = 0.0

    @classmethod
    def of(cls, plan: Plan, samples: int, devices: int = 1) -> Workload:
        """The workload of a run that reads some samples on some devices."""
        config, together = plan.config, plan.pruner.allocates or plan.finetuner is not None
        return cls(
            plan.pruner,
            samples,
            config.batch_size,
            plan.scoring,
            plan.allocating,
            config.propagate,
            devices,
            together=together,
            steps=plan.steps,
            finetuner=plan.finetuner,
            sparsity=config.sparsity,
        )
