"""What all model families share when they load: dtype, device, memory check, towers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from ecoflap.errors import NumericalError, UserError
from ecoflap.models.attention import open_attention
from ecoflap.models.offload import parameters_on_meta, streaming
from ecoflap.models.prunable import Loss, PrunableModel
from ecoflap.models.shard_source import stored_dtype
from ecoflap.models.towers import find_towers, select, skipped_weights
from ecoflap.telemetry import free_memory

# The former name makes the fifth release complain at each load; releases before 4.56 know no other.
DTYPE_OPTION = "torch_dtype" if version("transformers").startswith("4.") else "dtype"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Selection:
    """Which towers and layers are pruned: the options that stand beside the model in a run's config."""

    towers: list[str] | None = None
    skip_layers: list[str] = field(default_factory=list)


def resolve_device(name: str) -> torch.device:
    """``auto`` is the accelerator where there is one, else the CPU.

    Raises:
        UserError: no such device.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        if torch.device(name).type == "meta":
            raise RuntimeError("it holds no weights")
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} is not usable here ({str(error).splitlines()[0]}); device=auto or device=cpu is") from None


def decoder_only(module: Any) -> bool:
    """Whether a vision-language model writes with a decoder-only language model, whose targets follow the prompt in one sequence."""
    return bool(getattr(module.config, "use_decoder_only_language_model", False))


def check_prompt(prompt: str) -> None:
    """Refuse a template that a question can't be put into.

    Raises:
        UserError: so it is.
    """
    rest = prompt.replace("{}", "")
    if prompt.count("{}") != 1 or "{" in rest or "}" in rest:
        raise UserError(f"model.prompt={prompt!r} must hold {{}} once, where the question goes")


def resolve_dtype(name: str) -> torch.dtype | None:
    """The dtype to load weights in; null for ``auto``, the checkpoint's own.

    Raises:
        UserError: no such dtype.
    """
    if name != "auto" and name not in DTYPES:
        raise UserError(f"model.dtype={name} is not known; choose auto, {', '.join(DTYPES)}")
    return DTYPES.get(name)


def require_folder(path: str, option: str = "model.path") -> str:
    """The path, when it is a hub id or an existing folder.

    Raises:
        UserError: it looks like a folder, and isn't there.
    """
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not Path(path).expanduser().is_dir():
        raise UserError(f"{option}={path}: there is no such folder; give a folder that save_pretrained wrote, or a hub id such as org/name")
    return str(Path(path).expanduser()) if looks_local else path


def from_hub(load: Callable[[], Any], path: str) -> Any:
    """Run a ``from_pretrained`` call and turn its many failures into one message that says where it looked.

    Raises:
        UserError: nothing loadable at the path.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # its bars would tear ours
    try:
        return load()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model.path={path} could not be loaded: {first}. Give a local folder, or a hub id while online (HF_HUB_OFFLINE unset)"
        ) from error


def check_fits(parameters: int, dtype: torch.dtype | None, device: torch.device) -> None:
    """Compare the weights' bytes with free memory before anything is read.

    Raises:
        UserError: the weights alone don't fit.
    """
    width = (dtype or torch.float32).itemsize
    needed, free = parameters * width, free_memory(device)
    if needed > free:
        raise UserError(
            f"the weights need {needed / 2**30:.1f} GiB ({parameters:,} parameters of {width} bytes) and {device} has {free / 2**30:.1f} GiB free; "
            f"use runtime.offload={'disk' if device.type == 'cpu' else 'cpu'}, which holds a few blocks at a time, model.dtype=bfloat16, "
            "another device, or a smaller model"
        )


def skeleton(model_class: Any, config: Any) -> nn.Module:
    """The model of a config on the meta device: names and shapes, no weights and no memory."""
    build = getattr(model_class, "_from_config", None) or model_class.from_config
    with torch.device("meta"):
        module: nn.Module = build(config)
        _untie_t5(module)
    return module


def framework(model_class: Any, config: Any, dtype: torch.dtype) -> nn.Module:
    """The model of a config as ``from_pretrained`` builds it in a dtype, before any weight is read: real buffers, parameters without memory."""
    build = getattr(model_class, "_from_config", None) or model_class.from_config
    with parameters_on_meta():
        module: nn.Module = build(config, **{DTYPE_OPTION: dtype})
        _untie_t5(module)
    kept = {torch.float16: ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"), torch.bfloat16: ("_keep_in_fp32_modules_strict",)}
    wide = {part for option in kept.get(dtype, ()) for part in getattr(module, option, None) or ()}
    for name, parameter in module.named_parameters():
        if wide.intersection(name.split(".")):
            parameter.data = parameter.data.float()
    return module


def checkpoint_folder(path: str, revision: str | None) -> Path:
    """Where the files of a checkpoint are: the folder itself, or the hub's copy on this machine, fetched where it is missing.

    Raises:
        UserError: they can't be had.
    """
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(from_hub(lambda: snapshot_download(path, revision=revision, allow_patterns=["*.safetensors", "*.json"]), path))


def _untie_t5(module: nn.Module) -> None:
    """Give a T5 its own head again: the fifth release of transformers ties every new one, whatever its config says (a loaded one is right)."""
    for child in module.modules():
        head: Any = getattr(child, "lm_head", None)
        if head is not None and getattr(getattr(child, "config", None), "scale_decoder_outputs", True) is False:
            head.weight = nn.Parameter(torch.empty_like(head.weight))


def described(config_class: Any, architecture: Mapping[str, Any]) -> Any:
    """The config that ``model.architecture`` describes; ``AutoConfig`` is told the kind by its ``model_type``.

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
            f"model.architecture.model_type={kind!r} is not known to transformers {version('transformers')}; install a newer one"
        ) from error


def prunable(
    name: str,
    module: nn.Module,
    processor: Any,
    loss: Loss,
    selection: Selection,
    towers: Mapping[str, str] | None = None,
    interface: Any = None,
) -> PrunableModel:
    """Assemble the model that the steps work on, and refuse weights that are not finite.

    Raises:
        UserError: a tower or pattern doesn't exist.
        NumericalError: a weight is NaN or infinite.
    """
    open_attention(module)
    every = find_towers(module, towers)
    # Every tower is known, so that its outputs can be stored; a config that names some prunes those.
    chosen = select(every, selection.towers if selection.towers is not None else list(towers) if towers else None, selection.skip_layers)
    for parameter_name, parameter in module.named_parameters():
        if parameter.device.type != "meta" and not torch.isfinite(parameter).all():
            raise NumericalError(f"{parameter_name} of {name} holds NaN or infinite weights; the checkpoint is damaged, nothing was pruned")
    skipped = tuple(skipped_weights(module, every, chosen))
    return PrunableModel(name, module.eval(), every, chosen, skipped, loss, processor, interface)


@dataclass(frozen=True)
class Pretrained:
    """A model from a hub id or from a folder that ``save_pretrained`` wrote; each family adds its classes and its loss.

    Attributes:
        path: hub id or folder.
        name: for people and result files.
        dtype: auto (the checkpoint's), float32, float16 or bfloat16.
        revision: hub revision.
        towers: {tower: path of its block list}, where it should not be found from the tree.
        save: write the pruned checkpoint into the run's folder.
        architecture: the settings of the real model, so that ``inspect`` needs no download; a local folder's own settings come first.
    """

    path: str
    name: str = "pretrained"
    dtype: str = "auto"
    revision: str | None = None
    towers: dict[str, str] | None = None
    save: bool = False
    architecture: dict[str, Any] | None = None

    def read(self, config_class: Any, model_class: Any, processor_class: Any, device: torch.device) -> tuple[nn.Module, Any]:
        """Read config, weights and processor with the given classes of transformers; on the meta device, only the config.

        Raises:
            UserError: nothing loadable there, or it doesn't fit.
        """
        if device.type == "meta" and self.architecture is not None and not Path(self.path).expanduser().is_dir():
            return skeleton(model_class, described(config_class, self.architecture)), None
        path, dtype = require_folder(self.path), resolve_dtype(self.dtype)
        config = from_hub(lambda: config_class.from_pretrained(path, revision=self.revision), path)
        if getattr(config, "kept_units", None):
            from ecoflap.models.units import narrowed

            model_class = narrowed(model_class, config)
        shape = from_hub(lambda: skeleton(model_class, config), path)
        if device.type == "meta":
            return shape, None
        if (stream := streaming()) is not None:
            stream.folder = checkpoint_folder(path, self.revision)
            module = framework(model_class, config, dtype or getattr(config, DTYPE_OPTION, None) or stored_dtype(stream.folder))
            return module, from_hub(lambda: processor_class.from_pretrained(path, revision=self.revision), path)
        check_fits(sum(parameter.numel() for parameter in shape.parameters()), dtype or getattr(config, DTYPE_OPTION, None), device)
        module, report = from_hub(
            lambda: model_class.from_pretrained(path, revision=self.revision, output_loading_info=True, **{DTYPE_OPTION: dtype or "auto"}), path
        )
        # The positions 0, 1, 2, ... are a buffer that the first releases expect in checkpoints and later ones don't write.
        missing = [str(name) for name in report["missing_keys"] if not str(name).endswith("position_ids")]
        lost = sorted([*missing, *map(str, report["mismatched_keys"])])
        if lost:
            raise UserError(
                f"model.path={path} lacks {len(lost)} weights of its model, such as {lost[0]}; the checkpoint is damaged or of another model"
            )
        return module.to(device), from_hub(lambda: processor_class.from_pretrained(path, revision=self.revision), path)
