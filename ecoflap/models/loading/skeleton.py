"""A model without its weights, from its config, or from a description where there is no checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ecoflap.errors import UserError
from ecoflap.models.core.wide_parts import DTYPE_OPTION, IS_FOURTH, wide_names


def class_as_cut(model_class: Any, config: Any) -> Any:
    """The class of a checkpoint's model: the given one, or where units were removed one that is as narrow."""
    if not getattr(config, "kept_units", None):
        return model_class
    from ecoflap.models.core.units import narrowed  # here, as it imports transformers' BLIP

    return narrowed(model_class, config)


def skeleton(model_class: Any, config: Any, dtype: torch.dtype | None = None) -> nn.Module:
    """The model of a config on the meta device: names and shapes, without weights or memory.

    Args:
        model_class: builds the model.
        config: its config.
        dtype: of its weights; None for what the config says.
    """
    with torch.device("meta"):
        return _built(model_class, config, dtype)


def without_weights(model_class: Any, config: Any, dtype: torch.dtype) -> nn.Module:
    """The model of a config as ``from_pretrained`` builds it in a dtype, before any weight is read.

    Its buffers are real; its parameters are on the meta device.
    """
    setattr(config, DTYPE_OPTION, dtype)
    with parameters_on_meta():
        module: Any = _built(model_class, config, dtype)
    if not IS_FOURTH:  # later, from_pretrained computes buffers anew in fp32: rotary angles would be rounded
        for child in module.modules():
            vars(child).pop("_is_hf_initialized", None)
        module.initialize_weights()
    tensors = dict((*module.named_parameters(), *module.named_buffers()))
    for name in wide_names(module, dtype):
        tensors[name].data = tensors[name].data.float()
    return module  # type: ignore[no-any-return]


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Build modules whose parameters are on the meta device.

    Buffers are built as usual, because checkpoints lack some, such as rotary frequencies.
    """
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        original(module, name, parameter)
        if parameter is not None and parameter.device.type != "meta":
            module._parameters[name] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def _built(model_class: Any, config: Any, dtype: torch.dtype | None) -> nn.Module:
    """The model of a config, with the weights that the class initialises."""
    build = getattr(model_class, "_from_config", None) or model_class.from_config
    module: nn.Module = build(config, **({} if dtype is None else {DTYPE_OPTION: dtype}))
    _untie_t5(module)
    return module


def read_generation_config(module: Any, folder: Path) -> None:
    """Read the generation config of a checkpoint folder into a model, as ``from_pretrained`` does.

    Old checkpoints have it in config.json, whose class drops it since the fifth release.
    """
    from transformers import GenerationConfig

    if getattr(module, "generation_config", None) is None:
        return
    if (folder / "generation_config.json").is_file():
        module.generation_config = GenerationConfig.from_pretrained(folder)
    elif not IS_FOURTH:
        module.generation_config = GenerationConfig.from_pretrained(
            folder, config_file_name="config.json", _from_model_config=True
        )


def _untie_t5(module: nn.Module) -> None:
    """Untie the head of each T5 whose config says so.

    The fifth release of transformers ties the head of every T5 that it builds; loaded ones are right.
    """
    for child in module.modules():
        head: Any = getattr(child, "lm_head", None)
        scaled = getattr(getattr(child, "config", None), "scale_decoder_outputs", True)
        if head is not None and scaled is False:
            head.weight = nn.Parameter(torch.empty_like(head.weight))


def described(config_class: Any, architecture: Mapping[str, Any]) -> Any:
    """The config that ``model.architecture`` describes; ``AutoConfig`` needs its ``model_type``.

    Raises:
        UserError: if the installed transformers does not know the kind of model.
    """
    settings = dict(architecture)
    if not hasattr(config_class, "for_model"):
        return config_class(**settings)
    kind = settings.pop("model_type", "")
    try:
        return config_class.for_model(kind, **settings)
    except ValueError as error:
        raise UserError(
            f"model.architecture.model_type={kind!r} is not known to transformers {version('transformers')};"
            " install a newer one"
        ) from error
