"""The config of a run, typed and checked before any work; imports no torch, so that ``--help`` is fast."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ecoflap.errors import UserError, did_you_mean, wrong_type
from ecoflap.run import registry, tables
from ecoflap.run.invocation import run_label, sweep_name
from ecoflap.run.moved import current_place
from ecoflap.storage.file_names import CACHE
from ecoflap.storage.installation import package_origin

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
"""{group: the methods of which its class must have at least one}."""


@dataclass
class RuntimeConfig:
    """How a run uses the machine; changes no result.

    Attributes:
        offload: where blocks and hidden states are while they are not in use: none (on the device), cpu, or
            disk (the model's own safetensors shards).
    """

    offload: str = field(default="none", metadata={"choices": ("none", "cpu", "disk")})


@dataclass
class RunConfig:
    """What a run does; each group (model, score, ...) is the dataclass that its ``_target_`` names.

    Attributes:
        sparsity: share of the prunable weights to remove, in [0, 1).
        seed: seed of all random draws.
        towers: the towers to prune; null for all except projections (merger, perceiver, connector, Q-Former)
            and towers that the loss never runs.
        skip_layers: regular expressions of layers to leave dense.
        steps: which of calibrate, score, allocate, prune, finetune and evaluate to run, in this order.
        batch_size: samples per forward pass of the fine stage.
        propagate: what comes before a layer when the fine stage measures its inputs: pruned blocks and its
            own block dense (pruned), everything pruned (layer; one pass where a batch holds all samples),
            everything pruned and the weights compensated for that before they are pruned (compensated), or
            dense blocks (dense; one pass). Each gives a different result. auto is dense for a pruner that
            leaves kept weights unchanged with an allocation that prunes in trials, else pruned.
        tokens: which tokens count when the fine stage or an allocation measures inputs, in towers that read
            text and visual tokens: all, text, answer, or text and the visual tokens that a block moves most
            (atv). Each gives a different result; scores count all.
        device: the device that runs the model: auto (the accelerator if there is one), cpu, cuda, cuda:1, ...
        inspect: only print what would be pruned; no weights are loaded.
        runtime: how the machine is used.
        cache: folder of the stage cache, which stores the results of steps for other runs.
        cache_mode: whether to read and write the stage cache (use), to overwrite it (refresh), to read it
            only (readonly), or not to use it (off).
        resume: resume a stopped run of the same config in this folder; false deletes its files.
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
    propagate: str = field(
        default="auto", metadata={"choices": ("auto", "pruned", "layer", "compensated", "dense")}
    )
    tokens: str = field(default="all", metadata={"choices": ("all", "text", "answer", "atv")})
    device: str = "auto"
    inspect: bool = False
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    cache: str = CACHE
    cache_mode: str = field(default="use", metadata={"choices": ("use", "refresh", "readonly", "off")})
    resume: bool = True


def register() -> None:
    """Register ``run_config``, the options of parts, the rows of tables and our resolvers with Hydra."""
    ConfigStore.instance().store(name="run_config", node=RunConfig)
    registry.register()
    tables.register()
    OmegaConf.register_new_resolver("package_file", package_file, replace=True)
    OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)
    OmegaConf.register_new_resolver("run_label", run_label, replace=True)


def check_merged() -> None:
    """Refuse a list of choices of one group, which Hydra merges into one.

    Raises:
        UserError: if there is such a list.
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
    """The path of a file or folder inside the package; in a code snapshot, its path in the original code."""
    return str(package_origin() / path)


def build(group: str, node: DictConfig) -> Any:
    """Build the object that a config group describes, with values checked against the types of its dataclass.

    Raises:
        UserError: if a key is unknown, a value is missing or of a wrong type, or the class does not fit the
            group.
    """
    target = _target(group, node)
    schema = OmegaConf.structured(target)
    OmegaConf.set_readonly(schema, False)  # frozen dataclasses give read-only configs
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
        UserError: if it names none, or one that does not fit the group.
    """
    name = OmegaConf.select(node, "_target_") if OmegaConf.is_dict(node) else None
    if not isinstance(name, str) or "." not in name:
        raise UserError(
            f"{group}._target_={name} is not a class; add a line `_target_: module.Class` to the file of"
            f" {group}=OPTION"
        )
    module_name, _, class_name = current_place(name).rpartition(".")
    try:
        target = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        top, own = module_name.partition(".")[0], ""
        if isinstance(error, ModuleNotFoundError) and error.name == top:
            own = f"; a part of your own needs --config-dir FOLDER, with {top}.py beside the folder"
        raise UserError(
            f"{group}._target_={name} can't be loaded here ({error}); check its name, install what it needs,"
            f" or a newer transformers{own}"
        ) from error
    wanted = METHODS[group.split(".")[0]]
    if not (isinstance(target, type) and is_dataclass(target)):
        raise UserError(
            f"{group}._target_={name} is not a dataclass; a {group} is one with {' or '.join(wanted)},"
            " as in ecoflap"
        )
    if not any(callable(getattr(target, method, None)) for method in wanted):
        raise UserError(
            f"{group}._target_={name} is not a valid {group}: it has no method {' or '.join(wanted)}; name a"
            " class of this group"
        )
    if missing := sorted(getattr(target, "__abstractmethods__", ())):
        raise UserError(
            f"{group}._target_={name} has no {' and no '.join(missing)} of its own, which every {group} needs"
        )
    return target


def _explain(group: str, error: OmegaConfBaseException, values: dict[Any, Any], target: type) -> str:
    """A message about a value that OmegaConf refuses."""
    key = f"{group}.{error.full_key}" if error.full_key else group
    first = str(error.msg or error).splitlines()[0]
    known = [entry.name for entry in fields(target) if entry.init]
    if "mandatory" in first:
        return f"{key} is required: add {key}=VALUE"
    if "not in" in first:
        return f"{key} is not an option of this {group}; {did_you_mean(str(error.key), known)}{_source(key)}"
    name = str(error.full_key)
    if name in values and name in known:
        return wrong_type(key, values[name], kind_of(get_type_hints(target)[name]))
    if (entry := re.fullmatch(r"(\w+)\[(\d+)\]", name)) and entry[1] in values:
        return wrong_type(
            key, values[entry[1]][int(entry[2])], _kind_of_entry(get_type_hints(target)[entry[1]])
        )
    return f"{key}: {first}"


def kind_of(hint: Any) -> str:
    """The type of an option, as ``wrong_type`` takes it."""
    if get_origin(hint) is list or any(get_origin(kind) is list for kind in get_args(hint)):
        return "list"
    plain = (kind.__name__ for kind in (hint, *get_args(hint)) if kind in (bool, int, float, str))
    return next(plain, "value of its type")


def _kind_of_entry(hint: Any) -> str:
    """The type of the entries of a list, as ``wrong_type`` takes it."""
    lists = [kind for kind in (hint, *get_args(hint)) if get_origin(kind) is list]
    return kind_of(get_args(lists[0])[0]) if lists else kind_of(hint)


def _source(key: str) -> str:
    """The end of a message about an option that no one typed: it may come from the chosen experiment."""
    if not HydraConfig.initialized():
        return ""
    if any(override.lstrip("+").startswith(f"{key}=") for override in HydraConfig.get().overrides.task):
        return ""
    experiment = HydraConfig.get().runtime.choices.get("experiment")
    return f". +experiment={experiment} sets it; leave it out with ~{key}" if experiment else ""
