"""The forms in which a model is measured: dense, as saved, and as kernels for zeros run it.

A further form is one function that takes a run and yields forms, and an entry in ``FORMS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.loading.device import resolve_device
from ecoflap.models.sparse.sparsify import sparsify
from ecoflap.run.plan.parts import make
from ecoflap.run.saved_loader import saved_node
from ecoflap.storage.file_names import BITMASK_INDEX, RESULT
from ecoflap.storage.results.record import Result
from ecoflap.storage.saved_model import weight_bytes

HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class SavedRun:
    """A run that saved its model.

    Attributes:
        name: its name in the table.
        place: its folder.
        folder: the folder of the saved model.
        record: its record.
    """

    name: str
    place: Path
    folder: Path
    record: Result


@dataclass(frozen=True)
class Form:
    """A model in one form.

    Attributes:
        name: its name in the table.
        kind: what stores or runs the weights.
        load: loads it.
        folder: where its weights lie; None for the dense model, which is not saved.
        run: the run whose record has its metric.
        stage: ``dense``, or the last of ``pruned`` and ``finetuned``.
        optional: whether a kernel for zeros runs it; where it can't be loaded, the others are measured
            without it.
    """

    name: str
    kind: str
    load: Callable[[], PrunableModel]
    folder: Path | None
    run: SavedRun
    stage: str
    optional: bool = False

    def disk_bytes(self, model: PrunableModel) -> int:
        """Bytes of the weights on disk; those that saving would write, where nothing is saved."""
        if self.folder is None:
            return memory_bytes(model.module, buffers=False)
        return weight_bytes(self.folder) + sum(file.stat().st_size for file in self.folder.glob("*.pth"))


def read_runs(folders: Sequence[Path]) -> list[SavedRun]:
    """Runs that saved their models, named by their folders, or by their paths where two folders are alike.

    Raises:
        UserError: see ``read_run``.
    """
    runs = [read_run(folder) for folder in folders]
    if len({run.name for run in runs}) < len(runs):
        runs = [replace(run, name=str(folder)) for run, folder in zip(runs, folders, strict=True)]
    return runs


def read_run(folder: Path) -> SavedRun:
    """A run that saved its model, or the folder of a saved model with its record.

    Raises:
        UserError: if it has no record, or saved nothing.
    """
    try:
        record = Result.read(folder / RESULT)
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    if record.checkpoint is None:
        raise UserError(f"{folder} saved no model; run it again with model.save=true")
    if not record.of_a_run:
        raise UserError(
            f"{folder} was pruned in Python, and its record does not say how the dense model is loaded; bench"
            " runs of the command line"
        )
    return SavedRun(folder.resolve().name, folder, folder / record.checkpoint, record)


def dense(run: SavedRun, device: torch.device) -> Form:
    """The model that a run pruned."""
    node = {**run.record.config["model"], "save": False}
    return Form("dense", "dense", lambda: _load(node, run, device), None, run, "dense")


def saved(run: SavedRun, device: torch.device) -> Iterator[Form]:
    """A saved model as it lies there."""
    kind = "structured" if run.record.is_structured else run.record.pattern or "masked"
    if (run.folder / BITMASK_INDEX).is_file():
        kind += ", stored without zeros"
    node = saved_node(run.record.config["model"], run.folder)
    yield Form(run.name, kind, lambda: _load(node, run, device), run.folder, run, run.record.state)


def semi_structured(run: SavedRun, device: torch.device) -> Iterator[Form]:
    """A model of 2:4 sparsity on the sparse tensor cores of a GPU."""
    if run.record.pattern != "2:4" or device.type != "cuda":
        return
    (stored,) = saved(run, device)
    yield replace(
        stored,
        name=f"{run.name}, sparse kernel",
        kind="2:4 semi-structured",
        load=lambda: to_semi_structured(stored.load()),
        optional=True,
    )


def without_zeros(run: SavedRun, device: torch.device) -> Iterator[Form]:
    """A model whose zeros are left out in memory, and multiplied without, on the CPU."""
    if run.record.is_structured or device.type != "cpu":
        return
    (stored,) = saved(run, device)
    yield replace(
        stored,
        name=f"{run.name}, sparse",
        kind="sparse in memory",
        load=lambda: _sparsified(stored.load()),
        optional=True,
    )


FORMS: Sequence[Callable[[SavedRun, torch.device], Iterator[Form]]] = (saved, semi_structured, without_zeros)


def forms_of(runs: Sequence[SavedRun]) -> list[Form]:
    """The dense model of the first run, and every form of each run.

    Raises:
        UserError: if the runs are of several models.
    """
    fingerprints = {run.record.model["fingerprint"] for run in runs}
    if len(fingerprints) > 1:
        names = ", ".join(f"{run.name}: {run.record.model['name']}" for run in runs)
        raise UserError(f"the runs pruned different models ({names}); bench those of one model together")
    device = resolve_device("auto")
    return [dense(runs[0], device), *(form for run in runs for make in FORMS for form in make(run, device))]


def to_semi_structured(model: PrunableModel) -> PrunableModel:
    """Store the 2:4 layers of a model for sparse tensor cores, in place.

    Raises:
        UserError: if the weights are not in half precision, or no layer fits the kernel.
    """
    from torch.sparse import to_sparse_semi_structured

    converted = 0
    for layer in model.layers:
        module: Any = layer.module
        if not isinstance(module, nn.Linear):
            continue
        if module.weight.dtype not in HALVES:
            raise UserError("the 2:4 kernel needs half precision; prune with model.dtype=bfloat16")
        try:
            sparse = to_sparse_semi_structured(module.weight.detach())
        except (RuntimeError, ValueError):  # a shape or pattern that the kernel does not take
            continue
        module.weight = nn.Parameter(sparse, requires_grad=False)
        converted += 1
    if not converted:
        raise UserError("no layer has a shape that the 2:4 kernel takes")
    return model


def _sparsified(model: PrunableModel) -> PrunableModel:
    """A model without the zeros of its linear layers, in place.

    Raises:
        UserError: if no layer can be multiplied so on this machine.
    """
    if not sparsify(model.module):
        raise UserError("no linear layer is large enough with enough zeros")
    return model


def memory_bytes(module: nn.Module, buffers: bool = True) -> int:
    """Bytes of parameters and buffers; what several share counts once."""
    tensors = [*module.parameters(), *(module.buffers() if buffers else ())]
    stored = {part.untyped_storage().data_ptr(): part for one in tensors for part in _stored(one)}
    return sum(part.untyped_storage().nbytes() for part in stored.values())


def _stored(tensor: Tensor) -> list[Tensor]:
    """The tensors that hold a tensor's numbers: itself, or the parts of a sparse one."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor.detach()]
    names, _ = tensor.__tensor_flatten__()
    return [getattr(tensor, name) for name in names]


def _load(node: dict[str, Any], run: SavedRun, device: torch.device) -> PrunableModel:
    selection = Selection(run.record.config.get("towers"), list(run.record.config.get("skip_layers") or []))
    model: PrunableModel = make("model", OmegaConf.create(node)).load(device, selection)
    return model
