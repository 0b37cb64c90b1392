"""Build the parts of a run from its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ecoflap.distributed.shared_store import SharedStore
from ecoflap.errors import UserError
from ecoflap.evaluate.protocol import Task
from ecoflap.prune import driver
from ecoflap.run.config import RunConfig, RuntimeConfig
from ecoflap.run.plan.automatic import settle
from ecoflap.run.plan.checks import check
from ecoflap.run.plan.parts import make
from ecoflap.run.plan.plan import Plan
from ecoflap.run.plan.preflight import Preflight
from ecoflap.storage.cache.code import source_hash
from ecoflap.storage.cache.store import Store
from ecoflap.storage.results import environment
from ecoflap.storage.results.sources import sources_of


def make_plan(config: DictConfig, folder: Path, preflight: Preflight | None = None) -> Plan:
    """Build the parts, and check them as far as possible without the model's weights.

    Args:
        config: the config of the run.
        folder: the folder that the run writes to.
        preflight: checks that the jobs of a sweep share; None for a plan of its own.

    Raises:
        UserError: if a value is impossible, data are missing, or the model lacks what the plan needs.
    """
    config = settle(config)
    always = ("model", "calibration", "allocation", "pruner", "tracking")
    parts = {group: make(group, config[group]) for group in always}
    tasks = build_tasks(config.task)
    scored = "_target_" in config.score and parts["allocation"].requires.scores != "none"
    scorer = make("score", config.score) if scored else None
    finetuner = make("finetune", config.finetune) if "finetune" in config.steps else None
    record: Any = OmegaConf.to_container(config, resolve=True)
    plan = Plan(
        config=typed(record),
        record=record,
        folder=folder,
        loader=parts["model"],
        calibrator=parts["calibration"],
        scorer=scorer,
        allocator=parts["allocation"],
        pruner=parts["pruner"],
        finetuner=finetuner,
        tasks=tasks,
        mean=config.task.get("mean") if "tasks" in config.task else None,
        tracking=parts["tracking"],
        store=make_store(config.cache, config.cache_mode),
        code=hash_code({**parts, "score": scorer, "finetune": finetuner}, tasks),
        origin=environment(),
        sources=sources_of(record),
    )
    check(plan)
    (preflight or Preflight()).check(plan)
    return plan


def typed(record: Mapping[str, Any]) -> RunConfig:
    """A resolved config as its dataclass, with the groups as plain dicts."""
    values = {entry.name: record[entry.name] for entry in fields(RunConfig)}
    return RunConfig(**{**values, "runtime": RuntimeConfig(**values["runtime"])})


def hash_code(parts: Mapping[str, Any], tasks: Mapping[str, Task]) -> dict[str, str]:
    """Hash the source code that a run's numbers depend on.

    Args:
        parts: {config group: part}.
        tasks: {name: task}.

    Returns:
        {config group, ``task NAME``, ``blocks`` (the block runner) or ``statistic`` (of the pruner): hash}.
    """
    modules = {group: type(part).__module__ for group, part in parts.items() if part is not None}
    modules |= {f"task {name}": type(task).__module__ for name, task in tasks.items()}
    if not parts["pruner"].allocates and parts["pruner"].statistic is not None:
        modules["statistic"] = parts["pruner"].statistic.__module__
    return {part: source_hash(module) for part, module in {**modules, "blocks": driver.__name__}.items()}


def build_tasks(node: DictConfig) -> dict[str, Task]:
    """{name: task} of a config of one task, or of a suite of tasks.

    Raises:
        UserError: if a value is impossible.
    """
    if "tasks" not in node:
        task = make("task", node)
        return {task.name: task}
    if not node.tasks:
        raise UserError(
            "task.tasks is empty: a suite needs at least one task: task=[easy_vqa], or"
            " easy_vqa@tasks.easy_vqa in a file's defaults"
        )
    if inner := [name for name, member in node.tasks.items() if "tasks" in member]:
        raise UserError(
            f"task: {inner[0]} is a suite itself and can't be one task of another; name its tasks, or run it"
            " by itself"
        )
    members = {str(name): member for name, member in node.tasks.items()}
    own = any(OmegaConf.is_interpolation(member, "limit") for member in members.values())
    if node.get("limit") is not None and not own:  # of a preset, for a suite that does not pass it on itself
        members = {name: OmegaConf.create({**one, "limit": node.limit}) for name, one in members.items()}
    return {name: make(f"task.tasks.{name}", member) for name, member in members.items()}


def make_store(folder: str, mode: str) -> Store:
    """The stage cache.

    Raises:
        UserError: if the mode is unknown, or the folder can't be one.
    """
    if mode != "off" and (not folder or (Path(folder).exists() and not Path(folder).is_dir())):
        raise UserError(
            f"cache={folder} is not a folder; choose another place, such as cache={RunConfig.cache}, or"
            " cache_mode=off"
        )
    return SharedStore(Path(folder), mode)
