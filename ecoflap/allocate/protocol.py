"""The protocol of an allocator, and what it can require of scores and model."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol

from ecoflap.allocate.allocation import Allocation, check_sparsity
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.score.scores import IMPORTANCE, LAYER, Scores


@dataclass(frozen=True)
class Requires:
    """What an allocator reads.

    Attributes:
        scores: ``needed``, ``optional`` (used if there are any) or ``none`` (never used).
        kind: the kind of scores that it takes, see ``Scores``.
        granularities: the granularities of scores that it takes.
        weights: whether it reads the model's weights, not only its shapes.
    """

    scores: Literal["needed", "optional", "none"] = "needed"
    kind: str = IMPORTANCE
    granularities: tuple[str, ...] = (LAYER,)
    weights: bool = False

    def check(self, scorer: str, kind: str, granularity: str, allocator: str) -> None:
        """Refuse scores that the allocator can't take.

        Args:
            scorer: the scorer's name, for messages.
            kind: the kind of its scores.
            granularity: the granularity of its scores.
            allocator: the allocator's name, for messages.

        Raises:
            UserError: if the scores are of another kind or granularity.
        """
        if kind != self.kind:
            raise UserError(
                f"allocation={allocator} goes by scores of kind {self.kind}, and score={scorer} gives {kind};"
                " choose another score, or another allocation"
            )
        if granularity not in self.granularities:
            raise UserError(
                f"score={scorer} gives one number per {granularity}, and allocation={allocator} needs one per"
                f" {' or '.join(self.granularities)}; choose another score, or a coarser allocation"
            )


class Allocator(Protocol):
    """Decides how many weights each layer keeps.

    A new one derives from this class.

    Attributes:
        name: shown in logs and written to result files.
    """

    name: str

    @property
    def requires(self) -> Requires:
        """What it reads; by default, the importance of each layer."""
        return Requires()

    def check(self, sparsity: float) -> None:
        """Refuse an impossible target before any work is done.

        Raises:
            UserError: if the target is outside [0, 1).
        """
        check_sparsity(sparsity)

    @abstractmethod
    def __call__(self, model: PrunableModel, scores: Scores | None, sparsity: float) -> Allocation:
        """Decide how many weights each layer keeps.

        Args:
            model: dense.
            scores: as it requires them; None without scores.
            sparsity: the share of the prunable weights to remove.

        Raises:
            UserError: if no counts meet the target.
        """
