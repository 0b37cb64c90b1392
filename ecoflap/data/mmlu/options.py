"""Options of MMLU: calibration and task."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MmluCalibrationOptions:
    """Calibration on questions with the letters of their answers, from a split other than test.

    Attributes:
        path: folder in MMLU's layout; null for MMLU from the hub.
        split: split that the questions are of: val, dev or train.
        shots: answered examples of the dev split before each question.
        samples: number of questions.
        name: what logs and result files call it.
    """

    path: str | None = None
    split: str = "val"
    shots: int = 0
    samples: int = 128
    name: str = "mmlu"


@dataclass(frozen=True)
class MmluTaskOptions:
    """Accuracy and calibration errors on the test questions.

    Attributes:
        path: folder in MMLU's layout; null for MMLU from the hub.
        shots: answered examples of the dev split before each question; fewer where the prompt would not fit.
        max_tokens: length of the longest prompt, in tokens.
        limit: questions per subject, evenly spaced; null for all.
        batch_size: questions per forward pass.
        name: what logs and result files call it.
    """

    path: str | None = None
    shots: int = 5
    max_tokens: int = 2048
    limit: int | None = None
    batch_size: int = 8
    name: str = "mmlu"
