"""Check a run before it is started, and show what it would prune.

    ecoflap plan [-m] [group=option ...] [key=value ...]

The options are those of ``ecoflap run``, where plan=true does the same. In a sweep (-m), all jobs are checked
and the first is shown. The config and the data are checked, and the shapes of the model if its family can be
built without weights; these give the memory that each step needs beside activations. If the weights are
available, each step is measured on two samples and one batch to estimate how long the run takes. Nothing is
written; only a run can tell which weights are removed and how much accuracy that costs. Exit code 0: the run
passes all checks, or those that need no weights. 2: it can't run, for the reason given.
"""

from __future__ import annotations

import sys
import traceback
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from ecoflap.cli.arguments import prepared
from ecoflap.cli.choices import Choices
from ecoflap.cli.plan_sweep import check_sweep
from ecoflap.cli.recipe import RECIPE, primary_config
from ecoflap.cli.wrong import what_is_wrong
from ecoflap.console.arguments import complain
from ecoflap.console.logs import install_logging
from ecoflap.console.pace import seconds_in_words
from ecoflap.console.tables import table
from ecoflap.console.wrapping import paragraphs
from ecoflap.errors import UserError
from ecoflap.run import config as run_config
from ecoflap.run import invocation

if TYPE_CHECKING:
    from ecoflap.run.plan import Plan


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    run_config.register()
    try:
        arguments, flags = prepared(arguments)
        if flags.help:
            print(paragraphs(__doc__ or ""))
        else:
            config, jobs = composed(flags)
            seconds = show(config)
            if jobs > 1 and seconds is not None:
                each = f"{jobs} jobs like the first take about {seconds_in_words(jobs * seconds)}"
                print(f"{each} one after the other, less what they share")
    except BrokenPipeError:
        raise
    except Exception as error:
        message = what_is_wrong(arguments, error)
        if message is None:
            traceback.print_exc()
            return 1
        return complain(message)
    return 0


def composed(flags: Namespace) -> tuple[DictConfig, int]:
    """Compose the config of a run, of a sweep's first, and set Hydra's own config to that of the run.

    Args:
        flags: the command line, as Hydra parses it.

    Returns:
        The config, and the number of jobs.

    Raises:
        UserError: if a job of a sweep can't run, or the command line starts something else than a run.
    """
    if flags.cfg or flags.info is not None or flags.hydra_help or flags.shell_completion:
        raise UserError("plan takes options and --config-dir; Hydra's other flags are for ecoflap run")
    if flags.multirun:
        return check_sweep(flags)
    setup_globals()
    loader = Choices(flags.config_dir, flags.overrides).loader
    config = loader.load_configuration(primary_config(), flags.overrides, RunMode.RUN)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    return config, 1


def show(config: DictConfig) -> float | None:
    """Check the run, then print its parts, the model's towers and layers, and what it will take.

    Returns:
        Seconds of the run, about; None if they can't be measured here.

    Raises:
        UserError: if the run can't be done.
    """
    from ecoflap.cli.plan_times import show_times
    from ecoflap.models.loading.device import resolve_device
    from ecoflap.run.plan import make_plan, unused
    from ecoflap.run.plan.preflight import load_shapes
    from ecoflap.run.show import show_layers, show_model
    from ecoflap.run.steps.devices import wanted_by
    from ecoflap.run.steps.memory import needs_without_data
    from ecoflap.run.steps.memory_table import show_needs_without_data
    from ecoflap.run.steps.workload import Workload

    install_logging()
    if message := invocation.submits_without_sweep():
        raise UserError(message)
    plan = make_plan(config, Path(HydraConfig.get().run.dir))
    table(plan.name, ["part", "choice"], choices_of(plan, config))
    for line in unused(plan, invocation.given_options()):
        print(f"warning: {line}", file=sys.stderr)
    model = load_shapes(plan)
    if model is None:
        print("no towers and layers: a model of this family can't be built without its weights")
    else:
        show_model(model, config.sparsity)
        show_layers(model)
        offload, device = plan.config.runtime.offload, resolve_device(plan.config.device)
        needs = needs_without_data(model, offload, device, Workload.of(plan, samples=1))
        if needs:
            show_needs_without_data(model, offload, device, needs)
            print(wanted_by(plan, model, device))
    seconds = show_times(plan, model)
    print("all checks passed" if seconds is not None else "all checks that need no weights passed")
    return seconds


def choices_of(plan: Plan, config: DictConfig) -> list[tuple[str, str]]:
    """(part, choice) of each part of a run, with what ``auto`` stands for.

    Args:
        plan: the plan of the run.
        config: its config, in which ``auto`` is not settled.
    """
    chosen: Any = HydraConfig.get().runtime.choices
    settled = {group: plan.record[group]["name"] for group in ("score", "allocation")}
    rows = []
    for group in run_config.METHODS:
        if chosen.get(group) and (group != "finetune" or plan.finetuner is not None):
            name = named(config[group]) if chosen[group] == RECIPE else chosen[group]
            rows.append((group, f"auto: {settled[group]}" if name == "auto" else name))
    propagate = plan.config.propagate
    rows.append(("propagate", f"auto: {propagate}" if config.propagate == "auto" else propagate))
    return [*rows, ("steps", ", ".join(plan.steps)), ("sparsity", f"{config.sparsity:g}")]


def named(part: DictConfig) -> str:
    """The name of a part of a recipe: its own, those of a suite's tasks, or that of its class."""
    name = part.get("name") or ", ".join(map(str, part.get("tasks", ())))
    return str(name or part["_target_"].rpartition(".")[2])
