"""A run before it starts: every part built, all refused that can be refused without the model's weights."""

from ecoflap.run.plan.building import build_tasks, make_plan
from ecoflap.run.plan.plan import Plan
from ecoflap.run.plan.preflight import Preflight
from ecoflap.run.plan.unused import few_samples, unused

__all__ = ["Plan", "Preflight", "build_tasks", "few_samples", "make_plan", "unused"]
