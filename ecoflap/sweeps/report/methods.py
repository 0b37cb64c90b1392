"""The name of a run in a report: its pruner, its coarse stage, and whatever else distinguishes it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ecoflap.storage.results.identity import VOLATILE, is_path_key, leaves
from ecoflap.storage.sharing.base_model import model_name
from ecoflap.sweeps.report.runs import SWEEP, Run, short_paths

AXES = ("sparsity", "seed")
BESIDE = (*VOLATILE, "model.save", "model.save_lavis", "steps")
"""Config keys that change where or how a run executes, or which files it writes, but not what it measures."""
# The keys that are usually swept come first: of two that vary together only the first is part of the name.
ORDER = ("score", "allocation", "pruner", "towers", "skip_layers", "calibration", "task", "model")
SHORT = 6  # characters of a fingerprint in a model's name
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
        settings = _overrides(one for one in self.settings if not one[0].startswith("pruner."))
        return ", ".join(filter(None, [self._coarse_word, settings]))

    @property
    def setting(self) -> str:
        """The further keys as overrides."""
        return _overrides(self.settings)

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
        settings = [(key, *_number_first(value)) for key, value in self.settings]
        return self.pruner, self.score != "none", self.score, settings


def name_methods(runs: Sequence[Run]) -> list[Method]:
    """The method of each run, with as few config keys as it takes to distinguish them.

    Of keys that vary together, one is enough. Paths depend on the machine, and count only if two runs would
    otherwise have the same method, sparsity and seed, such as runs with two allocation files.
    """
    configs = [settings_of(run) for run in runs]
    methods = [Method(run.config["pruner"]["name"], _coarse(run), _always(run)) for run in runs]
    items = [item for config in configs for item in config.items()]
    paths_by_key = {key for key, value in items if is_path(key, value)}
    for key in sorted(
        {key for key, value in items if key not in AXES and not is_path(key, value)}, key=_rank
    ):
        methods = _split(methods, key, [shown(config.get(key)) for config in configs], set(methods))
    for key in sorted({key for key in paths_by_key if not key.startswith("model.")}, key=_rank):
        counts = Counter((method, run.sparsity, run.seed) for method, run in zip(methods, runs, strict=True))
        alike = {method for (method, *_), count in counts.items() if count > 1}
        paths = [shown(config.get(key)) for config in configs]
        short = {"null": "null", **short_paths(path for path in paths if path != "null")}
        methods = _split(methods, key, [short[path] for path in paths], alike)
    return methods


def name_models(runs: Sequence[Run]) -> list[str]:
    """The model of each run, with what else tells its weights from others of that name.

    The name is that on the model's card; equal weights have that of the first run. What else tells them is
    the choice of ``model`` if several read one path, the end of the path if the paths differ, and the start
    of the fingerprint if one path held several weights, such as of a checkpoint that was trained again.
    Settings such as the dtype, which change the fingerprint too, are left to the methods.
    """
    of_weights: dict[tuple[str, str], str] = {}
    choices, weights, paths, places = (defaultdict[str, set[str]](set) for _ in range(4))
    names = []
    for run in runs:
        choice = run.config["model"]["name"]
        same = (choice, _fingerprint(run) or _weights(run))
        names.append(name := of_weights.setdefault(same, model_name(run.config["model"], choice)))
        choices[name].add(choice)
        weights[name].add(_fingerprint(run))
        paths[name].add(_weights(run))
        places[_place(run)].add(_fingerprint(run))
    for index, (name, run) in enumerate(zip(names, runs, strict=True)):
        path, apart = _weights(run), []
        if len(choices[name]) > 1:
            apart.append(run.config["model"]["name"])
        if min(len(weights[name]), len(paths[name])) > 1:
            apart.append(short_paths(paths[name])[path])
        if len(places[_place(run)] - {""}) > 1:
            apart.append(_fingerprint(run)[:SHORT] or "unknown weights")
        if apart:
            names[index] = f"{name} ({', '.join(apart)})"
    return names


def _fingerprint(run: Run) -> str:
    """The fingerprint of a run's dense weights; empty if its record has none."""
    return str(run.result.model.get("fingerprint") or "")


def _place(run: Run) -> str:
    """The model that a run asked for: its paths and its settings."""
    settings = flatten(run.config["model"], "model")
    named = {key: shown(value) for key, value in settings.items() if not is_path(key, value)}
    return json.dumps([_weights(run), named], sort_keys=True)


def _weights(run: Run) -> str:
    """The paths of a run's weights."""
    paths = (value for key, value in run.config["model"].items() if is_path_key(key))
    return " + ".join(value for value in paths if isinstance(value, str))


def fixed_and_varying(
    runs: Sequence[Run], named: Collection[str] = ()
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The keys of ``settings_of`` with one value in all runs, and those with several.

    Args:
        runs: the runs.
        named: the paths among the keys that count, because they are part of names.
    """
    configs = [settings_of(run) for run in runs]
    keys = dict.fromkeys(
        key
        for config in configs
        for key in config
        if key in named or not any(is_path(key, one.get(key)) for one in configs)
    )
    values = {key: sorted({shown(config.get(key)) for config in configs}, key=_number_first) for key in keys}
    constant = {key: found[0] for key, found in values.items() if len(found) == 1}
    return constant, {key: found for key, found in values.items() if len(found) > 1}


def settings_of(run: Run) -> dict[str, Any]:
    """The values that determine what a run measured, by dotted key: only of the parts that the run used."""
    done, config = run.result.steps, dict(run.config)
    if "score" not in done:
        config["score"] = {"name": "none"}
    if "allocate" not in done:
        config.pop("allocation", None)
    if run.finetuner is None and "finetune" not in done:
        config.pop("finetune", None)
    data = run.result.data
    if data.get("calibration", {}).get("unused") and "finetune" not in data:  # no training on its split
        config.pop("calibration", None)
    return flatten(config)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values that determine what a run measures, by dotted key."""
    return {
        key: value
        for key, value in leaves(config, prefix)
        if key.rpartition(".")[2] != "_target_" and not any(f"{key}.".startswith(f"{one}.") for one in BESIDE)
    }


def is_path(key: str, value: Any) -> bool:
    """Whether a config value is a path in a file system or on a hub."""
    named = is_path_key(key) and not isinstance(value, int)  # images=8 is a number of them
    return named or (isinstance(value, str) and value.startswith("/"))


def shown(value: Any) -> str:
    """A config value as on the command line; 1.0 is shown as 1."""
    whole = isinstance(value, float) and value.is_integer()
    return value if isinstance(value, str) else json.dumps(int(value) if whole else value)


def _overrides(settings: Iterable[tuple[str, str]]) -> str:
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


def _rank(key: str) -> tuple[int, bool, str]:
    """Sort key of config keys: by group, a group's name before its options."""
    group = key.partition(".")[0]
    return (ORDER.index(group) if group in ORDER else len(ORDER)), not key.endswith(".name"), key


def _number_first(value: str) -> tuple[bool, float, str]:
    """Sort key of values: numbers by size, then words."""
    try:
        return False, float(value), ""
    except ValueError:
        return True, 0.0, value
