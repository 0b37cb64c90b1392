"""Check a run's record against its saved model: zeros, masks, and hashes of weights, configs and tokenizer.

    ecoflap verify outputs/runs/RUN

Exit code 0: equal. 1: there are differences, each printed on a line. 2: wrong usage, or files are missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ecoflap.console.arguments import ArgumentParser, complain, given_path
from ecoflap.console.tables import table
from ecoflap.storage.file_names import RESULT

if TYPE_CHECKING:
    from ecoflap.storage.results.record import Result


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = ArgumentParser(prog="ecoflap verify", description=__doc__)
    parser.add_argument(
        "run", type=given_path, help=f"folder of a run, holding {RESULT} and the saved checkpoint"
    )
    run = parser.parse_args(arguments).run
    if run.is_file():
        return complain(f"{run} is a file; give the folder of a run")
    from ecoflap.storage.results.verification import verify  # it imports torch

    try:
        differences = verify(run)
    except OSError as error:
        return complain(f"cannot verify {run}: {error}")
    except ValueError as error:
        return complain(f"cannot verify {run}: {error}; give the folder of a run with model.save=true")
    show(run, differences)
    return 1 if differences else 0


def show(run: Path, differences: list[str]) -> None:
    """Print the recorded figures per tower, then each difference."""
    from ecoflap.storage.results.record import Result
    from ecoflap.storage.results.sparsity import read_layers

    result = Result.read(run / RESULT)
    layers = read_layers(result.sparsity)
    rows = []
    for tower, sparsity in result.sparsity["towers"].items():
        inside = [layer for layer in layers.values() if layer.tower == tower]
        size, zeros = sum(layer.size for layer in inside), sum(layer.zeros for layer in inside)
        rows.append([tower, len(inside), size, zeros, sparsity])
    zeros, model = sum(layer.zeros for layer in layers.values()), result.model
    rows += [
        ["all prunable layers", len(layers), model["prunable"], zeros, result.sparsity["prunable"]],
        ["whole model", None, model["parameters"], zeros, result.sparsity["model"]],
    ]
    table(f"{run}: recorded sparsity", ["part", "layers", "weights", "zeros", "sparsity"], rows)
    for difference in differences:
        print(f"difference: {difference}")
    if differences:
        print(f"{len(differences)} difference{'s' if len(differences) > 1 else ''}")
    else:
        print(f"equal: the zeros and masks of {len(layers)} layers are as recorded{_hashes(result)}")


def _hashes(result: Result) -> str:
    """What the hashes say of a model whose zeros and masks are as recorded."""
    if not result.weights:
        return "; it has no hash of the weights"
    beside = ", config, tokenizer or processor" if result.model_files else ""
    return f", and no bit of a weight{beside} has changed"
