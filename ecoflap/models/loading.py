"""What all model families share when they load: the towers that are chosen, the prompt, and how a checkpoint is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ecoflap.errors import NumericalError, UserError
from ecoflap.models.attention import open_attention
from ecoflap.models.checkpoint_folder import stored_dtype
from ecoflap.models.hub import checkpoint_folder, from_hub, require_folder
from ecoflap.models.offload import streaming
from ecoflap.models.placement import check_fits, resolve_dtype
from ecoflap.models.prunable import Loss, PrunableModel
from ecoflap.models.skeleton import DTYPE_OPTION, described, framework, read_generation_config, skeleton, wants_processor
from ecoflap.models.towers import find_towers, select, skipped_weights


@dataclass(frozen=True)
class Selection:
    """Which towers and layers are pruned: the options that stand beside the model in a run's config."""

    towers: list[str] | None = None
    skip_layers: list[str] = field(default_factory=list)


def decoder_only(module: Any) -> bool:
    """Whether a vision-language model writes with a decoder-only language model, whose targets follow the prompt in one sequence."""
    return bool(getattr(module.config, "use_decoder_only_language_model", False))


def written(tokens: Tensor, prompt: Tensor) -> Tensor:
    """What was generated, [batch, tokens]: behind the prompt [batch, tokens], which some models and releases give back too."""
    asked = prompt.shape[1]
    return tokens[:, asked:] if tokens.shape[1] >= asked and torch.equal(tokens[:, :asked], prompt) else tokens


def check_prompt(prompt: str) -> None:
    """Refuse a template that a question can't be put into.

    Raises:
        UserError: so it is.
    """
    rest = prompt.replace("{}", "")
    if prompt.count("{}") != 1 or "{" in rest or "}" in rest:
        raise UserError(f"model.prompt={prompt!r} must hold {{}} once, where the question goes")


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

    shapes_first: ClassVar[bool] = True  # loading on the meta device reads no weights

    def read(self, config_class: Any, model_class: Any, processor_class: Any, device: torch.device) -> tuple[nn.Module, Any]:
        """Read config, weights and processor with the given classes of transformers; on the meta device, no weights.

        Raises:
            UserError: nothing loadable there, or it doesn't fit.
        """
        if self.architecture is not None and not wants_processor(device) and not Path(self.path).expanduser().is_dir():
            return skeleton(model_class, described(config_class, self.architecture)), None
        path, dtype = require_folder(self.path), resolve_dtype(self.dtype)
        config = from_hub(lambda: config_class.from_pretrained(path, revision=self.revision), path)
        if getattr(config, "kept_units", None):
            from ecoflap.models.units import narrowed

            model_class = narrowed(model_class, config)
        shape = from_hub(lambda: skeleton(model_class, config), path)
        if device.type == "meta":
            found = from_hub(lambda: processor_class.from_pretrained(path, revision=self.revision), path) if wants_processor(device) else None
            return shape, found
        if (stream := streaming()) is not None:
            stream.folder = checkpoint_folder(path, self.revision)
            module = framework(model_class, config, dtype or getattr(config, DTYPE_OPTION, None) or stored_dtype(stream.folder))
            read_generation_config(module, stream.folder)
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
