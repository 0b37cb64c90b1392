"""The cost of pruned models and the dense one: parameters, operations, and the time of a forward pass.

    ecoflap report cost RUN [RUN ...] [--batch-size N] [--repeats N]

The runs must have saved their models (``model.save=true``), and be of one model and one data set. All models
are measured in turn in one process, on the same samples, so that other load on the machine affects all alike.
A pass computes the loss, including targets. Where there are fewer samples than the batch size, they repeat.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ecoflap.console.arguments import ArgumentParser, complain
from ecoflap.console.progress import track
from ecoflap.console.tables import table
from ecoflap.errors import UserError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.loading.device import resolve_device
from ecoflap.run.config import build
from ecoflap.run.saved_loader import saved_node
from ecoflap.storage.file_names import RESULT
from ecoflap.storage.results.record import Result


@dataclass(frozen=True)
class Cost:
    """One model's row.

    Attributes:
        name: dense, or the run's folder.
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
    except (FileNotFoundError, ValueError, UserError) as error:
        return complain(f"nothing measured: {error}")
    columns = ["model", "parameters", "nonzero", "operations", "without zeros", "ms", "least ms"]
    rows = []
    for cost in costs:
        counts = (cost.parameters, cost.nonzero, cost.operations, cost.without_zeros)
        rows.append((cost.name, *(f"{count:,}" for count in counts), cost.milliseconds, cost.least))
    machine = f"{resolve_device('auto')}, {torch.get_num_threads()} threads"
    table(f"a forward pass of {options.batch_size} on {machine}", columns, rows)
    return 0


def measure(runs: Sequence[Path], batch_size: int, repeats: int) -> list[Cost]:
    """Measure the dense model of the first run, and the saved model of each run.

    Args:
        runs: folders of the runs.
        batch_size: samples per pass.
        repeats: timed passes of each model.

    Raises:
        FileNotFoundError: if a folder has no record, or its run saved no model.
        UserError: if a model can't be loaded.
    """
    records = [Result.read(run / RESULT) for run in runs]
    models = {"dense": _load(records[0].config, None)}
    for run, record in zip(runs, records, strict=True):
        if record.checkpoint is None:
            raise FileNotFoundError(f"{run} saved no model; run it again with model.save=true")
        models[str(run)] = _load(record.config, run / record.checkpoint)
    loader = replace(build("calibration", _node(records[0].config["calibration"])), samples=batch_size)
    batches = loader.load(models["dense"], seed=0).repeat(batch_size).batches(batch_size)
    times: dict[str, list[float]] = {name: [] for name in models}
    for repeat in track(range(repeats + 1), "measure", total=repeats + 1):
        for name, model in models.items():
            seconds = _seconds(lambda model=model: [model.loss(batch) for batch in batches], model)  # type: ignore[misc]
            if repeat:  # the first pass warms up
                times[name].append(1000 * seconds)
    return [_cost(name, model, batches, times[name]) for name, model in models.items()]


def _load(config: dict[str, Any], folder: Path | None) -> PrunableModel:
    settings = {**config["model"], "save": False}
    if folder is not None:
        settings = saved_node(config["model"], folder)
    selection = Selection(config["towers"], config["skip_layers"])
    model: PrunableModel = build("model", _node(settings)).load(resolve_device("auto"), selection)
    return model


def _node(values: dict[str, Any]) -> DictConfig:
    return OmegaConf.create(values)


@torch.no_grad()
def _seconds(run: Callable[[], Any], model: PrunableModel) -> float:
    synchronise = torch.accelerator.synchronize if model.device.type != "cpu" else lambda: None
    with quiet_forward(model.module):
        synchronise()
        started = time.perf_counter()
        run()
        synchronise()
        return time.perf_counter() - started


@torch.no_grad()
def _cost(name: str, model: PrunableModel, batches: Sequence[dict[str, Tensor]], times: list[float]) -> Cost:
    idle = 0  # operations on weights that are zero

    def count(weight: Tensor) -> Callable[..., None]:
        zeros = int((weight == 0).sum())

        def hook(_: Any, __: Any, output: Tensor) -> None:
            nonlocal idle
            idle += 2 * zeros * (output.numel() // output.shape[-1])

        return hook

    counting = (layer.module.register_forward_hook(count(layer.weight)) for layer in model.layers)
    with hooks(counting), quiet_forward(model.module), FlopCounterMode(display=False) as counter:
        for batch in batches:
            model.loss(batch)
    parameters = list(model.module.parameters())
    nonzero = sum(int((parameter != 0).sum()) for parameter in parameters)
    total = int(counter.get_total_flops())
    return Cost(name, model.parameter_count(), nonzero, total, total - idle, median(times), min(times))
