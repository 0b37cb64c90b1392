"""A run before it starts: every part built from its config group, everything refused that can be refused without the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ecoflap.allocate.allocation import check_sparsity
from ecoflap.config import STEPS, build, check_merged
from ecoflap.errors import UserError
from ecoflap.evaluate.task import Task
from ecoflap.finetune.job import Finetuner
from ecoflap.models.loading import Selection
from ecoflap.models.offload import check_offload
from ecoflap.prune.inputs import check_propagate
from ecoflap.prune.pruners import LayerPruner
from ecoflap.prune.whole_model import WholeModelPruner
from ecoflap.store import Store


@dataclass(frozen=True)
class Plan:
    """The parts of a run.

    Attributes:
        config: the resolved config as plain dicts and lists.
        folder: where the run writes.
        loader: makes the model.
        calibrator: draws the calibration set.
        scorer: measures the layers; null for ``score=none`` or where the allocation needs no scores.
        allocator: turns scores into counts.
        pruner: decides inside a layer, or over the whole model.
        finetuner: trains the pruned model; null where the steps don't.
        tasks: {name: task}, each measures the model.
        mean: the metric of a suite's tasks whose mean is reported; null for none.
        tracking: starts the tracker.
        store: stage cache.
    """

    config: dict[str, Any]
    folder: Path
    loader: Any
    calibrator: Any
    scorer: Any
    allocator: Any
    pruner: LayerPruner | WholeModelPruner
    finetuner: Finetuner | None
    tasks: dict[str, Task]
    mean: str | None
    tracking: Any
    store: Store

    @property
    def steps(self) -> list[str]:
        """The steps to run, in order."""
        return list(self.config["steps"])

    @property
    def selection(self) -> Selection:
        """Which towers and layers are pruned."""
        return Selection(self.config["towers"], self.config["skip_layers"])

    @property
    def name(self) -> str:
        """A name that a person can read: model/pruner/score/sparsity/seed."""
        coarse = self.scorer.name if self.scorer is not None else "none" if self.allocator.needs_scores else self.allocator.name
        return f"{self.loader.name}/{self.pruner.name}/{coarse}/s{self.config['sparsity']:g}/seed{self.config['seed']}"


def make_plan(config: DictConfig, folder: Path) -> Plan:
    """Build the parts.

    Raises:
        UserError: a value is impossible, whatever the model.
    """
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    parts = {group: build(group, config[group]) for group in ("model", "calibration", "allocation", "pruner", "tracking")}
    allocator = parts["allocation"]
    check_sparsity(config.sparsity)
    allocator.check(config.sparsity)
    if config.batch_size < 1:
        raise UserError(f"batch_size={config.batch_size} must be at least 1")
    check_propagate(config.propagate)
    check_offload(config.runtime.offload)
    if config.runtime.offload != "none" and "finetune" in config.steps:
        raise UserError(f"runtime.offload={config.runtime.offload}: finetune trains all weights at once, so they have to be in memory")
    if config.runtime.offload != "none" and isinstance(parts["pruner"], WholeModelPruner):
        raise UserError(f"pruner={parts['pruner'].name} compares all weights at once, so they have to be in memory; use runtime.offload=none")
    plan = Plan(
        config=values,
        folder=folder,
        loader=parts["model"],
        calibrator=parts["calibration"],
        scorer=build("score", config.score) if "_target_" in config.score and allocator.needs_scores else None,
        allocator=allocator,
        pruner=parts["pruner"],
        finetuner=build("finetune", config.finetune) if "finetune" in config.steps else None,
        tasks=build_tasks(config.task),
        mean=config.task.get("mean") if "tasks" in config.task else None,
        tracking=parts["tracking"],
        store=make_store(config.cache, config.cache_mode),
    )
    check_steps(plan)
    check_mean(plan.tasks, plan.mean)
    locate_data(plan)
    return plan


def locate_data(plan: Plan) -> None:
    """Look for the files of the data sets that the steps read, before a model is loaded for them.

    Raises:
        UserError: some are not there.
    """
    if "calibrate" in plan.steps and hasattr(plan.calibrator, "locate"):
        plan.calibrator.locate("calibration")
    for task in plan.tasks.values() if "evaluate" in plan.steps else ():
        if hasattr(task, "locate"):
            task.locate("task")


def check_mean(tasks: dict[str, Task], mean: str | None) -> None:
    """Refuse the mean of a metric that a task is known not to give; of tasks that say nothing it is found out when they are measured.

    Raises:
        UserError: so it is.
    """
    for name, task in tasks.items():
        given = getattr(task, "metrics", None)
        if mean is not None and given is not None and mean not in given:
            raise UserError(f"task.mean={mean}: {name} has no such metric; it has {', '.join(given)}")


def build_tasks(node: DictConfig) -> dict[str, Task]:
    """The task of a config, or the several of a suite, by name.

    Raises:
        UserError: a value is impossible.
    """
    check_merged()
    if "tasks" not in node:
        task = build("task", node)
        return {task.name: task}
    if not node.tasks:
        raise UserError("task.tasks is empty: a suite needs at least one task: task=[easy_vqa], or easy_vqa@tasks.easy_vqa in a file's defaults")
    if inner := [name for name, member in node.tasks.items() if "tasks" in member]:
        raise UserError(f"task: {inner[0]} is a suite itself and can't be one task of another; name its tasks, or run it by itself")
    return {str(name): build(f"task.tasks.{name}", member) for name, member in node.tasks.items()}


def make_store(folder: str, mode: str) -> Store:
    """The stage cache.

    Raises:
        UserError: no such mode.
    """
    try:
        return Store(Path(folder), mode)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f"cache_mode={mode}: {error}") from None


def check_steps(plan: Plan) -> None:
    """Refuse steps that are unknown, out of order, or lack what they read.

    Raises:
        UserError: so they are.
    """
    steps = plan.steps
    for step in steps:
        if step not in STEPS:
            raise UserError(f"steps={steps}: there is no step {step!r}; the steps are {', '.join(STEPS)}")
    if not steps or steps != [step for step in STEPS if step in steps]:
        raise UserError(f"steps={steps} must be some of {', '.join(STEPS)}, each once and in this order")
    if "finetune" in steps and "prune" not in steps:
        raise UserError(f"steps={steps}: finetune needs prune, whose zeros it keeps; add it")
    if isinstance(plan.pruner, WholeModelPruner):
        _check_whole_model(plan, plan.pruner)
        return
    needs = {
        "score": "calibrate" if plan.scorer is not None else None,
        "allocate": "score" if plan.scorer is not None else None,
        "prune": "allocate",
    }
    for step, needed in needs.items():
        if step in steps and needed is not None and needed not in steps:
            raise UserError(
                f"steps={steps}: {step} needs {needed}; add it, or take an earlier run's with allocation=file allocation.path=RUN/allocation.json"
            )
    if "prune" in steps and plan.pruner.statistic is not None and "calibrate" not in steps:
        raise UserError(f"steps={steps}: pruner={plan.pruner.name} looks at data, so prune needs calibrate; add it")


def _check_whole_model(plan: Plan, pruner: WholeModelPruner) -> None:
    """A pruner over the whole model neither takes scores nor an allocation.

    Raises:
        UserError: it is given some, or lacks its data.
    """
    if plan.scorer is not None:
        raise UserError(f"pruner={pruner.name} compares all weights by itself, so score={plan.scorer.name} would change nothing; use score=none")
    if not plan.allocator.needs_scores:
        raise UserError(f"pruner={pruner.name} compares all weights by itself; allocation={plan.allocator.name} would change nothing, leave it out")
    if "prune" in plan.steps and pruner.looks_at_data and "calibrate" not in plan.steps:
        raise UserError(f"steps={plan.steps}: pruner={pruner.name} looks at data, so prune needs calibrate; add it")
