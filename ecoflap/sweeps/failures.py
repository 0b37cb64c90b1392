"""The failed jobs of a sweep, which fails after its last job."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig

from ecoflap.errors import NumericalError, SweepFailed, UserError
from ecoflap.sweeps.ended import completed
from ecoflap.sweeps.jobs import BASIC, Job, all_jobs


def tolerates_failures(config: DictConfig) -> bool:
    """Whether the sweeper of a sweep accepts that jobs fail."""
    return bool(config.hydra.get("sweeper", {}).get("max_failure_rate"))


class Failures:
    """The jobs of a sweep that have failed so far, over the batches of ``max_batch_size``.

    Attributes:
        numbers: their numbers.
        refused: whether all of them were refused, and none hit a bug.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.refused = True

    def after(
        self, context: HydraContext, config: DictConfig, jobs: Sequence[Job], returns: Sequence[JobReturn]
    ) -> Sequence[JobReturn]:
        """Note the failed jobs of a batch.

        Args:
            context: Hydra's context.
            config: the config of the sweep.
            jobs: the jobs of the batch.
            returns: how each job ended.

        Returns:
            The same; before the last batch, failed jobs as completed ones, which don't end the sweep.

        Raises:
            SweepFailed: after the last batch, if jobs have failed and ``max_failure_rate`` is not set.
        """
        if tolerates_failures(config):
            return returns
        failed = [
            (job, done) for job, done in zip(jobs, returns, strict=True) if done.status == JobStatus.FAILED
        ]
        self.numbers += [job.number for job, _ in failed]
        self.refused &= all(isinstance(done._return_value, UserError | NumericalError) for _, done in failed)
        count = _count(context, config, jobs)
        if jobs[-1].number + 1 < count:
            return [completed(None) if done.status == JobStatus.FAILED else done for done in returns]
        if self.numbers:
            numbers = ", ".join(map(str, self.numbers[:10])) + (", ..." if len(self.numbers) > 10 else "")
            raise SweepFailed(
                f"{len(self.numbers)} of {count} jobs failed ({numbers}), for the reasons above; "
                f"ecoflap status {config.hydra.sweep.dir} --rerun-failed runs them again",
                2 if self.refused else 1,
            )
        return returns


def _count(context: HydraContext, config: DictConfig, jobs: Sequence[Job]) -> int:
    """The number of jobs of a sweep; of a sweeper that chooses them as it goes, those of this batch."""
    sweeper = config.hydra.sweeper
    batched = sweeper.get("_target_") == BASIC and sweeper.get("max_batch_size") is not None
    return len(all_jobs(context, config) if batched else jobs)
