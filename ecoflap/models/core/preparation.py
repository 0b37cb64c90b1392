"""The settings of a model's tokenizer and image processor, wherever they were loaded from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

ORIGIN = (
    "_name_or_path",
    "name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "architectures",
    "processor_class",
    "_processor_class",
)
PLAIN = (str, int, float, bool, list, tuple, dict, type(None))
TOKENIZERS = ("tokenizer", "qformer_tokenizer")
PARTS = (*TOKENIZERS, "image_processor", "video_processor", "feature_extractor")
TEXTS = (
    "truncation_side",
    "split_special_tokens",
    "model_input_names",
    "clean_up_tokenization_spaces",
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
)
"""Options of tokenizers beside the rules that change token ids, or the texts that they stand for."""
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def without_origin(settings: Any) -> Any:
    """Settings without the entries that name a checkpoint's origin, so that two loads of a model agree."""
    if isinstance(settings, dict):
        return {str(name): without_origin(value) for name, value in settings.items() if name not in ORIGIN}
    return settings


def values_of(config: Any) -> Any:
    """The values of a model's config: of transformers' class, or, in a module of one's own, of any kind."""
    if hasattr(config, "to_dict"):
        return config.to_dict()
    return dict(config) if isinstance(config, Mapping) else getattr(config, "__dict__", repr(config))


def preparation(processor: Any, interface: Any) -> list[Any]:
    """The settings of all preprocessing as plain values.

    Args:
        processor: a tokenizer, an image processor, or an object that holds several of them; None for none.
        interface: the model's interface; an image transform of torchvision or open_clip is identified by its
            ``repr``.
    """
    transform = getattr(getattr(interface, "pixels", None), "prepare", None)
    shown = [] if transform is None or hasattr(transform, "__code__") else [ADDRESS.sub("", repr(transform))]
    return [*([] if processor is None else _settings(processor)), *shown]


def _settings(processor: Any) -> list[Any]:
    if hasattr(processor, "get_vocab"):
        return [_tokenizer(processor)]
    parts = [part for name in PARTS if (part := getattr(processor, name, None)) is not None]
    if not parts:
        return [without_origin(processor.to_dict())] if hasattr(processor, "to_dict") else []
    own = {
        name: value
        for name, value in vars(processor).items()
        if isinstance(value, PLAIN) and not name.startswith("_")
    }
    return [without_origin(own), *(settings for part in parts for settings in _settings(part))]


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Vocabulary, rules and options; padding and lengths change with each call and are left out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend else {}
    rules = {name: value for name, value in rules.items() if name not in ("padding", "truncation")}
    return {
        "class": type(tokenizer).__name__,
        "rules": rules or tokenizer.get_vocab(),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "longest": tokenizer.model_max_length,
        "chat": getattr(tokenizer, "chat_template", None),
        "texts": {name: getattr(tokenizer, name, None) for name in TEXTS},
    }


@contextmanager
def same_tokenizer(processor: Any) -> Iterator[None]:
    """Restore the padding and the truncation of a processor's tokenizers, which their calls set.

    ``save_pretrained`` writes both into tokenizer.json, and programs that read it would cut off their texts.

    Args:
        processor: a tokenizer, or an object that holds some; None for none.
    """
    parts = [part for name in TOKENIZERS if (part := getattr(processor, name, None)) is not None]
    tokenizers = parts or [processor]
    sides = [(one, side) for one in tokenizers if (side := getattr(one, "padding_side", None)) is not None]
    settings = [
        (backend, backend.padding, backend.truncation)
        for one in tokenizers
        if (backend := getattr(one, "backend_tokenizer", None)) is not None
    ]
    try:
        yield
    finally:
        for tokenizer, side in sides:
            tokenizer.padding_side = side
        for backend, padding, truncation in settings:
            _ = backend.no_padding() if padding is None else backend.enable_padding(**padding)
            _ = backend.no_truncation() if truncation is None else backend.enable_truncation(**truncation)
