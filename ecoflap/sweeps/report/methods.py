"""The name of a run in a report: its pruner, its coarse stage, and whatever else distinguishes it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ecoflap.sweeps.report.runs import SWEEP, Run, short_paths
from ecoflap.sweeps.report.settings import AXES, is_class, is_path, number_first, settings_of, shown

# The keys that are usually swept come first: of two that vary together only the first is part of the name.
ORDER = ("score", "allocation", "pruner", "towers", "skip_layers", "calibration", "task", "model")
COARSE = {"none": "uniform", "file": "from a file", "global": ""}


@dataclass(frozen=True)
class Method:
    """The unit of comparison: runs of one method differ in sparsity and seed only.

    Attributes:
        pruner: the fine stage.
        score: the coarse stage: the scorer, an allocation that takes no scores (``file`` for one from a
            file), ``none`` if it is uniform, or ``global`` if all weights compete and there is none.
        settings: the further config keys that distinguish methods, each with its value as on the command
            line.
    """

    pruner: str
    score: str
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """The method's name."""
        return ", ".join(filter(None, [self.pruner, self._coarse_word, self.setting]))

    @property
    def coarse(self) -> str:
        """The name of what decides the block sparsities: the coarse stage, or a pruner that has none."""
        if self.score == "global":
            return self.label
        settings = overrides(one for one in self.settings if not one[0].startswith("pruner."))
        return ", ".join(filter(None, [self._coarse_word, settings]))

    @property
    def setting(self) -> str:
        """The further keys as overrides."""
        return overrides(self.settings)

    @property
    def _coarse_word(self) -> str:
        return COARSE.get(self.score, self.score.replace("_", " "))

    @property
    def sweep(self) -> str | None:
        """The name of its sweep; None if there is only one."""
        return dict(self.settings).get(SWEEP)

    @property
    def order(self) -> tuple[Any, ...]:
        """Sort key: uniform first, numbers by size."""
        settings = [(key, *number_first(value)) for key, value in self.settings]
        return self.pruner, self.score != "none", self.score, settings


def name_methods(runs: Sequence[Run]) -> list[Method]:
    """The method of each run, with as few config keys as it takes to distinguish them.

    Of keys that vary together, one is enough. Paths depend on the machine, and count only if two runs would
    otherwise have the same method, sparsity and seed, such as runs with two allocation files.
    """
    configs = [settings_of(run) for run in runs]
    items = [item for config in configs for item in config.items()]
    of_paths = {key for key, value in items if is_path(key, value) and not key.startswith("model.")}
    others = {key for key, value in items if key not in AXES and not is_path(key, value)}
    methods = [Method(run.config["pruner"]["name"], _coarse(run), _always(run)) for run in runs]
    for key in sorted(others, key=_rank):
        methods = _split(methods, key, [shown(config.get(key)) for config in configs], set(methods))
    for key in sorted(of_paths, key=_rank):
        counts = Counter((method, run.sparsity, run.seed) for method, run in zip(methods, runs, strict=True))
        alike = {method for (method, *_), count in counts.items() if count > 1}
        paths = [shown(config.get(key)) for config in configs]
        short = {"null": "null", **short_paths(path for path in paths if path != "null")}
        methods = _split(methods, key, [short[path] for path in paths], alike)
    return methods


def overrides(settings: Iterable[tuple[str, str]]) -> str:
    """Settings as on the command line."""
    return " ".join(f"{key}={value}" for key, value in settings)


def _always(run: Run) -> tuple[tuple[str, str], ...]:
    """What is part of every method's name: its sweep, where several are compared, and what fine-tuned it."""
    sweep = ((SWEEP, run.config[SWEEP]),) if SWEEP in run.config else ()
    return sweep if run.finetuner is None else (*sweep, ("finetune", run.finetuner))


def _coarse(run: Run) -> str:
    """The coarse stage's name; that of the scorer for a run that allocated nothing."""
    if run.result.sparsity.get("allocated_by") == "pruner":
        return "global"
    return str(run.result.sparsity.get("coarse") or run.config["score"]["name"])


def _split(
    methods: Sequence[Method], key: str, values: Sequence[str], among: Collection[Method]
) -> list[Method]:
    """Add a key to the name of those methods for which it has several values.

    Args:
        methods: the method of each run.
        key: the config key.
        values: its value in each run.
        among: the methods that may be split.
    """
    found = defaultdict(set)
    for method, value in zip(methods, values, strict=True):
        found[method].add(value)
    result = []
    for method, value in zip(methods, values, strict=True):
        ambiguous = method in among and len(found[method]) > 1
        settings = (*method.settings, (key, value)) if ambiguous else method.settings
        result.append(replace(method, settings=settings))
    return result


def _rank(key: str) -> tuple[int, bool, bool, str]:
    """Sort key of config keys: by group, a group's name before its options, and its class behind them."""
    group = key.partition(".")[0]
    return (
        (ORDER.index(group) if group in ORDER else len(ORDER)),
        not key.endswith(".name"),
        is_class(key),
        key,
    )
