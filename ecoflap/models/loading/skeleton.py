"""A model without its weights: made from its config, and that from a description where there is no
checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ecoflap.errors import UserError
from ecoflap.models.offload.load import parameters_on_meta

# The former name makes the fifth release complain at each load; releases before 4.56 know no other.
DTYPE_OPTION = "torch_dtype" if version("transformers").startswith("4.") else "dtype"


_with_processors: ContextVar[bool] = ContextVar("with_processors", default=False)


@contextmanager
def with_processors() -> Iterator[None]:
    """Give models that are loaded on the meta device meanwhile their processors, so that the protocols of
    their interfaces are known.
    """
    token = _with_processors.set(True)
    try:
        yield
    finally:
        _with_processors.reset(token)


def wants_processor(device: torch.device) -> bool:
    """Whether a model on this device has a processor: one that is only inspected has none."""
    return device.type != "meta" or _with_processors.get()


def skeleton(model_class: Any, config: Any) -> nn.Module:
    """The model of a config on the meta device: names and shapes, no weights and no memory."""
    build = getattr(model_class, "_from_config", None) or model_class.from_config
    with torch.device("meta"):
        module: nn.Module = build(config)
        _untie_t5(module)
    return module


def framework(model_class: Any, config: Any, dtype: torch.dtype) -> nn.Module:
    """The model of a config as ``from_pretrained`` builds it in a dtype, before any weight is read: real
    buffers, parameters without memory.
    """
    build = getattr(model_class, "_from_config", None) or model_class.from_config
    with parameters_on_meta():
        module: nn.Module = build(config, **{DTYPE_OPTION: dtype})
        _untie_t5(module)
    kept = {
        torch.float16: ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"),
        torch.bfloat16: ("_keep_in_fp32_modules_strict",),
    }
    wide = {part for option in kept.get(dtype, ()) for part in getattr(module, option, None) or ()}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if wide.intersection(name.split(".")):
            tensor.data = tensor.data.float()
    return module


def read_generation_config(module: Any, folder: Path) -> None:
    """Give a model without weights what its checkpoint folder says of generation, as ``from_pretrained``
    does.
    """
    from transformers import GenerationConfig

    if (
        getattr(module, "generation_config", None) is not None
        and (folder / "generation_config.json").is_file()
    ):
        module.generation_config = GenerationConfig.from_pretrained(folder)


def _untie_t5(module: nn.Module) -> None:
    """Give a T5 its own head again: the fifth release of transformers ties every new one, whatever its config
    says (a loaded one is right).
    """
    for child in module.modules():
        head: Any = getattr(child, "lm_head", None)
        if (
            head is not None
            and getattr(getattr(child, "config", None), "scale_decoder_outputs", True) is False
        ):
            head.weight = nn.Parameter(torch.empty_like(head.weight))


def described(config_class: Any, architecture: Mapping[str, Any]) -> Any:
    """The config that ``model.architecture`` describes; ``AutoConfig`` is told the kind by its
    ``model_type``.

    Raises:
        UserError: the installed transformers does not know the kind of model.
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
