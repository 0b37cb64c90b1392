"""Options of tracking."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class WandbOptions:
    """Tracking with Weights & Biases.

    Attributes:
        project: W&B project that the run belongs to.
        entity: team or user that the project belongs to; by default, that of the W&B account.
        mode: ``offline`` (files only; the default, since compute nodes rarely have a network), ``online`` or
            ``disabled``.
        group: name shared by the runs of a sweep.
        tags: labels to filter by.
    """

    project: str = "ecoflap"
    entity: str | None = None
    mode: str = field(default="offline", metadata={"choices": ("offline", "online", "disabled")})
    group: str | None = None
    tags: list[str] = field(default_factory=list)
