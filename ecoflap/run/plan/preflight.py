"""Checks of a plan before any weight is loaded: its data, and the shapes and protocols of its model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch

from ecoflap.allocate.protocol import Requires, checked_allocation
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.loading.hub import require_folder
from ecoflap.models.loading.loader import Pretrained
from ecoflap.models.loading.modes import with_processors
from ecoflap.run.plan.plan import Plan

Found = TypeVar("Found")


class Preflight:
    """Checks plans, and reads data and models that several plans share only once."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def check(self, plan: Plan) -> None:
        """Refuse a plan whose data are unusable, or that can't be carried out on its model.

        Raises:
            UserError: if there is no model, data are missing, damaged or too few, or the model does not fit
                the plan.
        """
        if isinstance(plan.loader, Pretrained):
            require_folder(plan.loader.path)
        for group, part in data_sets(plan):
            if hasattr(part, "check_data"):
                self._once(f"{group} {part!r}", partial(part.check_data, group))
        if getattr(plan.loader, "shapes_first", False):
            model = self._once(f"model {plan.loader!r} {plan.selection!r}", partial(load_shapes, plan))
            if model is not None:
                check_model(plan, model)
                self._check_rows(plan, model)

    def _check_rows(self, plan: Plan, model: PrunableModel) -> None:
        """Refuse samples that the run will draw, where they can be judged without reading all of them.

        Raises:
            UserError: if one of them is damaged, or the model can't read it.
        """
        seed, calibrator = plan.config.seed, plan.calibrator
        if plan.reads_calibration and model.interface is not None and hasattr(calibrator, "check_rows"):
            check = partial(calibrator.check_rows, model, seed)
            self._once(f"rows {calibrator!r} {plan.loader!r} {seed}", check)

    def _once(self, key: str, read: Callable[[], Found]) -> Found:
        """The result of the first call with this key, or its error."""
        if key not in self._known:
            try:
                self._known[key] = read()
            except UserError as error:
                self._known[key] = error
        found: Found = self._known[key]
        if isinstance(found, UserError):
            raise found
        return found


def data_sets(plan: Plan) -> list[tuple[str, Any]]:
    """(config group, part) of the calibration set and the tasks, if the steps read them."""
    calibration = [("calibration", plan.calibrator)] if plan.reads_calibration else []
    return [*calibration, *(("task", task) for task in plan.tasks.values() if "evaluate" in plan.steps)]


def load_shapes(plan: Plan) -> PrunableModel | None:
    """The model without weights; None if its family can't be built without.

    Raises:
        UserError: if there is no such model, tower or layer.
    """
    try:
        with with_processors():
            model: PrunableModel = plan.loader.load(torch.device("meta"), plan.selection)
            return model
    except (RuntimeError, NotImplementedError):  # building it computes with its weights
        return None


def _shapes_suffice(requires: Requires) -> bool:
    """Whether an allocator reads nothing but the model's shapes."""
    return requires.scores == "none" and not requires.weights and not requires.calibration


def check_model(plan: Plan, model: PrunableModel) -> None:
    """Refuse a plan that can't be carried out on the model, by its shapes, tokenizer and interface.

    Raises:
        UserError: if the plan can't be carried out on the model.
    """
    check_methods(plan, model)
    if not plan.pruner.allocates and "allocate" in plan.steps and _shapes_suffice(plan.allocator.requires):
        checked_allocation(plan.allocator, model, None, plan.config.sparsity)
    if model.processor is None and model.interface is None:  # some families have them only with weights
        return
    for _, part in data_sets(plan):
        if hasattr(part, "check_model"):
            part.check_model(model)


def check_methods(plan: Plan, model: PrunableModel) -> None:
    """Refuse a model that the pruner can't prune, or the finetuner can't train, by its shapes.

    Raises:
        UserError: if one of them can't.
    """
    if plan.pruner.allocates:
        if "prune" in plan.steps:
            plan.pruner.check_model(model, plan.config.sparsity)
    elif {"allocate", "prune"} & set(plan.steps):
        plan.pruner.check_layers(model.layers)
    if plan.finetuner is not None:
        plan.finetuner.check_model(model)
