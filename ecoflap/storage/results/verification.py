"""Verify a saved model against its result record: everything is counted again from the files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecoflap.storage.file_names import MASKS, RESULT
from ecoflap.storage.masks import MaskFile, Rows
from ecoflap.storage.results.record import Result
from ecoflap.storage.results.sparsity import LayerCount, read_layers, sparsity_section
from ecoflap.storage.saved_model import hash_model_files, open_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from ecoflap.storage.tensor_files import TensorFiles


def verify(run_folder: Path) -> list[str]:
    """Compare a run's record with its saved model and masks, one tensor in memory at a time.

    Counts and masks say which layer differs. If all of them are as recorded, the hash of all tensors tells
    whether any other bit has changed. Configs and the files of a tokenizer or processor are compared by
    their hashes; files that were added since are not differences.

    Args:
        run_folder: Folder with ``result.json`` and the checkpoint that it names.

    Returns:
        One line per difference, naming the layer or figure; empty when everything is equal.

    Raises:
        FileNotFoundError: if the record, a file of the checkpoint or the mask file is missing, or the run
            saved no checkpoint.
        ValueError: if the record or the mask file has another format.
    """
    run_folder = Path(run_folder)
    result = Result.read(run_folder / RESULT)
    if result.checkpoint is None:
        raise FileNotFoundError("it saved no checkpoint; run it again with model.save=true")
    folder = run_folder / result.checkpoint
    try:
        layers = read_layers(result.sparsity)
        differences = [*_figure_differences(result, layers), *_target_differences(result, layers)]
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{run_folder / RESULT} is a damaged record: {error!r}") from error
    with open_checkpoint(folder) as checkpoint, MaskFile(folder / MASKS) as masks:
        differences += checkpoint.damage()
        for name, layer in layers.items():
            found = _layer_differences(masks.places(name), layer, checkpoint, masks)
            differences += [f"{name}: {difference}" for difference in found]
        known = {rows.name for name in layers for rows in masks.places(name)}
        unknown = [name for name in masks.shapes if name not in known]
        differences += [f"{name}: has a mask but is not in the record" for name in unknown]
        if not differences and result.weights is not None:
            differences += _changed_bits(checkpoint, result.weights)
    return [*differences, *_changed_files(folder, result.model_files or {})]


def _changed_bits(checkpoint: TensorFiles, recorded: str) -> Iterator[str]:
    from ecoflap.storage.tensor_files import hash_tensors  # it imports torch

    if (found := hash_tensors(checkpoint)) != recorded:
        yield f"the weights have changed since they were saved: their hash is {found}, recorded is {recorded}"


def _changed_files(folder: Path, recorded: Mapping[str, str]) -> Iterator[str]:
    """Differences between the files that the model was saved with and those beside its weights."""
    found = hash_model_files(folder)
    for name in recorded:
        if name not in found:
            yield f"{name}: is missing, the model was saved with it"
        elif found[name] != recorded[name]:
            yield f"{name}: has changed since the model was saved"


def _layer_differences(
    places: Sequence[Rows], layer: LayerCount, checkpoint: TensorFiles, masks: MaskFile
) -> Iterator[str]:
    """Differences between one layer's record and its weights and mask, which may be in several tensors."""
    from safetensors import SafetensorError

    try:
        weights = [checkpoint.tensor(*rows) for rows in places]
    except KeyError:
        yield "is in the record but not in the checkpoint"
        return
    except (SafetensorError, ValueError) as error:
        yield f"its file in the checkpoint cannot be read ({error})"
        return
    yield from _weight_differences(weights, layer)
    if any(rows.name not in masks.shapes for rows in places):
        yield f"has no mask in {MASKS}"
    else:
        found = [masks[rows.name][rows.start : rows.stop] for rows in places]
        yield from _mask_differences(weights, found, layer)


def _weight_differences(weights: Sequence[Tensor], layer: LayerCount) -> Iterator[str]:
    """Differences between weights of any shape and the recorded size and zeros."""
    if (size := sum(weight.numel() for weight in weights)) != layer.size:
        yield f"has {size} weights, the record says {layer.size}"
    if (zeros := sum(int((weight == 0).sum()) for weight in weights)) != layer.zeros:
        yield f"has {zeros} zeros, the record says {layer.zeros}"
    if broken := sum(int((~weight.isfinite()).sum()) for weight in weights):
        yield f"has {broken} weights that are NaN or infinite"


def _mask_differences(weights: Sequence[Tensor], masks: Sequence[Tensor], layer: LayerCount) -> Iterator[str]:
    """Differences between weights and masks, each in the same shape, and the masks and the recorded count."""
    for weight, mask in zip(weights, masks, strict=True):
        if mask.shape != weight.shape:
            yield f"its mask has shape {list(mask.shape)}, the weight {list(weight.shape)}"
            return
    if (kept := sum(int(mask.sum()) for mask in masks)) != layer.kept:
        yield f"its mask keeps {kept} weights, the record says {layer.kept}"
    if alive := sum(int((one[~mask] != 0).sum()) for one, mask in zip(weights, masks, strict=True)):
        yield f"{alive} weights are not zero although the mask removes them"


def _figure_differences(result: Result, layers: Mapping[str, LayerCount]) -> Iterator[str]:
    """Differences between the recorded totals and the sums over the recorded layers."""
    recorded = result.sparsity
    if not layers:
        yield "the record lists no layers"
    if (size := sum(layer.size for layer in layers.values())) != result.model["prunable"]:
        yield f"model.prunable is {result.model['prunable']}, the layers have {size} weights"
    expected = _flat_figures(sparsity_section(layers, recorded["target"], result.model["parameters"]))
    found = _flat_figures(recorded)
    for name in {**expected, **found}:
        one, other = found.get(name), expected.get(name)
        if one is None or other is None or not math.isclose(one, other, rel_tol=1e-9):
            yield f"{name} is {one} in the record, the layers give {other}"


def _target_differences(result: Result, layers: Mapping[str, LayerCount]) -> Iterator[str]:
    """Differences between the target, the sparsity of the config and what the masks keep.

    Only exact totals add up to the target, rounded down once, or once in each tower. Without the prune step,
    all weights stay.
    """
    target, total = result.sparsity["target"], result.sparsity.get("total")
    if target is None or total in (None, "as_given"):
        return
    requested = result.config.get("sparsity", target)
    if requested != target:
        yield f"sparsity.target is {target} in the record, its config has sparsity={requested}"
    kept, size = (sum(getattr(layer, name) for layer in layers.values()) for name in ("kept", "size"))
    towers = {layer.tower for layer in layers.values()}
    if total == "exact" and kept < size and not -1e-3 <= (1 - target) * size - kept < len(towers) + 1e-3:
        yield f"the masks keep {kept} of {size} weights, which is not the target of {target}"


def _flat_figures(section: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a sparsity section that follow from its counts, each under a readable name."""
    totals = {f"sparsity of {scope}": section[scope] for scope in ("prunable", "model")}
    towers = {f"sparsity of tower {name}": value for name, value in section["towers"].items()}
    return {
        **totals,
        **towers,
        **{f"{name}: sparsity": layer["sparsity"] for name, layer in section["layers"].items()},
    }
