"""Match a model's tensors with a checkpoint that may use the names of another release of transformers."""

from __future__ import annotations

import logging
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.errors import UserError
from ecoflap.models.loading.converted_tensor import CheckpointTensor, ConvertedTensor, converted_shapes
from ecoflap.storage.stored_tensor import StoredTensor

log = logging.getLogger(__name__)

# The first releases store positions 0, 1, 2, ... and rotary frequencies; later ones compute them.
COMPUTED = (r"position_ids$", r"rotary_emb\.inv_freq$")


@dataclass(frozen=True)
class MatchedTensors:
    """The tensors of a model in a checkpoint.

    Attributes:
        found: the tensor of each parameter or buffer in the checkpoint; tied parameters have the same.
        unused: names of stored tensors that match nothing in the model.
    """

    found: dict[str, CheckpointTensor]
    unused: list[str]


def match_tensors(path: str, module: nn.Module, stored: Mapping[str, StoredTensor]) -> MatchedTensors:
    """Find every parameter of a model, and the buffers that the checkpoint has.

    Args:
        path: hub id or folder, for the messages.
        module: a model of transformers; its weights may be offloaded.
        stored: the tensors of the checkpoint by name.

    Raises:
        UserError: if a parameter, or a buffer that is saved, is not in the checkpoint, has another shape
            there, or has two values.
    """
    found, unused = _converted(path, module, stored)
    lost = [name for name in _saved_buffers(module) if name not in found]
    for tied in names_by_tensor(module):
        matches = [found[name] for name in tied if name in found]
        if not matches:
            lost.append(tied[0])
            continue
        if any(match != matches[0] and not _equal(match, matches[0]) for match in matches[1:]):
            both = " and ".join(name for name in tied if name in found)
            raise UserError(
                f"model.path={path} has different values for {both}, and its config.json says that they are"
                " one; set tie_word_embeddings to false there"
            )
        found |= dict.fromkeys(tied, matches[0])
    if lost:
        raise lacks_weights(path, lost, unused)
    return MatchedTensors(found, unused)


def _saved_buffers(module: Any) -> list[str]:
    """The buffers of a model that every checkpoint has; others may be computed where it is built."""
    saved = module.state_dict().keys()
    computed = [*COMPUTED, *(getattr(module, "_keys_to_ignore_on_load_missing", None) or ())]
    return [
        name
        for name, _ in module.named_buffers()
        if name in saved and not any(re.search(pattern, name) for pattern in computed)
    ]


def untie(path: str, module: Any, stored: Mapping[str, StoredTensor]) -> None:
    """Untie parameters of which the checkpoint has two values, as ``from_pretrained`` of transformers 5 does.

    Configs of some vision-language models tie the embeddings by default, though their checkpoints have two.

    Args:
        path: hub id or folder, for the messages.
        module: a model of transformers without its weights.
        stored: the tensors of the checkpoint by name.

    Raises:
        UserError: if a tensor has another shape in the checkpoint.
    """
    tied: dict[str, str] = getattr(module, "all_tied_weights_keys", None) or {}
    found = _converted(path, module, stored)[0] if tied else {}
    for name, source in [pair for pair in tied.items() if found.keys() >= set(pair)]:
        parameter = module.get_parameter(name)
        if parameter is not module.get_parameter(source) or _equal(found[name], found[source]):
            continue
        del tied[name]
        owner, _, attribute = name.rpartition(".")
        untied = nn.Parameter(torch.empty_like(parameter), parameter.requires_grad)
        setattr(module.get_submodule(owner), attribute, untied)
        log.warning(
            "model.path=%s has different values for %s and %s, which its config.json ties; they are left"
            " untied: set tie_word_embeddings to false there",
            path,
            source,
            name,
        )


def saved_form(module: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a model under the names, and in the parts, that ``save_pretrained`` writes.

    Args:
        module: the model.
        tensors: some or all of its tensors, or others of their shapes, by name.
    """
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before the fifth release
        return dict(tensors)
    try:
        return dict(revert_weight_conversion(module, dict(tensors)))
    except ValueError:  # a conversion of several tensors lacks some, which stand-ins without values take
        absent = {name: value.to("meta") for name, value in _siblings(module, tensors).items()}
        made = revert_weight_conversion(module, {**tensors, **absent})
        return {name: value for name, value in made.items() if value.device.type != "meta"}


def _siblings(module: nn.Module, names: Container[str]) -> dict[str, Tensor]:
    """The stacks of experts, in modules beside those of some stacks, that are called as these are.

    ERNIE has ``text_moe.experts.down_proj`` and ``vision_moe.experts.down_proj``, which its checkpoints
    number as one list of experts.
    """
    stacks: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, parameter in module.named_parameters():
        before, is_stack, inside = name.rpartition(".experts.")
        if is_stack:
            stacks.setdefault((before.rpartition(".")[0], inside), {})[name] = parameter.detach()
    return {
        name: stack
        for beside in stacks.values()
        if any(name in names for name in beside)
        for name, stack in beside.items()
        if name not in names
    }


def warn_unused(path: str, module: Any, names: Iterable[str]) -> None:
    """Warn in one line of tensors that the model doesn't use, except those that its class ignores."""
    ignored = [*COMPUTED, *(getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ())]
    unused = sorted(name for name in names if not any(re.search(pattern, name) for pattern in ignored))
    if unused:
        log.warning(
            "model.path=%s has %d tensors that belong to nothing in its %s, such as %s; they are neither used"
            " nor saved",
            path,
            len(unused),
            type(module).__name__,
            unused[0],
        )


def _converted(
    path: str, module: nn.Module, stored: Mapping[str, StoredTensor]
) -> tuple[dict[str, CheckpointTensor], list[str]]:
    """Checkpoint tensors by their names in the model, and names of stored tensors that match none."""
    wanted = module.state_dict()
    found: dict[str, CheckpointTensor] = {}
    unused: list[str] = []
    groups: dict[str, tuple[Any, list[tuple[str, StoredTensor]]]] = {}
    for name, target, converter, pattern in _targets(module, stored, wanted):
        if target not in wanted:
            unused.append(name)
        elif converter is None:
            found.setdefault(target, stored[name])
        else:
            groups.setdefault(target, (converter, []))[1].append((pattern, stored[name]))
    for first, (converter, sources) in groups.items():
        shapes = converted_shapes(path, module, converter, first, sources)
        for target in shapes:
            found[target] = ConvertedTensor(target, module, converter, first, tuple(sources))
        _check_shapes(path, wanted, shapes)
    plain = {target: tensor.shape for target, tensor in found.items() if isinstance(tensor, StoredTensor)}
    _check_shapes(path, wanted, plain)
    return found, unused


def _check_shapes(path: str, wanted: Mapping[str, Tensor], shapes: Mapping[str, Iterable[int]]) -> None:
    """Refuse tensors of another shape than the model's.

    Raises:
        UserError: if a tensor's shape in the checkpoint is not the model's.
    """
    for name, shape in shapes.items():
        if tuple(shape) != tuple(wanted[name].shape):
            raise UserError(
                f"{name} has the shape {tuple(shape)} in model.path={path} and {tuple(wanted[name].shape)} "
                "in the model of its config.json; copy both anew from one place"
            )


def _targets(
    module: Any, stored: Iterable[str], wanted: Mapping[str, Tensor]
) -> Iterator[tuple[str, str, Any, str]]:
    """For each stored tensor: its name, the name in the model, the converter or None, and its pattern."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )
    except ImportError:  # before the fifth release
        for name in sorted(stored):
            yield name, next((form for form in _forms(module, name) if form in wanted), name), None, ""
        return
    mapping = get_model_conversion_mapping(module)
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, module.base_model_prefix, wanted)
        if target not in wanted and name in wanted:
            target, pattern = name, None
        yield name, target, None if pattern is None else by_pattern[pattern], pattern or ""
    # As from_pretrained leaves it, for saving: all conversions in 5.0, later those that were used.
    module._weight_conversions = [one for one in mapping if not hasattr(one, "was_used") or one.was_used()]


def _forms(module: Any, name: str) -> Iterator[str]:
    """Names that a stored tensor may have in a model of the fourth release.

    They are converted or not, and with or without the prefix of the base model.
    """
    mapping = (getattr(module, "_checkpoint_conversion_mapping", None) or {}).items()
    converted = [
        re.sub(pattern, replacement, name) for pattern, replacement in mapping if re.search(pattern, name)
    ]
    prefix = f"{module.base_model_prefix}."
    for form in (*converted[:1], name):
        yield from (form, prefix + form, form.removeprefix(prefix))


def lacks_weights(path: str, lost: Iterable[str], unused: Sequence[str] = ()) -> UserError:
    """The error of a checkpoint that lacks some weights, and has the ``unused`` ones instead."""
    lost = sorted(lost)
    lacks = f"model.path={path} lacks {len(lost)} weights of its model, such as {lost[0]}"
    if not unused:
        return UserError(f"{lacks}; the checkpoint is damaged or of another model")
    return UserError(
        f"{lacks}, and has {len(unused)} that belong to nothing in it, such as {unused[0]}; it is of another"
        " model, or was saved by a newer transformers, and if runtime.offload=cpu loads it all the same, use"
        " that"
    )


def _equal(one: CheckpointTensor, other: CheckpointTensor) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parts(), other.parts(), strict=True))


def names_by_tensor(module: nn.Module) -> list[list[str]]:
    """The names of each parameter of a model; tied ones have several."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return list(names.values())
