"""What an allocator is, and what it can require of the steps before it."""

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
        scores: ``needed``, ``optional`` (it does without where there are none) or ``none`` (it would not look
            at them).
        kind: of the scores, see ``Scores``.
        granularities: of the scores that it can take.
        weights: it reads the model's weights, not only its shapes.
    """

    scores: Literal["needed", "optional", "none"] = "needed"
    kind: str = IMPORTANCE
    granularities: tuple[str, ...] = (LAYER,)
    weights: bool = False

    def check(self, scorer: str, kind: str, granularity: str, allocator: str) -> None:
        """Refuse scores that the allocator can't take.

        Args:
            scorer: its name, for messages.
            kind: of its scores.
            granularity: of its scores.
            allocator: its name, for messages.

        Raises:
            UserError: they are of another kind or granularity.
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
        """What it reads; the importance of each layer unless it says otherwise."""
        return Requires()

    def check(self, sparsity: float) -> None:
        """Refuse an impossible target before any work is done.

        Raises:
            UserError: the target is outside [0, 1).
        """
        check_sparsity(sparsity)

    @abstractmethod
    def __call__(self, model: PrunableModel, scores: Scores | None, sparsity: float) -> Allocation:
        """Decide what each layer keeps.

        Args:
            model: dense.
            scores: as it requires them; null where there are none.
            sparsity: the share of the prunable weights to remove.

        Raises:
            UserError: the counts can't be met.
        """
