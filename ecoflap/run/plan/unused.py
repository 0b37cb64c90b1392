"""Options of the command line that change nothing, as no step of the run reads them."""

from __future__ import annotations

from collections.abc import Sequence

from ecoflap.prune.inputs import reads_inputs
from ecoflap.run.plan.automatic import AUTO
from ecoflap.run.plan.plan import Plan

# Which steps read a group's options; one of them is enough.
READ_BY = {
    "allocation": ("allocate",),
    "pruner": ("allocate", "prune"),  # the mask decides on possible counts
    "propagate": ("prune",),
    "tokens": ("allocate", "prune"),
    "batch_size": ("prune", "finetune"),
    "finetune": ("finetune",),
    "task": ("evaluate",),
}

# What uses the first samples of the calibration set, and what it does with them.
USED = {"score": ("scorer", "scored"), "allocation": ("allocator", "used"), "pruner": ("pruner", "used")}

OF_SCORES = {"allocation.cap", "allocation.granularity", "allocation.aggregate"}
OF_PROBES = {"score.eps", "score.samples_per_pass"}


def unused(plan: Plan, given: Sequence[str]) -> list[str]:
    """A sentence about each option that changes nothing.

    Args:
        plan: the plan of the run.
        given: the overrides of its config. Nothing is said of a value ``auto``, which leaves the choice to
            the other options.
    """
    found = []
    for option in given:
        name, _, value = option.lstrip("+~").partition("=")
        reason = _reason(plan, name.replace("@", "."), option) if value != AUTO else None
        if reason is not None:
            found.append(f"{option} changes nothing: {reason}")
    if plan.reads_calibration and plan.calibrator.samples is not None:
        found += few_samples(plan, given, plan.calibrator.samples)
    return found


def few_samples(plan: Plan, given: Sequence[str], count: int) -> list[str]:
    """A sentence about each part that was to use more samples than there are; its default may be more.

    Args:
        plan: the plan of the run.
        given: the overrides of its config.
        count: number of samples in the calibration set.
    """
    found = []
    for option in given:
        group, _, name = option.lstrip("+").partition("=")[0].partition(".")
        if name != "samples" or group not in USED or _reason(plan, f"{group}.samples", option) is not None:
            continue
        part, used = USED[group]
        asked = getattr(getattr(plan, part), "samples", 0)
        if (asked if isinstance(asked, int) else max(asked)) > count:
            found.append(
                f"{option.lstrip('+')} is more than the {count} of calibration.samples: {count} are {used}"
            )
    return found


def _reason(plan: Plan, key: str, option: str) -> str | None:
    """Why no step reads an option; None if one does."""
    group = key.partition(".")[0]
    if group == "calibration" and not plan.reads_calibration:
        return _lacks(plan, ("calibrate",))
    if group == "score":
        return _unscored(plan, option) or _without_its_part(plan, key)
    if key == "model.save" and plan.loader.save and "prune" not in plan.steps:
        return _lacks(plan, ("prune",))
    if group == "batch_size" and plan.allocates_from_data:
        return None
    steps = READ_BY.get(group, ())
    if steps and not set(steps) & set(plan.steps):
        return _lacks(plan, steps)
    return _without_inputs(plan, group) or _without_its_part(plan, key)


def _without_inputs(plan: Plan, group: str) -> str | None:
    """Why the fine stage doesn't read an option about the inputs of layers; None if it, or a step, does."""
    if reads_inputs(plan.pruner) or group not in ("propagate", "tokens", "batch_size"):
        return None
    if group != "propagate" and (plan.allocates_from_data or "finetune" in plan.steps):
        return None
    return f"pruner={plan.pruner.name} reads no inputs of layers"


def _without_its_part(plan: Plan, key: str) -> str | None:
    """Why an option of a part is not read as another one of its options is; None if it is read."""
    allocator, scorer = plan.allocator, plan.scorer
    if key == "pruner.swaps" and getattr(plan.pruner, "refine", None) == "none":
        return "pruner.refine=none swaps no weights"
    rule = None if plan.pruner.allocates else plan.pruner.rule
    if key == "pruner.block" and rule is not None and rule.group is not None:
        return f"pruner.mask={rule.name} is chosen for each group of {rule.group} columns"
    if key == "pruner.trial_iterations" and not allocator.in_trials:
        return f"allocation={allocator.name} prunes in no trials"
    if key in OF_SCORES and scorer is None and allocator.requires.scores == "optional":
        return "score=none gives all layers the same sparsity"
    if key == "allocation.samples" and (parameter := getattr(allocator, "parameter", None)) is not None:
        given = getattr(allocator, parameter)
        return None if given == AUTO else f"only allocation.{parameter}=auto compares samples"
    if key in OF_PROBES and getattr(scorer, "probe", None) == "derivative":
        return "score.probe=derivative probes nothing"
    return None


def _unscored(plan: Plan, option: str) -> str | None:
    """Why no step reads an option of the scores; None if one does."""
    if option == "score=none":
        return None
    if plan.allocator.requires.scores == "none":
        return f"allocation={plan.allocator.name} takes no scores"
    if plan.scorer is None:
        return "score=none measures nothing"
    return None if "score" in plan.steps else _lacks(plan, ("score",))


def _lacks(plan: Plan, steps: Sequence[str]) -> str:
    return f"steps=[{','.join(plan.steps)}] has no {' or '.join(steps)}"
