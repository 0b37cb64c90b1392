"""Save a pruned model as a checkpoint."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from ecoflap.api.given import require
from ecoflap.api.result import PruneResult
from ecoflap.api.still_masked import require_masked, zeros_of
from ecoflap.api.wrapped import refuse_wrapped
from ecoflap.errors import UserError, require_choice
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.shared_memory import share_memory
from ecoflap.storage.bitmask.forms import DENSE, FORMS
from ecoflap.storage.checkpoint import write_checkpoint
from ecoflap.storage.disk_space import writing
from ecoflap.storage.file_names import (
    ALLOCATION,
    BITMASK_INDEX,
    CARD,
    LEASE,
    MASKS,
    RECIPE,
    RESULT,
    SCORES,
    STATUS,
    WEIGHTS_FILE,
    WEIGHTS_INDEX,
)
from ecoflap.storage.files import beside, remove_abandoned, write_json
from ecoflap.storage.lease import DEAD_AFTER, held
from ecoflap.storage.results.record import Result
from ecoflap.storage.results.sparsity import read_layers, sparsity_section
from ecoflap.storage.saved_model import (
    foreign_weights,
    processor_files,
    usual_dtype,
    weight_files,
)
from ecoflap.storage.sharing.card import has_own_card
from ecoflap.storage.sharing.describe import describe, with_hashes

INDEXES = (WEIGHTS_INDEX, BITMASK_INDEX)
BESIDE = (MASKS, RESULT, RECIPE, ALLOCATION, SCORES)
"""Files of an earlier checkpoint that, like its weights, are removed when other weights are written."""


def save(model: PruneResult | PrunableModel, folder: str | Path, form: str = DENSE) -> Path:
    """Write a checkpoint with the tokenizer or processor.

    The result of ``ecoflap.prune`` is saved with its masks (``masks.bits``, one bit per weight), the
    ``result.json``, ``scores.json`` and ``allocation.json`` of a run, a ``recipe.yaml`` with what is known of
    the run, and a model card (``README.md``). These files and the weights of an earlier checkpoint in the
    folder, including a ``pytorch_model.bin`` and an adapter, are replaced or removed. So are the files of an
    earlier processor, such as its chat template, if the model has one. All other files are kept, as is a card
    that ecoflap did not write.

    Args:
        model: the result of ``ecoflap.prune`` or ``ecoflap.load``.
        folder: the folder of the checkpoint; created if needed.
        form: ``"dense"``, which ``from_pretrained`` loads; ``"bitmask"``, without the zeros; or ``"coded"``,
            with the exponents of the other weights coded as well. ``ecoflap.load_pruned`` loads each.

    Returns:
        The folder.

    Raises:
        UserError: if there is no such form, the model has no ``save_pretrained``, a part of it is what
            ``torch.compile`` returned or has adapters, its embeddings are tied and its config says that
            they aren't, a layer was replaced or experts were removed since it was pruned, weights that the
            masks remove are no longer zero, transformers does not save its generation config, the folder has
            no name, is that of a run or can't be made or written to, another process keeps moving a
            checkpoint into it, or the disk is full.
    """
    loaded = model.prunable if isinstance(model, PruneResult) else model
    require(loaded, PrunableModel, "ecoflap.load or ecoflap.prune")
    require_choice("form", form, FORMS)
    if not isinstance(folder, str | os.PathLike):
        raise UserError(f"the folder is a {type(folder).__name__}; give the path of a folder to write")
    if not os.fspath(folder):
        raise UserError('the folder has no name; give one to write, or "." for the current folder')
    final = Path(folder).expanduser()
    if final.exists() and not final.is_dir():
        raise UserError(f"{final} is a file; choose a folder for the checkpoint")
    if (final / STATUS).is_file():
        raise UserError(f"{final} is the folder of a run, whose record would be replaced; choose another one")
    if not hasattr(loaded.module, "save_pretrained"):
        raise UserError(
            f"{loaded.name} has no save_pretrained; save its state_dict() and the masks of the result"
            " yourself"
        )
    refuse_wrapped(loaded.module)
    _refuse_tied_by_hand(loaded.module)
    if isinstance(model, PruneResult):
        require_masked(model)
    try:
        final.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{final} can't be made ({error.strerror}); choose another folder") from error
    if not os.access(final, os.W_OK | os.X_OK):
        raise UserError(f"{final} can't be written to; choose another folder")
    remove_abandoned(final)
    # In the folder, as that of a link or a mount may be on another disk than its parent.
    partial = beside(final / CARD)
    try:
        masks = model.masks if isinstance(model, PruneResult) else None
        with writing("the checkpoint", final):
            write_checkpoint(loaded, masks, partial, form)
            if isinstance(model, PruneResult):
                _write_record(model, partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    busy = f"another process moves a checkpoint into {final}, and this one stays in {partial}"
    try:
        with held(final / LEASE, lambda owner: f"{busy} ({owner}); choose another folder", DEAD_AFTER):
            _move(partial, final)
    except OSError as error:
        raise UserError(
            f"the checkpoint in {final} could not be replaced ({error}); the new one is in {partial} until"
            " another is saved there"
        ) from error
    return final


def _refuse_tied_by_hand(module: Any) -> None:
    """Refuse an output embedding that is the input's while the config says that they are two.

    transformers saves it once, and draws the other anew when the checkpoint is loaded.

    Raises:
        UserError: if it is one.
    """
    try:
        head, embedding = module.get_output_embeddings(), module.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # of a model that embeds no tokens
        return
    weight, read = getattr(head, "weight", None), getattr(embedding, "weight", None)
    if weight is None or read is None or not (read is weight or share_memory(read, weight)):
        return
    if not _is_tied_when_loaded(module, head):
        raise UserError(
            f"the output embedding of {type(module).__name__} is its input embedding, and its config says"
            " that they are two, so that the checkpoint would lack one; set"
            " model.config.tie_word_embeddings=True, or give each a weight of its own"
        )


def _is_tied_when_loaded(module: Any, head: nn.Module) -> bool:
    """Whether transformers ties an output embedding to the input's when it loads the model."""
    if hasattr(module, "get_expanded_tied_weights_keys"):  # since transformers 5, by the config of each part
        tied = module.get_expanded_tied_weights_keys(all_submodels=True)
        names = {f"{name}.weight" for name, child in module.named_modules() if child is head}
        return not names.isdisjoint({*tied, *tied.values()})
    config = module.config
    if hasattr(config, "get_text_config"):  # since transformers 4.44
        config = config.get_text_config(decoder=True)
    return bool(getattr(config, "tie_word_embeddings", True))


def _write_record(result: PruneResult, folder: Path) -> None:
    """Write how the model was pruned, in the files of a run."""
    describe(folder, with_hashes(_record_now(result), folder))
    write_json(folder / ALLOCATION, asdict(result.allocation))
    if result.scores is not None:
        write_json(folder / SCORES, result.scores.to_json())


def _record_now(result: PruneResult) -> Result:
    """The record with the zeros, parameters and dtype of the model as it is now.

    It may have been trained since, in which kept zeros become other numbers, cast, or given new tokens.
    """
    section, parameters = result.record.sparsity, result.prunable.parameter_count()
    counted = read_layers(section)
    for layer in result.prunable.layers:
        if layer.name in counted:
            counted[layer.name] = replace(counted[layer.name], zeros=zeros_of(layer.weight.detach()))
    named = {name: section[name] for name in ("target", "total", "allocated_by", "coarse")}
    figures = sparsity_section(counted, parameters=parameters, **named)
    dtype = usual_dtype(result.model.parameters())
    model = {**result.record.model, "dtype": dtype, "parameters": parameters}
    return replace(result.record, model=model, sparsity={**section, **figures})


def _move(partial: Path, final: Path) -> None:
    """Remove an earlier checkpoint, and move the new files into the folder, weights or indexes last.

    A model card that ecoflap did not write stays, and the files of a processor if the new model has none.
    """
    if has_own_card(final):
        (partial / CARD).unlink(missing_ok=True)
    else:
        (final / CARD).unlink(missing_ok=True)
    indexes, beside_them = ([final / name for name in names] for names in (INDEXES, BESIDE))
    processor = processor_files(final) if processor_files(partial) else []
    for old in (*indexes, *weight_files(final), *foreign_weights(final), *beside_them, *processor):
        old.unlink(missing_ok=True)
    for file in sorted(partial.iterdir(), key=lambda file: file.name in (WEIGHTS_FILE, *INDEXES)):
        if file.is_dir():
            shutil.copytree(file, final / file.name, dirs_exist_ok=True)
        else:
            os.replace(file, final / file.name)
    shutil.rmtree(partial)
