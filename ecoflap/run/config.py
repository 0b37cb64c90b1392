"""The run's config: typed, checked before any work, and light to import (no torch), so that ``--help``
answers at once.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ecoflap.errors import UserError, did_you_mean, wrong_type
from ecoflap.run import registry, tables
from ecoflap.run.moved import current_place
from ecoflap.storage.file_names import SNAPSHOT

STEPS = ("calibrate", "score", "allocate", "prune", "finetune", "evaluate")
OPTIONAL_STEPS = ("finetune",)
METHODS = {
    "model": ("load",),
    "calibration": ("load",),
    "score": ("__call__",),
    "allocation": ("__call__",),
    "pruner": ("together", "prune"),
    "finetune": ("finetune",),
    "task": ("load",),
    "tracking": ("start",),
}
"""What the class of each group has to have, one of them where there are two."""


@dataclass
class RuntimeConfig:
    """How a run uses the machine; changes no result.

    Attributes:
        offload: where blocks and hidden states are while nobody uses them: none (on the device), cpu, or disk
            (the model's own safetensors shards).
    """

    offload: str = field(default="none", metadata={"choices": ("none", "cpu", "disk")})


@dataclass
class RunConfig:
    """What a run does; the groups (model, score, ...) are the dataclasses that their ``_target_``
    names.

    Attributes:
        sparsity: share of the prunable weights to remove, in [0, 1).
        seed: seed of every random draw.
        towers: the towers to prune; null for all but projections (merger, perceiver, connector, Q-Former) and
            what no loss runs.
        skip_layers: regular expressions of layers to leave dense.
        steps: which of calibrate, score, allocate, prune, finetune and evaluate to run, in this order.
        batch_size: samples per forward pass of the fine stage.
        propagate: whether the inputs that the fine stage looks at come from pruned predecessors, or from
            dense ones in one pass (another result).
        device: where the model is computed: auto (the accelerator where there is one), cpu, cuda, cuda:1, ...
        inspect: only print what would be pruned; no weights are loaded.
        runtime: how the machine is used.
        cache: folder of the stage cache, which keeps what a step has computed for other runs.
        cache_mode: use reads and writes the stage cache, refresh writes it anew, readonly writes nothing, off
            does without.
        resume: go on from what a run of the same config left in this folder; false removes it.
    """

    model: Any = MISSING
    calibration: Any = MISSING
    score: Any = MISSING
    allocation: Any = MISSING
    pruner: Any = MISSING
    finetune: Any = MISSING
    task: Any = MISSING
    tracking: Any = MISSING
    sparsity: float = MISSING
    seed: int = 0
    towers: list[str] | None = None
    skip_layers: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=lambda: [step for step in STEPS if step not in OPTIONAL_STEPS])
    batch_size: int = 16
    propagate: str = field(default="pruned", metadata={"choices": ("pruned", "dense")})
    device: str = "auto"
    inspect: bool = False
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    cache: str = "outputs/cache"
    cache_mode: str = field(default="use", metadata={"choices": ("use", "refresh", "readonly", "off")})
    resume: bool = True


def register() -> None:
    """Make ``run_config``, the options of all parts, the rows of the tables and resolvers known to Hydra."""
    ConfigStore.instance().store(name="run_config", node=RunConfig)
    registry.register()
    tables.register()
    OmegaConf.register_new_resolver("package_file", package_file, replace=True)
    OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)


def check_merged() -> None:
    """Refuse a list of choices of one group, which Hydra has merged into one.

    Raises:
        UserError: if Hydra has merged several choices into one.
    """
    if not HydraConfig.initialized():
        return
    chosen = HydraConfig.get().runtime.choices
    if chosen.get("task") is None:
        raise UserError(
            "a list of tasks is understood as task=[one,other] on the command line only; elsewhere, name a"
            " suite such as task=easy_suite"
        )
    for group in METHODS:
        if chosen.get(group) is None:
            raise UserError(
                f"{group}=[...]: a run has one {group}, and Hydra would merge several into one; choose one,"
                " or sweep over them with -m"
            )


def package_file(path: str) -> str:
    """The place of a file or folder that ships inside the package; a copy of the code leaves these where it
    was copied from.
    """
    package = Path(str(files("ecoflap")))
    snapshot = package.parent / SNAPSHOT
    if snapshot.is_file():
        package = Path(json.loads(snapshot.read_text(encoding="utf-8"))["origin"]) / package.name
    return str(package / path)


def sweep_name() -> str | None:
    """The name of the sweep's folder in a multirun, null in a single run."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir).name


def submits_without_sweep() -> str | None:
    """A message about a single run that asks for a sweep or a cluster, which it would ignore; null where all
    is well.
    """
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return None
    chosen: Any = HydraConfig.get().runtime.choices
    if chosen.get("sweep") is not None:
        return (
            f"+sweep={chosen['sweep']} describes a sweep, and this is a single run, which would ignore it:"
            " add -m"
        )
    if (cluster := chosen.get("cluster")) not in (None, "none"):
        return (
            f"cluster={cluster} submits sweeps, and this is a single run, which would run on this machine:"
            " add -m (a sweep may have one job)"
        )
    return None


def how_to_go_on() -> str:
    """What starts this run, or the sweep that it belongs to, where it was stopped."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        return f"ecoflap status {hydra.sweep.dir} --rerun-failed goes on from here"
    return f"the same command with hydra.run.dir={hydra.runtime.output_dir} goes on from here"


def given_options() -> list[str]:
    """The overrides of this run's config, from the command line or a sweep; none where Hydra has not started
    it.
    """
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def runs_follow() -> bool:
    """Whether this process does the runs of a sweep one after the other."""
    return sweep_name() is not None and str(HydraConfig.get().launcher._target_).endswith(
        ".InProcessLauncher"
    )


def build(group: str, node: DictConfig) -> Any:
    """Make the object that a config group describes, its values checked against the types of the dataclass
    that it names.

    Raises:
        UserError: an unknown key, a missing value, a wrong type, or no class of this group; names the full
            key.
    """
    target = _target(group, node)
    schema = OmegaConf.structured(target)
    OmegaConf.set_readonly(
        schema, False
    )  # frozen dataclasses give read-only configs; this one is a form to fill in
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    del values["_target_"]
    try:
        return OmegaConf.to_object(OmegaConf.merge(schema, values))
    except OmegaConfBaseException as error:
        raise UserError(_explain(group, error, values, target)) from None


def _target(group: str, node: Any) -> type:
    """The class that a config group names.

    Raises:
        UserError: it names none, or one that can't be of this group.
    """
    name = OmegaConf.select(node, "_target_") if OmegaConf.is_dict(node) else None
    if not isinstance(name, str) or "." not in name:
        raise UserError(
            f"{group}._target_={name} names no class; the file of {group}=OPTION wants a line _target_:"
            " module.Class"
        )
    module_name, _, class_name = current_place(name).rpartition(".")
    try:
        target = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{group}._target_={name} can't be loaded here ({error}); check its name, install what it needs,"
            " or a newer transformers"
        ) from error
    wanted = METHODS[group.split(".")[0]]
    if not (isinstance(target, type) and is_dataclass(target)):
        raise UserError(
            f"{group}._target_={name} is no dataclass; a {group} is a dataclass with {' or '.join(wanted)},"
            " as in ecoflap"
        )
    if not any(callable(getattr(target, method, None)) for method in wanted):
        raise UserError(
            f"{group}._target_={name} is no {group}: it has no method {' or '.join(wanted)}; name a class of"
            " this group"
        )
    if missing := sorted(getattr(target, "__abstractmethods__", ())):
        raise UserError(
            f"{group}._target_={name} has no {' and no '.join(missing)} of its own, which every {group} needs"
        )
    return target


def _explain(group: str, error: OmegaConfBaseException, values: dict[Any, Any], target: type) -> str:
    key, first = (
        f"{group}.{error.full_key}" if error.full_key else group,
        str(error.msg or error).splitlines()[0],
    )
    known = [entry.name for entry in fields(target) if entry.init]
    if "mandatory" in first:
        return f"{key} is required: add {key}=VALUE"
    if "not in" in first:
        return f"{key} is no option of this {group}; {did_you_mean(str(error.key), known)}{_source(key)}"
    name = str(error.full_key)
    if name in values and name in known:
        return wrong_type(key, values[name], kind_of(get_type_hints(target)[name]))
    return f"{key}: {first}"


def kind_of(hint: Any) -> str:
    """The type of an option, as ``wrong_type`` takes it."""
    if get_origin(hint) is list or any(get_origin(kind) is list for kind in get_args(hint)):
        return "list"
    return next(
        (kind.__name__ for kind in (hint, *get_args(hint)) if kind in (bool, int, float, str)),
        "value of its type",
    )


def _source(key: str) -> str:
    """Who sets an option that isn't on the command line, such as one that an experiment has for the choice
    that was replaced.
    """
    if not HydraConfig.initialized() or any(
        override.lstrip("+").startswith(f"{key}=") for override in HydraConfig.get().overrides.task
    ):
        return ""
    experiment = HydraConfig.get().runtime.choices.get("experiment")
    return f". +experiment={experiment} sets it; leave it out with ~{key}" if experiment else ""
