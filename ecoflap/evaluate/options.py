"""Options of the tasks that belong to no data set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LmmsEvalOptions:
    """Tasks or groups of lmms-eval, or of the user's own YAML files, for models that read pictures.

    Attributes:
        harness_tasks: their names, such as pope.
        limit: examples per task, from the first, in a sorted set all of one category; null for all.
        include_path: folder with YAML tasks of one's own.
        batch_size: questions about one picture per generation; changes nothing beyond rounding.
        name: what logs and result files call it.
    """

    harness_tasks: list[str]
    limit: int | None = None
    include_path: str | None = None
    batch_size: int = 8
    name: str = "lmms_eval"


@dataclass(frozen=True)
class LmEvalOptions:
    """Tasks or groups of lm-evaluation-harness, or of the user's own YAML files.

    Attributes:
        harness_tasks: their names, such as hellaswag.
        num_fewshot: answered examples before each question; null for each task's own number. A task whose own
            number is 0 keeps it.
        limit: examples per task, evenly spaced, or from the first before lm_eval 0.4.9; null for all.
        include_path: folder with YAML tasks of one's own.
        batch_size: requests per forward pass.
        name: what logs and result files call it.
    """

    harness_tasks: list[str]
    num_fewshot: int | None = None
    limit: int | None = None
    include_path: str | None = None
    batch_size: int = 8
    name: str = "lm_eval"
