"""The plan of a run: its parts, built and checked as far as possible without the model's weights."""

from ecoflap.run.plan.building import build_tasks, make_plan
from ecoflap.run.plan.plan import Plan
from ecoflap.run.plan.preflight import Preflight
from ecoflap.run.plan.unused import few_samples, unused

__all__ = ["Plan", "Preflight", "build_tasks", "few_samples", "make_plan", "unused"]
