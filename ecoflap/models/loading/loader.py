"""What all model families share when they load: the towers that are chosen, the prompt, and how a checkpoint
is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ecoflap.errors import NumericalError, UserError
from ecoflap.models.core.attention import open_attention
from ecoflap.models.core.prunable import Loss, PrunableModel
from ecoflap.models.core.towers import find_towers, select, skipped_weights
from ecoflap.models.loading.checkpoint_folder import stored_dtype, weight_files
from ecoflap.models.loading.device import check_fits, resolve_dtype
from ecoflap.models.loading.hub import (
    cached_folder,
    checkpoint_folder,
    from_hub,
    read_settings,
    require_folder,
)
from ecoflap.models.loading.kinds import check_kind
from ecoflap.models.loading.options import PretrainedOptions
from ecoflap.models.loading.pretrained_weights import check_vocabulary, load_weights
from ecoflap.models.loading.quantised import check_config, check_weights, dequantise
from ecoflap.models.loading.skeleton import (
    DTYPE_OPTION,
    described,
    framework,
    read_generation_config,
    skeleton,
    wants_processor,
)
from ecoflap.models.offload.load import streaming

PROCESSOR = "the tokenizer or processor of "  # for messages


@dataclass(frozen=True)
class Selection:
    """Which towers and layers are pruned: the options that stand beside the model in a run's config."""

    towers: list[str] | None = None
    skip_layers: list[str] = field(default_factory=list)


def decoder_only(module: Any) -> bool:
    """Whether a vision-language model writes with a decoder-only language model, whose targets follow the
    prompt in one sequence.
    """
    return bool(getattr(module.config, "use_decoder_only_language_model", False))


def written(tokens: Tensor, prompt: Tensor) -> Tensor:
    """What was generated, [batch, tokens]: behind the prompt [batch, tokens], which some models and releases
    give back too.
    """
    asked = prompt.shape[1]
    return (
        tokens[:, asked:] if tokens.shape[1] >= asked and torch.equal(tokens[:, :asked], prompt) else tokens
    )


def check_prompt(prompt: str) -> None:
    """Refuse a template that a question can't be put into.

    Raises:
        UserError: if a question can't be put into the template.
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
    chosen = select(
        every,
        selection.towers if selection.towers is not None else list(towers) if towers else None,
        selection.skip_layers,
    )
    for parameter_name, parameter in module.named_parameters():
        if parameter.device.type != "meta" and not torch.isfinite(parameter).all():
            raise NumericalError(
                f"{parameter_name} of {name} holds NaN or infinite weights; the checkpoint is damaged,"
                " nothing was pruned"
            )
    skipped = tuple(skipped_weights(module, every, chosen))
    return PrunableModel(name, module.eval(), every, chosen, skipped, loss, processor, interface)


@dataclass(frozen=True)
class Pretrained(PretrainedOptions):
    """A model from a hub id or from a folder that ``save_pretrained`` wrote; each family adds its classes and
    its loss.
    """

    shapes_first: ClassVar[bool] = True  # loading on the meta device reads no weights

    def read(
        self, config_class: Any, model_class: Any, processor_class: Any, device: torch.device
    ) -> tuple[nn.Module, Any]:
        """Read config, weights and processor with the given classes of transformers; on the meta device, no
        weights.

        Raises:
            UserError: nothing loadable there, or it doesn't fit.
        """
        if (
            self.architecture is not None
            and not wants_processor(device)
            and not Path(self.path).expanduser().is_dir()
        ):
            return skeleton(model_class, described(config_class, self.architecture)), None
        path, dtype = require_folder(self.path), resolve_dtype(self.dtype)
        settings = read_settings(path, self.revision)
        check_kind(path, settings, config_class, model_class)
        quantised = check_config(path, settings, streaming() is not None)
        config = from_hub(lambda: config_class.from_pretrained(path, revision=self.revision), path)
        if getattr(config, "kept_units", None):
            from ecoflap.models.core.units import narrowed

            model_class = narrowed(model_class, config)
        shape = from_hub(lambda: skeleton(model_class, config), path)
        if device.type == "meta":
            if not wants_processor(device):
                return shape, None
            found = from_hub(
                lambda: processor_class.from_pretrained(path, revision=self.revision), path, PROCESSOR
            )
            check_vocabulary(path, shape, found)
            return shape, found
        folder = (
            checkpoint_folder(path, self.revision)
            if streaming() is not None
            else cached_folder(path, self.revision)
        )
        files = (
            weight_files(folder)
            if streaming() is not None or Path(path).is_dir()
            else sorted(folder.glob("*.safetensors"))
        )
        if not quantised:
            check_weights(path, files)
        processor = from_hub(
            lambda: processor_class.from_pretrained(path, revision=self.revision), path, PROCESSOR
        )
        check_vocabulary(path, shape, processor)
        if (stream := streaming()) is not None:
            stream.folder = folder
            return (
                without_weights(
                    model_class,
                    config,
                    dtype or getattr(config, DTYPE_OPTION, None) or stored_dtype(folder),
                    folder,
                ),
                processor,
            )
        check_fits(
            sum(parameter.numel() for parameter in shape.parameters()),
            dtype or getattr(config, DTYPE_OPTION, None),
            device,
        )
        options = {DTYPE_OPTION: dtype or "auto", **({"config": dequantise(config)} if quantised else {})}
        module = load_weights(model_class, path, self.revision, options)
        if not files and not quantised:  # they were downloaded just now
            check_weights(path, sorted(folder.glob("*.safetensors")))
        return module.to(device), processor


def without_weights(model_class: Any, config: Any, dtype: torch.dtype, folder: Path) -> nn.Module:
    """A model that leaves its weights in its checkpoint folder, and has everything else from there."""
    module = framework(model_class, config, dtype)
    read_generation_config(module, folder)
    return module
