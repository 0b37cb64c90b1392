"""Checks of a plan that need neither data nor model: values, steps, and parts that can't be combined."""

from __future__ import annotations

import torch

from ecoflap.allocate.allocation import check_sparsity
from ecoflap.allocate.protocol import check_scores
from ecoflap.errors import UserError, did_you_mean, require_choices, require_count, require_seed, written
from ecoflap.evaluate.protocol import Task
from ecoflap.finetune.schedule import Schedule
from ecoflap.prune.inputs import check_propagate, check_tokens
from ecoflap.prune.protocol import ModelPruner
from ecoflap.run.config import STEPS
from ecoflap.run.plan.plan import Plan
from ecoflap.storage.bitmask.forms import DENSE, form_of


def check(plan: Plan) -> None:
    """Refuse a plan that can't be carried out.

    Raises:
        UserError: if the plan can't be carried out.
    """
    check_options(plan)
    check_steps(plan)
    check_parts(plan)
    check_mean(plan.tasks, plan.mean)


def check_options(plan: Plan) -> None:
    """Refuse impossible values of the run's own options.

    Raises:
        UserError: if there is one.
    """
    config, offload = plan.config, plan.config.runtime.offload
    require_choices("", config)
    require_choices("runtime", config.runtime)
    check_sparsity(config.sparsity)
    plan.allocator.check(config.sparsity)
    require_count("batch_size", config.batch_size)
    require_seed(config.seed)
    check_towers(config.towers)
    check_propagate(config.propagate, plan.pruner)
    check_tokens(config.tokens, plan.pruner)
    check_save(plan)
    if offload != "none" and plan.finetuner is not None:
        raise UserError(
            f"runtime.offload={offload}: finetune trains all weights at once, so they have to be in memory"
        )
    if plan.finetuner is not None and config.device.partition(":")[2] not in ("", "0"):
        raise UserError(
            f"device={config.device}: finetune trains on the first accelerator that it sees (the trainer's"
            f" rule); use device=auto with CUDA_VISIBLE_DEVICES={config.device.partition(':')[2]}"
        )
    if isinstance(plan.finetuner, Schedule) and config.device == "cpu":
        plan.finetuner.mixed_precision(torch.device("cpu"))
    if offload != "none" and plan.pruner.allocates:
        raise UserError(
            f"pruner={plan.pruner.name} compares all weights at once, so they have to be in memory; use"
            " runtime.offload=none"
        )


def check_save(plan: Plan) -> None:
    """Refuse a form of checkpoint that is unknown, or that the model's kind can't be saved in.

    Raises:
        UserError: if there is no such form.
    """
    form = form_of(plan.loader.save)
    if form is None or not getattr(plan.loader, "in_lavis_format", False):
        return
    if form != DENSE:
        raise UserError(
            f"model.save={form}: {plan.loader.name} is saved in LAVIS' format, which is dense; use"
            " model.save=dense"
        )
    if plan.config.runtime.offload == "disk":
        raise UserError(
            f"runtime.offload=disk saves a block at a time, and {plan.loader.name} is saved in LAVIS' format,"
            " which is one file; use runtime.offload=cpu"
        )


def check_towers(towers: list[str] | None) -> None:
    """Refuse a list of towers that no model could have.

    Raises:
        UserError: if it is empty, or names a tower twice.
    """
    if towers is not None and (not towers or len(set(towers)) < len(towers)):
        raise UserError(
            f"towers={written(towers)} names {'one twice' if towers else 'none'}; name each once, or"
            " towers=null for the default"
        )


def check_steps(plan: Plan) -> None:
    """Refuse steps that are unknown or out of order, or whose inputs no step makes.

    Raises:
        UserError: if there are such steps.
    """
    steps = plan.steps
    for step in steps:
        if step not in STEPS:
            raise UserError(f"steps={written(steps)}: there is no step {step!r}; {did_you_mean(step, STEPS)}")
    if not steps or steps != [step for step in STEPS if step in steps]:
        raise UserError(
            f"steps={written(steps)} must be some of {', '.join(STEPS)}, each once and in this order"
        )
    if "finetune" in steps and "prune" not in steps:
        raise UserError(f"steps={written(steps)}: finetune needs prune, whose zeros it keeps; add it")
    if plan.finetuner is not None and not plan.finetuner_trains and "calibrate" not in steps:
        raise UserError(
            f"steps={written(steps)}: finetune={plan.finetuner.name} trains on the calibration samples; add"
            " calibrate"
        )
    for step, needed in _needs(plan).items():
        if step in steps and needed is not None and needed not in steps:
            saved = "allocation=file allocation.path=RUN/allocation.json"
            instead = {
                "allocate": f", with {saved} to use a saved allocation",
                "score": f", or use a saved allocation: {saved}",
            }
            raise UserError(f"steps={written(steps)}: {step} needs {needed}; add it{instead.get(needed, '')}")
    if plan.allocates_from_data and "calibrate" not in steps:
        raise UserError(
            f"steps={written(steps)}: allocation={plan.allocator.name} looks at data, so allocate needs"
            " calibrate; add it"
        )
    if "prune" in steps and plan.pruner.requires_calibration and "calibrate" not in steps:
        raise UserError(
            f"steps={written(steps)}: pruner={plan.pruner.name} looks at data, so prune needs calibrate;"
            " add it"
        )


def _needs(plan: Plan) -> dict[str, str | None]:
    """{step: the step that it needs}; a pruner that allocates by itself needs neither scores nor counts."""
    if plan.pruner.allocates:
        return {}
    return {
        "score": "calibrate" if plan.scorer is not None else None,
        "allocate": "score" if plan.scorer is not None else None,
        "prune": "allocate",
    }


def check_parts(plan: Plan) -> None:
    """Refuse parts that can't be combined.

    Raises:
        UserError: if the allocator can't take the scores or lacks some, the mask fixes another sparsity, or
            the pruner uses neither scores nor allocation.
    """
    if plan.pruner.allocates:
        _check_model_pruner(plan, plan.pruner)
        return
    if {"allocate", "prune"} & set(plan.steps):
        plan.pruner.check(plan.config.sparsity, plan.allocator.uneven(plan.scorer))
    if "allocate" in plan.steps:
        plan.allocator.check_pruner(plan.pruner)
        check_scores(plan.allocator, plan.scorer)


def _check_model_pruner(plan: Plan, pruner: ModelPruner) -> None:
    """Refuse scores or an allocation beside a pruner of the whole model, which uses neither.

    Raises:
        UserError: if there are some.
    """
    if plan.scorer is not None:
        raise UserError(
            f"pruner={pruner.name} compares all weights by itself, so score={plan.scorer.name} would change"
            " nothing; use score=none"
        )
    if plan.allocator.requires.scores != "optional":
        raise UserError(
            f"pruner={pruner.name} compares all weights by itself; allocation={plan.allocator.name} would"
            " change nothing, leave it out"
        )


def check_mean(tasks: dict[str, Task], mean: str | None) -> None:
    """Refuse the mean of a metric that a task lacks, among tasks that declare their metrics.

    Raises:
        UserError: if a task lacks the metric.
    """
    for name, task in tasks.items():
        metrics = getattr(task, "metrics", None)
        if mean is not None and metrics is not None and mean not in metrics:
            raise UserError(f"task.mean={mean}: {name} has no such metric; {did_you_mean(mean, metrics)}")
