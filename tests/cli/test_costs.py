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


def test_an_allocation_says_how_much_of_it_was_read_from_the_cache(run: Run, text_run: list[str]) -> None:
    searched = [*text_run, "allocation=in_context", "score=none", "allocation.steps=1"]
    first = run([*searched, "sparsity=0.55"], "first")
    assert not cached(first)
    again = run([*searched, "sparsity=0.55"], "again")
    assert cached(again) == {"calibrate", "evaluate_dense", "allocate"}
    count = first.steps["allocate"]["computed"]
    assert (first.steps["allocate"]["recalled"], count > 0) == (0, True)
    assert (again.steps["allocate"]["recalled"], again.steps["allocate"]["computed"]) == (count, 0)
    further = run(
        [*searched, "sparsity=0.6"], "further"
    )  # takes the first steps of another target from there
    assert cached(further) == {"calibrate", "evaluate_dense"}
    assert further.steps["allocate"]["recalled"] > 0
    assert further.steps["allocate"]["computed"] > 0
