"""What to call a run in a report: its pruner, its coarse stage, and whatever else sets it apart from the
other runs.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from ecoflap.storage.results.identity import VOLATILE
from ecoflap.sweeps.report.runs import Run

AXES = ("sparsity", "seed")
BESIDE = (*VOLATILE, "model.save", "model.save_lavis", "steps")
"""Config keys that change where or how a run happens, or what it leaves behind, but not what it measures."""
PATHS = (
    "path",
    "folder",
    "file",
    "include_path",
    "checkpoint",
    "lavis_checkpoint",
    "vision_from",
    "language_from",
)
# The keys that people sweep come first: of two that vary together only the first is part of the name.
ORDER = ("score", "allocation", "pruner", "towers", "skip_layers", "calibration", "task", "model")
COARSE = {"none": "uniform", "file": "from a file", "global": ""}


@dataclass(frozen=True)
class Method:
    """What is compared: runs of one method differ in sparsity and seed only.

    Attributes:
        pruner: the fine stage.
        score: the coarse stage; ``file`` for a given allocation, ``global`` where all weights compete and
            there is none.
        settings: the further config keys that tell methods apart, each with its value as a person would type
            it.
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
        return ", ".join(
            filter(
                None,
                [
                    self._coarse_word,
                    _overrides(one for one in self.settings if not one[0].startswith("pruner.")),
                ],
            )
        )

    @property
    def setting(self) -> str:
        """The further keys as overrides."""
        return _overrides(self.settings)

    @property
    def _coarse_word(self) -> str:
        return COARSE.get(self.score, self.score.replace("_", " "))

    @property
    def order(self) -> tuple[Any, ...]:
        """Sorts methods: uniform first, numbers by size."""
        return (
            self.pruner,
            self.score != "none",
            self.score,
            [(key, *_number_first(value)) for key, value in self.settings],
        )


def name_methods(runs: Sequence[Run]) -> list[Method]:
    """The method of each run; as few config keys as it takes to tell them apart, so that keys which vary
    together count once.

    Paths depend on the machine and count only where two runs would otherwise be the same run, as two
    allocation files are.
    """
    configs = [flatten(run.config) for run in runs]
    methods = [Method(run.config["pruner"]["name"], _coarse(run)) for run in runs]
    for key in sorted(
        {key for config in configs for key in config if key not in AXES and not is_path(key, config[key])},
        key=_rank,
    ):
        methods = _split(methods, key, [shown(config.get(key)) for config in configs], set(methods))
    for key in sorted(
        {
            key
            for config in configs
            for key in config
            if is_path(key, config[key]) and not key.startswith("model.")
        },
        key=_rank,
    ):
        counts = Counter((method, run.sparsity, run.seed) for method, run in zip(methods, runs, strict=True))
        alike = {method for (method, *_), count in counts.items() if count > 1}
        paths = [shown(config.get(key)) for config in configs]
        short = {"null": "null", **_short(path for path in paths if path != "null")}
        methods = _split(methods, key, [short[path] for path in paths], alike)
    return methods


def name_models(runs: Sequence[Run]) -> list[str]:
    """The model of each run; with the end of its path where one name stands for several weights."""
    weights, paths = defaultdict(set), defaultdict(set)
    for run in runs:
        weights[run.config["model"]["name"]].add(run.result.model.get("fingerprint"))
        paths[run.config["model"]["name"]].add(_weights(run))
    names = []
    for run in runs:
        name, path = run.config["model"]["name"], _weights(run)
        names.append(
            f"{name} ({_short(paths[name])[path]})" if min(len(weights[name]), len(paths[name])) > 1 else name
        )
    return names


def _weights(run: Run) -> str:
    """Where a run's weights come from."""
    return " + ".join(
        str(run.config["model"][key]) for key in PATHS if run.config["model"].get(key) is not None
    )


def differences(
    runs: Sequence[Run], named: Collection[str] = ()
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The config keys that have one value in all runs, and those that have several; no ``BESIDE``, and of
    paths only those that name methods.
    """
    configs = [flatten(run.config) for run in runs]
    keys = dict.fromkeys(
        key
        for config in configs
        for key in config
        if key in named or not any(is_path(key, one.get(key)) for one in configs)
    )
    values = {key: sorted({shown(config.get(key)) for config in configs}, key=_number_first) for key in keys}
    return {key: found[0] for key, found in values.items() if len(found) == 1}, {
        key: found for key, found in values.items() if len(found) > 1
    }


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of everything that says what a run measures."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if key in BESIDE or name == "_target_":
            continue
        flat |= flatten(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return flat


def is_path(key: str, value: Any) -> bool:
    """Whether a config value is a place in a file system or on a hub."""
    return key.rpartition(".")[2] in PATHS or (isinstance(value, str) and value.startswith("/"))


def shown(value: Any) -> str:
    """A config value as a person would type it."""
    return value if isinstance(value, str) else json.dumps(value)


def _overrides(settings: Iterable[tuple[str, str]]) -> str:
    return " ".join(f"{key}={value}" for key, value in settings)


def _coarse(run: Run) -> str:
    """The coarse stage's name."""
    config = run.config
    if _allocated_by(run) == "pruner":
        return "global"
    return "file" if config.get("allocation", {}).get("name") == "file" else str(config["score"]["name"])


def _allocated_by(run: Run) -> str:
    """What decided how many weights each layer keeps; older records tell it by their pruner's place alone."""
    if (named := run.result.sparsity.get("allocated_by")) is not None:
        return str(named)
    return "pruner" if ".whole_model." in str(run.config["pruner"].get("_target_")) else "allocation"


def _split(
    methods: Sequence[Method], key: str, values: Sequence[str], among: Collection[Method]
) -> list[Method]:
    """Add a key to the name of those methods of which it has several values."""
    found = defaultdict(set)
    for method, value in zip(methods, values, strict=True):
        found[method].add(value)
    return [
        replace(method, settings=(*method.settings, (key, value)))
        if method in among and len(found[method]) > 1
        else method
        for method, value in zip(methods, values, strict=True)
    ]


def _short(paths: Iterable[str]) -> dict[str, str]:
    """Paths without the folders that they share at the start and at the end."""
    parts = {path: list(PurePath(path).parts) or [path] for path in paths}
    lists = list(parts.values())
    while all(len(one) > 1 for one in lists) and len({one[0] for one in lists}) == 1:
        lists = [one[1:] for one in lists]
    while all(len(one) > 1 for one in lists) and len({one[-1] for one in lists}) == 1:
        lists = [one[:-1] for one in lists]
    return {path: "/".join(one) for path, one in zip(parts, lists, strict=True)}


def _rank(key: str) -> tuple[int, bool, str]:
    """Where a key stands: by its group, a group's name before its options."""
    group = key.partition(".")[0]
    return (ORDER.index(group) if group in ORDER else len(ORDER)), not key.endswith(".name"), key


def _number_first(value: str) -> tuple[bool, float, str]:
    """Sorts values as people do: 2 before 10, numbers before words."""
    try:
        return False, float(value), ""
    except ValueError:
        return True, 0.0, value
