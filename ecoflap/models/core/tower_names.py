"""Name the block lists of a model by the words in their paths, and order them by the flow of data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain, count

from torch import nn

# Pruning order. A tower is named by its kind, a second one of a kind by that and what distinguishes its path.
ORDER = (
    "vision",
    "video",
    "audio",
    "merger",
    "perceiver",
    "connector",
    "qformer",
    "text",
    "encoder",
    "decoder",
    "language",
    "speech",  # turns text of the language model into audio; the loss doesn't run it
    "mtp",  # predicts more than one token ahead; the loss doesn't run it
)
# The paper leaves the Q-Former dense: it has 5 % of the weights, and all information passes through it, as
# through other projections.
LEFT_DENSE = ("merger", "perceiver", "connector", "qformer", "speech", "mtp")

# Words of a path. The first kind that matches counts, so that a merger inside a vision tower is a merger.
WORDS = {
    "mtp": "mtp|nextn",
    "speech": "talker|token2wav|code2wav|vocoder|codec|t2u|diffusion_head|flow_head",
    "qformer": "q_?former",
    "perceiver": "perceiver|resampler|abstractor",
    "merger": "mergers?",
    "connector": "connector|projectors?|adapter|adaptor|aligner",
    "video": "video",
    "vision": "vision|visual|image|img|vit",
    "audio": "audio|speech|acoustic",
}
# Words in the class name of a block, for an encoder whose path does not name a modality.
CLASS_WORDS = {"vision": "Vision|Image", "audio": "Audio|Speech|Acoustic|Conformer"}
READS = {
    "pixel_values": "vision",
    "flattened_patches": "vision",
    "pixel_values_videos": "video",
    "input_features": "audio",
    "input_values": "audio",
}


def tower_kind(name: str) -> str | None:
    """The kind of tower that a name begins with; None for other names."""
    kind = name.partition("_")[0]
    return kind if kind in ORDER else None


def name_towers(
    lists: Mapping[str, nn.Module],
    reads: str | None = None,
    wanted: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Name each block list.

    Args:
        lists: the block lists by path, in the order of the module tree.
        reads: the kind of tower that reads the model's main input, unless that is text.
        wanted: paths by tower name that a config sets.

    Returns:
        The path of each tower by its name, in pruning order.
    """
    kinds = kinds_of(lists, reads)
    names = {path: tower for tower, path in (wanted or {}).items()}
    for kind in ORDER:
        alike = [path for path in lists if kinds[path] == kind and path not in names]
        # The largest gets the name of the kind; of two equally large, the one with the shorter path.
        for path in sorted(alike, key=lambda path: (-_weights(lists[path]), len(path))):
            names[path] = _free_name(kind, path, names)
    position = {path: ORDER.index(tower_kind(names[path]) or kinds[path]) for path in lists}
    return {names[path]: path for path in sorted(lists, key=position.__getitem__)}


def kinds_of(lists: Mapping[str, nn.Module], reads: str | None) -> dict[str, str]:
    """The kind of each block list, by path; ``lists`` and ``reads`` as in ``name_towers``."""
    word = r"(?<![a-z])(?:{})(?![a-z])"
    kinds = {path: kind for path in lists if (kind := _first(WORDS, path, word)) is not None}
    if len(kinds) == len(lists) and set(kinds.values()) <= set(LEFT_DENSE):
        kinds = {}  # the whole model is a perceiver or the like
    rest = [path for path in lists if path not in kinds]
    pair = any(map(_is_encoder, rest)) and any(map(_is_decoder, rest))
    speaks = pair or any(re.search("text|language|decoder", path) for path in rest)
    if reads is not None and reads not in kinds.values() and not speaks:
        return {**kinds, **dict.fromkeys(rest, reads)}
    alone = all(map(_is_encoder, rest))
    return {**kinds, **{path: _kind_of_words(path, lists[path], pair, alone) for path in rest}}


def _kind_of_words(path: str, blocks: nn.Module, pair: bool, alone: bool) -> str:
    """The kind of a list whose path names no modality.

    Args:
        path: path of the list.
        blocks: the list.
        pair: whether the model has an encoder and a decoder of text.
        alone: whether the model has nothing but encoders, apart from lists of other modalities.
    """
    if _is_decoder(path) and (pair or "text_decoder" in path):
        return "decoder"
    if _is_encoder(path) and pair:
        return "encoder"
    if re.search(r"text_encoder|text_model\.encoder|^text\.", path):
        return "text"
    if _is_encoder(path):
        block = type(next(blocks.children())).__name__
        return _first(CLASS_WORDS, block, "{}") or ("text" if alone else "encoder")
    return "language"


def _is_encoder(path: str) -> bool:
    """Whether a path is that of an encoder; BLIP's BERT calls its decoder an encoder, too."""
    return "decoder" not in path and bool(re.search(r"(^|[._])encoder\.", f"{path}."))


def _is_decoder(path: str) -> bool:
    return bool(re.search(r"(^|[._])decoder\.", f"{path}."))


def _first(words: Mapping[str, str], text: str, pattern: str) -> str | None:
    """The first kind with a word that occurs in a text."""
    found = (kind for kind, one in words.items() if re.search(pattern.format(one), text, re.IGNORECASE))
    return next(found, None)


def _weights(blocks: nn.Module) -> int:
    return sum(parameter.numel() for parameter in blocks.parameters())


def _free_name(kind: str, path: str, names: Mapping[str, str]) -> str:
    """The name of the kind, or a longer one if another path has that name.

    The longer name has as many parts of the path that the other one lacks as it takes to be unique.
    """
    paths = {name: other for other, name in names.items()}
    if kind not in paths:
        return kind
    lacking = [part for part in _parts(path) if part not in _parts(paths[kind])]
    own = [part.replace(".", "_").removeprefix(f"{kind}_") for part in lacking]
    longer = ["_".join([kind, *own[:end]]) for end in range(1, len(own) + 1)]
    numbered = (f"{longer[-1] if longer else kind}_{number}" for number in count(2))
    return next(name for name in chain(longer, numbered) if name not in paths)


def _parts(path: str) -> list[str]:
    """The parts of a path; an index stays with its list."""
    return re.split(r"\.(?!\d)", path)
