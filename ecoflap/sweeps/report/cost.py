"""The cost of pruned models and the dense one: parameters, operations, and the time of a forward pass.

    ecoflap report cost RUN [RUN ...] [--batch-size N] [--repeats N]

The runs must have saved their models (``model.save=true``), and be of one model and one data set. All models
are measured in turn in one process, on the same samples, so that other load on the machine affects all alike.
A pass computes the loss, including targets. Where there are fewer samples than the batch size, they repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ecoflap.console.arguments import ArgumentParser, complain
from ecoflap.console.progress import track
from ecoflap.console.tables import table
from ecoflap.errors import UserError
from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.loading.device import resolve_device
from ecoflap.storage.file_names import RESULT
from ecoflap.sweeps.bench.forms import dense, read_runs, saved
from ecoflap.sweeps.bench.speed import passing, seconds_of


@dataclass(frozen=True)
class PassCost:
    """One model's row.

    Attributes:
        name: dense, or that of the run.
        parameters: number of stored parameters.
        nonzero: number of parameters that are not zero.
        operations: floating-point operations of a pass as it is computed, with zeros in matrices multiplied
            like other numbers.
        without_zeros: the same without the products of removed weights, the lower bound for a sparse kernel.
        milliseconds: median time of a pass.
        least: shortest time of a pass in milliseconds, the figure that other load on the machine affects
            least.
    """

    name: str
    parameters: int
    nonzero: int
    operations: int
    without_zeros: int
    milliseconds: float
    least: float


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 2 if there is nothing to measure."""
    parser = ArgumentParser(prog="ecoflap report cost", description=__doc__)
    parser.add_argument(
        "runs", type=Path, nargs="+", help=f"folder of a run, with {RESULT} and a saved model"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="samples per pass")
    parser.add_argument("--repeats", type=int, default=50, help="timed passes of each model")
    options = parser.parse_args(arguments)
    try:
        costs = measure(options.runs, options.batch_size, options.repeats)
    except UserError as error:
        return complain(f"nothing measured: {error}")
    columns = ["model", "parameters", "nonzero", "operations", "without zeros", "ms", "least ms"]
    rows = []
    for cost in costs:
        counts = (cost.parameters, cost.nonzero, cost.operations, cost.without_zeros)
        rows.append((cost.name, *(f"{count:,}" for count in counts), cost.milliseconds, cost.least))
    machine = f"{resolve_device('auto')}, {torch.get_num_threads()} threads"
    table(f"a forward pass of {options.batch_size} on {machine}", columns, rows)
    return 0


def measure(folders: Sequence[Path], batch_size: int, repeats: int) -> list[PassCost]:
    """Measure the dense model of the first run, and the saved model of each run.

    Args:
        folders: of the runs.
        batch_size: samples per pass.
        repeats: timed passes of each model.

    Raises:
        UserError: if a folder has no record, its run saved no model, or a model can't be loaded.
    """
    runs, device = read_runs(folders), resolve_device("auto")
    forms = [dense(runs[0], device), *(form for run in runs for form in saved(run, device))]
    models = [form.load() for form in forms]
    workload = passing(models[0], runs[0].record.config.get("calibration"))
    batches = workload.prepare(batch_size)
    times: list[list[float]] = [[] for _ in models]
    for repeat in track(range(repeats + 1), "measure", total=repeats + 1):
        for model, own in zip(models, times, strict=True):
            seconds = seconds_of(workload, model, batches)
            if repeat:  # the first pass warms up
                own.append(1000 * seconds)
    return [
        _cost(form.name, model, partial(workload.run, model, batches), own)
        for form, model, own in zip(forms, models, times, strict=True)
    ]


@torch.no_grad()
def _cost(name: str, model: PrunableModel, run: Callable[[], None], times: list[float]) -> PassCost:
    idle = 0  # operations on weights that are zero

    def count(weight: Tensor) -> Callable[..., None]:
        zeros = int((weight == 0).sum())

        def hook(_: Any, __: Any, output: Tensor) -> None:
            nonlocal idle
            idle += 2 * zeros * (output.numel() // output.shape[-1])

        return hook

    counting = (layer.module.register_forward_hook(count(layer.weight)) for layer in model.layers)
    with hooks(counting), FlopCounterMode(display=False) as counter:
        run()
    parameters = list(model.module.parameters())
    nonzero = sum(int((parameter != 0).sum()) for parameter in parameters)
    total = int(counter.get_total_flops())
    return PassCost(name, model.parameter_count(), nonzero, total, total - idle, median(times), min(times))
