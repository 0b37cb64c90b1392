"""A cached number is read again only by the code that computed it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.cli import forked

SCORER = """
from dataclasses import dataclass
from typing import Any

from ecoflap.score.protocol import Scorer
from ecoflap.score.scores import Average, collect
from formula import better


@dataclass(frozen=True)
class Sizes(Scorer):
    samples: int = 4
    batch_size: int = 4
    name: str = "sizes"

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}

    def __call__(self, model, calibration, seed):
        averages = {}
        for layer in model.layers:
            averages[layer.name] = Average()
            norm = layer.matrix().norm().item()
            averages[layer.name].add(norm if better(norm, 5.0) else 1.0, 1.0, layer.name)
        return collect(self.name, averages, {})


class Even(Sizes):
    def __call__(self, model, calibration, seed):
        found = {layer.name: Average([1.0], [1.0]) for layer in model.layers}
        return collect(self.name, found, {})
"""
FORMULA = "def better(one, other):\n    return one > other\n"
COARSE = "steps=[calibrate,score,allocate]"
STATISTIC = """
from ecoflap.blocks.statistics import MeanSquare


class Largest(MeanSquare):
    def update(self, inputs):
        super().update(inputs * 1.0)
"""
PRUNER = """
from dataclasses import dataclass
from typing import ClassVar

from ecoflap.ops import wanda_metric
from ecoflap.prune.by_metric import ByMetric
import statistic_of


@dataclass(frozen=True)
class Own(ByMetric):
    mask: str = "row"
    name: str = "own"
    statistic: ClassVar = statistic_of.Largest

    def metric(self, weight, statistic):
        return wanda_metric(weight, statistic.value)
"""


def test_another_formula_reads_no_score_of_the_first(text_run: list[str], tmp_path: Path) -> None:
    (tmp_path / "conf" / "score").mkdir(parents=True)
    (tmp_path / "conf" / "score" / "sizes.yaml").write_text(
        "_target_: my_scorer.Sizes\nname: sizes\nsamples: 4\n"
    )
    (tmp_path / "my_scorer.py").write_text(SCORER)
    (tmp_path / "formula.py").write_text(FORMULA)

    first, again = run(tmp_path, text_run, "first"), run(tmp_path, text_run, "again")
    assert "scores: computing" in first[0]
    assert "scores: read from the store" in again[0]
    assert first[1] == again[1]

    even = run(tmp_path, text_run, "even", ["score=sizes", "score._target_=my_scorer.Even", COARSE])
    assert "scores: computing" in even[0]  # another class of the same file and options
    assert even[1] != first[1]

    (tmp_path / "formula.py").write_text(FORMULA.replace(">", "<"))
    flipped = run(tmp_path, text_run, "flipped")
    assert "scores: computing" in flipped[0]
    assert flipped[1] != first[1]


def test_another_statistic_of_the_same_name_is_measured_anew(text_run: list[str], tmp_path: Path) -> None:
    """Statistics of dense inputs are shared by runs; those of a pruner from outside are a file of its own."""
    (tmp_path / "conf" / "pruner").mkdir(parents=True)
    (tmp_path / "conf" / "pruner" / "own.yaml").write_text("_target_: my_pruner.Own\nname: own\n")
    (tmp_path / "my_pruner.py").write_text(PRUNER)
    (tmp_path / "statistic_of.py").write_text(STATISTIC)
    options = ["pruner=own", "score=none", "propagate=dense", "steps=[calibrate,allocate,prune]"]
    assert "statistics: computing" in run(tmp_path, text_run, "first", options)[0]
    assert "statistics: read from the store" in run(tmp_path, text_run, "again", options)[0]
    (tmp_path / "statistic_of.py").write_text(STATISTIC.replace("1.0", "2.0"))
    assert "statistics: computing" in run(tmp_path, text_run, "other", options)[0]


def run(
    folder: Path,
    text_run: list[str],
    name: str,
    options: Sequence[str] = ("score=sizes", COARSE),
) -> tuple[str, dict[str, int]]:
    """What a run of parts in ``folder`` prints, and the counts that it allocates."""
    shared = [
        override for override in text_run if not override.startswith(("score.", "score=", "pruner", "steps"))
    ]
    parts = ["--config-dir", "conf", *options, f"hydra.run.dir={folder / name}"]
    done = forked.main([*parts, *shared], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    counts: dict[str, int] = json.loads((folder / name / "allocation.json").read_text())["keep"]
    return done.stdout + done.stderr, counts
