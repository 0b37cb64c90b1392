"""What a result says of its steps' costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ecoflap.storage.results import Result

Run = Callable[..., Result]

FROM_THE_STORE = {"calibrate", "evaluate_dense", "score"}


def cached(result: Result) -> set[str]:
    return {step for step, cost in result.steps.items() if cost["cached"]}


def test_steps_that_were_read_from_the_cache_say_so(run: Run, text_run: list[str], tmp_path: Path) -> None:
    assert not cached(run([*text_run, "sparsity=0.4"], "first"))
    assert cached(run([*text_run, "sparsity=0.5"], "second")) == FROM_THE_STORE
    assert cached(run([*text_run, "sparsity=0.5", "seed=1"], "seed")) == {"evaluate_dense"}
    assert not cached(run([*text_run, "sparsity=0.5", "cache_mode=off"], "off"))
    assert cached(Result.read(tmp_path / "second" / "result.json")) == FROM_THE_STORE
