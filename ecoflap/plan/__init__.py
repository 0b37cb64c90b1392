"""A run before it starts: every part built from its config group, everything refused that can be refused without the model."""

from ecoflap.plan.building import build_tasks, make_plan
from ecoflap.plan.plan import Plan

__all__ = ["Plan", "build_tasks", "make_plan"]
