"""Quantised checkpoints: transformers dequantises some while it loads them; all others are refused."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ecoflap.errors import UserError
from ecoflap.models.loading.checkpoint_folder import tensors_in

# Methods that need no package beside transformers, on any device, and the module that dequantises them.
DEQUANTISED = {"fp8": "transformers.integrations.finegrained_fp8", "mxfp4": "transformers.integrations.mxfp4"}
# Dtypes of safetensors that only quantised weights have. Integers count only for matrices, because indices
# and attention masks are integers too.
NARROW_FLOATS = ("F8_", "F6_", "F4")
FP8 = ("F8_E4M3", "F8_E5M2")
FP8_BLOCK = 128  # rows and columns with one scale, where a config doesn't say how many
INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32")


def _quantisation_in(settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first quantisation config in a config.json or in one of its parts; None if there is none."""
    for name in ("quantization_config", "compression_config"):
        if found := settings.get(name):
            return found  # type: ignore[no-any-return]
    parts = (_quantisation_in(part) for part in settings.values() if isinstance(part, Mapping))
    return next((found for found in parts if found is not None), None)


def _method(settings: Mapping[str, Any]) -> str:
    """The name of the method that a quantisation config describes."""
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return f"bitsandbytes, {4 if settings.get('load_in_4bit') else 8} bits"
    return str(settings.get("quant_method", "a method without a name"))


def check_config(path: str, settings: Mapping[str, Any], streaming: bool) -> bool:
    """Whether a checkpoint has to be dequantised while it is loaded.

    Args:
        path: hub id or folder, for the message.
        settings: its config.json.
        streaming: whether its weights stay on the disk.

    Raises:
        UserError: if it is quantised and can't be dequantised.
    """
    found = _quantisation_in(settings)
    if found is None:
        return False
    method = _method(found)
    if not _dequantises(method):
        raise _refusal(path, f"quantised with {method}, as its config.json says")
    if streaming:
        raise UserError(
            f"model.path={path} is quantised with {method}, and what stays on the disk can't be dequantised; "
            "use runtime.offload=cpu, or the checkpoint that it was made from"
        )
    return True


def dequantise(config: Any) -> Any:
    """Ask transformers, in a config to load with, for full-precision weights instead of quantised layers.

    Args:
        config: the config of a checkpoint that ``check_config`` accepts.
    """
    for part in (config, config.get_text_config(decoder=True)):
        if isinstance(getattr(part, "quantization_config", None), dict):
            part.quantization_config["dequantize"] = True
    return config


def check_weights(path: str, files: list[Path]) -> None:
    """Refuse weights that are quantised although no config says so, by the dtypes in the files' headers.

    Raises:
        UserError: if there are such weights, or a file is damaged.
    """
    for file in files:
        for name, dtype in _quantised_weights(tensors_in(path, file)):
            raise _refusal(path, f"quantised: {name} in {file.name} has the dtype {dtype}")


def check_scales(path: str, settings: Mapping[str, Any], files: list[Path]) -> None:
    """Refuse FP8 weights of which transformers would make other numbers than they stand for.

    It divides the rows and columns of a weight evenly among its scales, though the last blocks may be
    smaller, and takes the numbers of a weight without scales as they are.

    Args:
        path: hub id or folder, for the message.
        settings: its config.json.
        files: all of its safetensors.

    Raises:
        UserError: if there are such weights, or a file is damaged.
    """
    blocks = (_quantisation_in(settings) or {}).get("weight_block_size") or (FP8_BLOCK, FP8_BLOCK)
    shapes: dict[str, list[int]] = {}
    narrow: list[str] = []
    for file in files:
        for name, entry in tensors_in(path, file).items():
            shapes[name] = entry["shape"]
            narrow += [name] if entry["dtype"] in FP8 else []
    for name in narrow:
        scales = next((shapes[one] for one in _scale_names(name) if one in shapes), None)
        if scales is None:
            raise _refusal(path, f"quantised with fp8, without scales of {name}")
        for size, count, block in zip(shapes[name][-2:], scales[-2:], blocks, strict=False):
            if count > 1 and (size % count or (size % block and count == -(-size // block))):
                shape = " x ".join(map(str, shapes[name]))
                raise _refusal(
                    path, f"quantised with fp8 in blocks of {block} that {name} ({shape}) does not fill"
                )


def _scale_names(name: str) -> tuple[str, ...]:
    """The names under which transformers looks for the scales of an FP8 weight."""
    owner, _, attribute = name.rpartition(".")
    if attribute == "weight":
        return f"{name}_scale_inv", f"{owner}.scale", f"{owner}.qscale_weight"
    return f"{name}_scale_inv", f"{name}_scale"


def _quantised_weights(tensors: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, entry in tensors.items():
        integers = entry["dtype"] in INTEGERS and is_matrix(name, len(entry["shape"]))
        if entry["dtype"].startswith(NARROW_FLOATS) or integers:
            yield name, entry["dtype"]


def is_matrix(name: str, dimensions: int) -> bool:
    """Whether a parameter is a weight matrix, in which integers stand for other numbers."""
    return dimensions > 1 and "weight" in name.rsplit(".", 1)[-1]


def _dequantises(method: str) -> bool:
    """Whether the installed transformers can dequantise a method without further packages."""
    if method not in DEQUANTISED:
        return False
    try:
        from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

        import_module(DEQUANTISED[method])
    except ImportError:  # an old release, or a release that needs other packages for it
        return False
    known = AUTO_QUANTIZATION_CONFIG_MAPPING.get(method)
    return known is not None and "dequantize" in inspect.signature(known).parameters


def _refusal(path: str, what: str) -> UserError:
    return UserError(
        f"model.path={path} is {what}, and only weights in float32, float16 or bfloat16 can be pruned; "
        "give the checkpoint that it was made from, prune that, and quantise the result"
    )
