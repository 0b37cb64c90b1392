"""Load a model, or prepare a model in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ecoflap.api.parts import built, named, names
from ecoflap.api.wrapped import refuse_compiled, refuse_quantised, refuse_wrapped
from ecoflap.errors import UserError, require_choice
from ecoflap.models.core.prunable import Loss, PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.loading.device import resolve_device
from ecoflap.models.loading.hub import read_settings, require_folder
from ecoflap.models.loading.kinds import (
    MAPPINGS,
    OWN_CLASSES,
    class_or_type,
    option_for_config,
    option_for_model,
    options_for_type,
)
from ecoflap.models.loading.loader import prunable
from ecoflap.models.sparse.linear import SparseLinear
from ecoflap.run.saved_loader import recorded_node

IN_MEMORY = "(in memory)"
READ_WITHOUT_PROCESSOR = ("causal_lm", "seq2seq", "vlm", "image_classifier", "clip")


def load(
    model: str | Path | nn.Module,
    processor: Any = None,
    *,
    kind: str | None = None,
    loss: str | Loss | None = None,
    towers: Sequence[str] | None = None,
    skip_layers: Sequence[str] = (),
    device: str | None = None,
    **options: Any,
) -> PrunableModel:
    r"""Load a model, or prepare one that is in memory, and find the towers to prune.

    A model in memory keeps its device and dtype; pruning changes its weights in place.

    Args:
        model: a hub id, a folder that ``save_pretrained`` wrote, a choice of the command line's ``model``
            such as ``"blip2_mini"``, or a transformers model. A folder with the ``result.json`` of a run is
            loaded with the options of that run.
        processor: the tokenizer or processor of a model in memory; None if the data will be model inputs.
        kind: the kind of model, if its config or class does not determine it: a choice of ``model`` such as
            ``"causal_lm"``, ``"seq2seq"``, ``"vlm"``, ``"clip"`` or ``"image_classifier"``.
        loss: the loss that scores use: a name that the kind knows, a function by its dotted path, or a
            function (module, batch, copies) -> one loss per sample. None for the default of the kind.
        towers: the towers to prune; None for all except projections.
        skip_layers: regular expressions of layers to leave dense.
        device: the device to load a model to: ``"cpu"``, ``"cuda"``, ...; None for the accelerator, if there
            is one.
        options: options of the kind, such as ``dtype="bfloat16"`` or
            ``prompt="USER: <image>\n{} ASSISTANT:"``.

    Raises:
        UserError: if there is no such model, kind, option, tower or layer.
        NumericalError: if a weight is NaN or infinite.
    """
    for option, given in (("towers", towers), ("skip_layers", skip_layers)):
        if isinstance(given, str):
            raise UserError(f"{option}={given!r} is a single text; give a list, {option}=[{given!r}]")
    selection = Selection(None if towers is None else list(towers), list(skip_layers))
    if isinstance(loss, str):
        options["loss"] = loss
    if isinstance(model, nn.Module):
        if device is not None:
            raise UserError(
                f"device={device}: a model in memory stays where it is; move it before with .to({device!r})"
            )
        found = _prepare(model, processor, kind, loss, selection, options)
    else:
        if not isinstance(model, str | Path):
            raise UserError(
                f"the model is a {type(model).__name__}; give a hub id, a folder or a transformers model"
            )
        if processor is not None:
            raise UserError(
                "a processor goes with a model in memory; a hub id or folder is loaded with its own"
            )
        found = _loader(str(model), kind, options).load(resolve_device(device or "auto"), selection)
    return replace(found, loss_function=loss) if callable(loss) else found


def _prepare(
    module: nn.Module,
    processor: Any,
    kind: str | None,
    loss: str | Callable[..., Any] | None,
    selection: Selection,
    options: dict[str, Any],
) -> PrunableModel:
    """Prepare a model in memory for pruning, and leave its training modes unchanged.

    Raises:
        UserError: if it is wrapped, its kind is unknown, or takes no model in memory, or needs a processor.
    """
    refuse_wrapped(module)
    refuse_compiled(module)
    _refuse_spread(module)
    refuse_quantised(module)
    _refuse_sparse(module)
    if kind is not None:
        _refuse_other_kind(module, kind)
    training = [(child, child.training) for child in module.modules()]
    option = kind or option_for_model(module)
    try:
        if option is None and callable(loss):
            return prunable(type(module).__name__, module, processor, loss, selection, options.get("towers"))
        if option is None:
            raise _unknown_kind(type(module).__name__, "give")
        loader = _named_loader(option, IN_MEMORY, options)
        if not hasattr(loader, "from_module"):
            raise UserError(f"kind={option} takes no model in memory; give a folder or a hub id instead")
        if processor is None and option not in READ_WITHOUT_PROCESSOR:
            raise UserError(
                f"{type(module).__name__} needs its processor to be scored: call ecoflap.load(model,"
                " processor) or ecoflap.prune(model, processor, ...)"
            )
        if processor is not None and option != "image_classifier":
            _check_processor(module, processor)
        found: PrunableModel = loader.from_module(module, processor, selection)
        return replace(found, name=type(module).__name__)
    finally:
        for child, mode in training:
            child.training = mode


def _unknown_kind(what: str, give: str) -> UserError:
    """The error of a model whose kind neither its class nor its config tells.

    Args:
        what: the model.
        give: how a model with a loss of its own is given.
    """
    kinds = ", ".join(READ_WITHOUT_PROCESSOR)
    return UserError(
        f"{what} is not of a known kind; say which with kind=, one of {kinds}, ..., or {give} loss=, a"
        " function of (module, batch, copies)"
    )


def _refuse_other_kind(module: nn.Module, kind: str) -> None:
    """Refuse a kind for a class or a mapping of transformers' that is not among those of the model.

    Raises:
        UserError: if it is not.
    """
    own = option_for_model(module)
    if kind in OWN_CLASSES.values() and own is not None:
        fitting = [own]
    elif kind in MAPPINGS:
        fitting = options_for_type(str(getattr(getattr(module, "config", None), "model_type", None)))
    else:
        return
    if fitting and kind not in fitting:
        raise UserError(
            f"kind={kind} can't prepare {type(module).__name__}; leave it out, or give {' or '.join(fitting)}"
        )


def _refuse_sparse(module: nn.Module) -> None:
    """Refuse a model whose zeros are not in memory.

    Raises:
        UserError: if some of its layers are sparse.
    """
    if any(isinstance(child, SparseLinear) for child in module.modules()):
        raise UserError(
            f"{type(module).__name__} was loaded with sparse=True, which leaves its layers no dense weights;"
            " load it with ecoflap.load_pruned(folder)"
        )


def _check_processor(module: nn.Module, processor: Any) -> None:
    """Refuse a tokenizer or an image processor alone where a model reads both pictures and texts.

    Raises:
        UserError: if one of the two is missing.
    """
    if not hasattr(getattr(module, "config", None), "vision_config"):
        return
    if missing := [part for part in ("image_processor", "tokenizer") if not hasattr(processor, part)]:
        raise UserError(
            f"{type(module).__name__} reads pictures and texts, and {type(processor).__name__} has no"
            f" {missing[0]}; give the model's processor, such as AutoProcessor.from_pretrained gives"
        )


def _refuse_spread(module: nn.Module) -> None:
    """Refuse a model whose weights are not all on one device.

    Raises:
        UserError: if they aren't.
    """
    devices = sorted({str(parameter.device) for parameter in module.parameters()})
    if len(devices) != 1 or "meta" in devices:
        raise UserError(
            f"the weights of {type(module).__name__} are on {', '.join(devices) or 'no device'}, and one that"
            " holds them all is needed; load the model without device_map"
        )


def _loader(path: str, kind: str | None, options: dict[str, Any]) -> Any:
    """The loader of a hub id, a folder or a choice of ``model``.

    Raises:
        UserError: if there is no such model, or its kind is unknown.
    """
    if kind is None and path in names("model") and not Path(path).is_dir():
        return built("model", {**named("model", path), **options})
    if kind is None:
        folder = require_folder(path)
        if (recorded := recorded_node(Path(folder))) is not None:
            return built("model", {**recorded, **options})
        settings = read_settings(folder, options.get("revision"))
        kind = option_for_config(settings)
        if kind is None:
            what = f"{path} holds a {class_or_type(settings)}, which"
            raise _unknown_kind(what, "load it with transformers and give")
    return _named_loader(kind, path, options)


def _named_loader(kind: str, path: str, options: dict[str, Any]) -> Any:
    """The loader of a kind of model.

    Raises:
        UserError: if there is no such kind or option.
    """
    require_choice("kind", kind, names("model"))
    node = {**named("model", kind), **options}
    return built("model", {**node, "path": path} if "path" in node else node)
