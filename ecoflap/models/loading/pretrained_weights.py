"""Load weights with ``from_pretrained``, and check that checkpoint, model and tokenizer match."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ecoflap.errors import UserError
from ecoflap.models.core.hub_kernels import no_kernels
from ecoflap.models.loading.checkpoint_folder import is_bitmask
from ecoflap.models.loading.conversion import lacks_weights, warn_unused
from ecoflap.models.loading.hub import bitmask_folder, from_hub
from ecoflap.models.loading.skeleton import read_generation_config, skeleton
from ecoflap.storage.saved_model import adapter_beside, open_checkpoint, refuse_adapter

log = logging.getLogger(__name__)


def load_weights(model_class: Any, path: str, revision: str | None, options: Mapping[str, Any]) -> nn.Module:
    """Load a model with ``from_pretrained``, and refuse weights that it would initialise at random.

    Args:
        model_class: the class of transformers.
        path: hub id or folder.
        revision: hub revision.
        options: further arguments of ``from_pretrained``.

    Raises:
        UserError: if the model can't be loaded, has an adapter beside it, or weights are missing or of
            another shape.
    """
    path = bitmask_folder(path, revision)
    refuse_adapter(Path(path))
    reporting = {"output_loading_info": True, "ignore_mismatched_sizes": True, **no_kernels(), **options}
    with _without_tables():
        module, report = from_hub(lambda: _from_pretrained(model_class, path, revision, reporting), path)
    if getattr(module, "_hf_peft_config_loaded", False):  # of the hub
        raise adapter_beside(path)
    if wrong := sorted(map(_mismatch, report["mismatched_keys"])):
        raise UserError(
            f"model.path={path} has {len(wrong)} weights of another shape than the model of its config.json, "
            f"such as {wrong[0]}; copy both anew from one place"
        )
    # The positions 0, 1, 2, ... are a buffer that the first releases store and later ones compute.
    lost = [str(name) for name in report["missing_keys"] if not str(name).endswith("position_ids")]
    if lost:
        raise lacks_weights(path, lost)
    warn_unused(path, module, map(str, report["unexpected_keys"]))
    return module  # type: ignore[no-any-return]


def _from_pretrained(model_class: Any, path: str, revision: str | None, options: dict[str, Any]) -> Any:
    """What ``from_pretrained`` returns; the tensors of a bitmask checkpoint go where the model will be."""
    folder = Path(path)
    if not is_bitmask(folder):
        return model_class.from_pretrained(path, revision=revision, **options)
    from transformers import AutoConfig

    config = options.pop("config", None) or AutoConfig.from_pretrained(path)
    device = options.get("device_map", {}).get("", "cpu")
    with open_checkpoint(folder) as checkpoint:
        state = {name: checkpoint.read(name).to(device) for name in checkpoint.names()}
    concrete: Any = type(skeleton(model_class, config))
    module, report = concrete.from_pretrained(None, config=config, state_dict=state, **options)
    read_generation_config(module, folder)
    return module, report


def _mismatch(entry: Any) -> str:
    """A weight's name and its two shapes."""
    if isinstance(entry, str):
        return entry
    name, stored, wanted = entry
    return f"{name} ({tuple(stored)}, not {tuple(wanted)})"


@contextmanager
def _without_tables() -> Iterator[None]:
    """Silence the tables of weights that transformers prints; our messages say what matters in one line.

    A filter, for transformers also lists what tensor parallelism would not shard once this logger has a
    level of its own.
    """
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_error)
    try:
        yield
    finally:
        logger.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def check_vocabulary(path: str, module: nn.Module, processor: Any) -> None:
    """Refuse a tokenizer with tokens that the embedding has no row for.

    Args:
        path: hub id or folder, for the message.
        module: the model; it needs no weights.
        processor: the tokenizer, or a processor that holds it.

    Raises:
        UserError: if ordinary texts have tokens without a row.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    rows = _rows(module)
    if rows is None or not hasattr(tokenizer, "get_vocab"):
        return
    highest = max(tokenizer("a")["input_ids"], default=0)  # includes the special tokens of every text
    if tokenizer.vocab_size > rows or highest >= rows:
        raise UserError(
            f"the tokenizer of model.path={path} has {len(tokenizer)} tokens and its model embeds {rows}; "
            "they don't belong together: copy both from one place"
        )
    if len(tokenizer) > rows:
        extra = sorted(token for token, index in tokenizer.get_added_vocab().items() if index >= rows)
        log.warning(
            "the tokenizer of model.path=%s has %d tokens and its model embeds %d; a text with %s can't be"
            " read",
            path,
            len(tokenizer),
            rows,
            extra[0] if extra else "one of the others",
        )


def _rows(module: Any) -> int | None:
    """Number of rows of the token embedding; None if the model has no ``nn.Embedding`` for tokens."""
    try:
        embedding = module.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return embedding.num_embeddings if type(embedding) is nn.Embedding else None
