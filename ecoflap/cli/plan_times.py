"""What ``ecoflap plan`` measures: the time and the memory of each step, where the weights are at hand."""

from __future__ import annotations

from dataclasses import replace

from ecoflap.console.pace import seconds_in_words
from ecoflap.console.startup import reuse_freed_memory
from ecoflap.console.tables import table
from ecoflap.console.telemetry import free_memory
from ecoflap.errors import UnavailableError
from ecoflap.models.core.hub_kernels import remove_kernels
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.loading.device import resolve_device
from ecoflap.run.plan import Plan
from ecoflap.run.plan.preflight import check_methods
from ecoflap.run.state import RunState
from ecoflap.run.steps import prepare
from ecoflap.run.steps.timing import step_times


def show_times(plan: Plan, shapes: PrunableModel | None) -> float | None:
    """Load the model, measure each step on a few samples, and print what the run will take.

    Args:
        plan: the plan of a run.
        shapes: the model without weights; None if it can't be built so.

    Returns:
        Seconds of the whole run; None if it can't be measured here, which is printed with the reason.

    Raises:
        UserError: if the run would be refused: its data or its model can't be used.
        NumericalError: if a NaN or an infinity appears.
    """
    device = resolve_device(plan.config.device)
    if plan.config.runtime.offload != "none":
        print("no times: they are not measured with runtime.offload")
        return None
    reuse_freed_memory()
    if shapes is not None:
        size = sum(one.numel() * one.element_size() for one in shapes.module.parameters())
        if size > (free := free_memory(device)):
            print(f"no times: the weights take {size / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free")
            return None
    try:
        model = plan.loader.load(device, plan.selection)
    except UnavailableError as error:
        print(f"no times: {error}")
        return None
    remove_kernels(model.module)
    check_methods(plan, model)
    times = _measured(plan, model)
    total = sum(times.values())
    table(
        f"approximate time on {device}, measured on two samples and one batch",
        ["step", "time"],
        [(step, seconds_in_words(seconds)) for step, seconds in {**times, "total": total}.items()],
    )
    idle = {"score": plan.scorer is None, "allocate": plan.pruner.allocates}
    for step in [one for one in ("score", "allocate", "prune", "finetune") if one in plan.steps]:
        if step not in times and not idle.get(step):
            print(f"the total does not include {step}, whose time is unknown")
    return total


def _measured(plan: Plan, model: PrunableModel) -> dict[str, float]:
    """Seconds of each step, about, after a run's checks of its samples, its tasks and its training.

    Raises:
        UserError: if the data or the model can't be used.
        NumericalError: if a NaN or an infinity appears.
    """
    state = RunState("")
    evaluations = prepare.read_data(replace(plan, store=replace(plan.store, mode="off")), model, state)
    if "calibrate" in plan.steps:
        prepare.check_capture(plan, model, state)
    prepare.check_training(plan, model, evaluations, state)
    training = prepare.finetuned_on(plan, model, state)
    return step_times(plan, model, list(evaluations.values()), state.calibration, training)
