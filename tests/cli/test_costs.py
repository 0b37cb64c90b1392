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


def test_an_allocation_all_of_which_was_read_from_the_cache_says_so(run: Run, text_run: list[str]) -> None:
    searched = [*text_run, "allocation=in_context", "score=none", "allocation.steps=1"]
    assert not cached(run([*searched, "sparsity=0.3"], "first"))
    assert cached(run([*searched, "sparsity=0.3"], "again")) == {"calibrate", "evaluate_dense", "allocate"}
    further = run(
        [*searched, "sparsity=0.4"], "further"
    )  # takes the first steps of another target from there
    assert cached(further) == {"calibrate", "evaluate_dense"}
