"""Options of NLVR2: calibration and task."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Nlvr2CalibrationOptions:
    """Calibration on sentences about two pictures.

    Attributes:
        path: folder with the published files and pictures; null names what is needed.
        split: train is the only choice.
        samples: number of sentences.
        name: what logs and result files call it.
    """

    path: str | None = None
    split: str = "train"
    samples: int = 128
    name: str = "nlvr2"


@dataclass(frozen=True)
class Nlvr2TaskOptions:
    """Share of sentences that are judged correctly, per split; the first split is the headline.

    Attributes:
        path: folder with the published files and pictures; null names what is needed.
        splits: dev, test1 or both.
        limit: sentences per split, evenly spaced; null for all.
        batch_size: sentences per forward pass.
        name: what logs and result files call it.
    """

    path: str | None = None
    splits: list[str] = field(default_factory=lambda: ["dev", "test1"])
    limit: int | None = None
    batch_size: int = 64
    name: str = "nlvr2"
