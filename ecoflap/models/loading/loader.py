"""What all model families share when they load: reading a checkpoint, and finding its towers and layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ecoflap.errors import UserError
from ecoflap.models.core.attention import open_attention
from ecoflap.models.core.experts import open_experts
from ecoflap.models.core.finite_weights import broken_parameter, damaged
from ecoflap.models.core.preparation import same_tokenizer
from ecoflap.models.core.prunable import Loss, PrunableModel
from ecoflap.models.core.rescaled import refuse_rescaled
from ecoflap.models.core.shared_memory import refuse_shared_memory
from ecoflap.models.core.skipped import skipped_weights
from ecoflap.models.core.towers import Selection, find_towers, select
from ecoflap.models.core.wide_parts import DTYPE_OPTION
from ecoflap.models.loading.checkpoint_folder import complete_weight_files, stored_dtype, stored_in
from ecoflap.models.loading.conversion import untie
from ecoflap.models.loading.device import check_fits, resolve_dtype
from ecoflap.models.loading.hub import (
    cached_folder,
    checkpoint_folder,
    from_hub,
    read_settings,
    require_folder,
)
from ecoflap.models.loading.kinds import check_kind, warn_of_vision
from ecoflap.models.loading.modes import streaming, wants_processor
from ecoflap.models.loading.options import PretrainedOptions
from ecoflap.models.loading.pretrained_weights import check_vocabulary, load_weights
from ecoflap.models.loading.quantised import check_config, check_scales, check_weights, dequantise
from ecoflap.models.loading.skeleton import (
    class_as_cut,
    described,
    read_generation_config,
    skeleton,
    without_weights,
)
from ecoflap.storage.saved_model import processor_files, refuse_adapter

SAFETENSORS = "*.safetensors"


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

    Args:
        name: the model's name in logs and result files.
        module: the transformers model.
        processor: the tokenizer or processor that makes model inputs.
        loss: (module, batch, copies) -> one loss per sample, [batch].
        selection: which towers and layers to prune.
        towers: path of the block list of each tower that a config names.
        interface: what the family can do with raw examples.

    Raises:
        UserError: if a tower does not exist, a pattern matches nothing, a layer lies in another parameter, or
            the model changes its own weights.
        NumericalError: if a weight is NaN or infinite.
    """
    refuse_rescaled(module)
    open_attention(module)
    open_experts(module)
    every = find_towers(module, towers)
    # All towers are found, so that their outputs can be stored; a config that names some prunes those.
    named = selection.towers if selection.towers is not None else list(towers or ()) or None
    chosen = select(every, named, selection.skip_layers)
    refuse_shared_memory(module, (layer for tower in chosen for layer in tower.layers))
    if (broken := broken_parameter(module)) is not None:
        raise damaged(f"{broken[0]} of {name}")
    skipped = tuple(skipped_weights(module, every, chosen))
    return PrunableModel(
        name, module.eval(), every, chosen, skipped, loss, processor, interface, selection=selection
    )


@dataclass(frozen=True)
class Pretrained(PretrainedOptions):
    """A model from a hub id or a saved folder; each family adds its classes and its loss."""

    shapes_first: ClassVar[bool] = True  # loading on the meta device reads no weights
    classes: ClassVar[tuple[str, str, str]]
    """Names in transformers of the classes of config, model, and tokenizer or processor."""
    from_module: ClassVar[Callable[..., PrunableModel]]
    """(module, tokenizer or processor, selection) -> the model that the steps work on."""

    def load(self, device: torch.device, selection: Selection) -> PrunableModel:
        """Load weights, and the tokenizer or processor.

        Raises:
            UserError: if there is nothing to load, it does not fit on the device, a tower is unknown, or the
                installed transformers has no such models.
        """
        import transformers

        for name in self.classes:
            if not hasattr(transformers, name):
                raise UserError(
                    f"model={self.name} needs {name}, which transformers {transformers.__version__} doesn't"
                    " have; install a newer release"
                )
        config_class, model_class, processor_class = (getattr(transformers, name) for name in self.classes)
        return self.from_module(*self.read(config_class, model_class, processor_class, device), selection)

    def read(
        self, config_class: Any, model_class: Any, processor_class: Any, device: torch.device
    ) -> tuple[nn.Module, Any]:
        """Read config, weights and processor with the given classes of transformers.

        On the meta device, no weights are read.

        Args:
            config_class: reads the config.
            model_class: builds the model.
            processor_class: reads the tokenizer or processor.
            device: device of the model.

        Returns:
            The model, and its tokenizer or processor; None where a model on the meta device needs none.

        Raises:
            UserError: if there is no loadable checkpoint, or it does not fit into memory.
        """
        only_inspected = not wants_processor(device)
        dtype = resolve_dtype(self.dtype)
        if self.architecture is not None and only_inspected and not Path(self.path).expanduser().is_dir():
            return skeleton(model_class, described(config_class, self.architecture), dtype), None
        path = require_folder(self.path)
        settings = read_settings(path, self.revision)
        check_kind(path, settings, config_class, model_class)
        quantised = check_config(path, settings, streaming() is not None)
        config = from_hub(lambda: config_class.from_pretrained(path, revision=self.revision), path)
        model_class = class_as_cut(model_class, config)
        shape = from_hub(lambda: skeleton(model_class, config, dtype), path)
        warn_of_vision(path, settings, shape)
        if device.type == "meta":
            return shape, None if only_inspected else self._read_processor(processor_class, path, shape)
        known_dtype = dtype or getattr(config, DTYPE_OPTION, None)
        if (stream := streaming()) is not None:
            stream.folder = checkpoint_folder(path, self.revision)
            refuse_adapter(stream.folder)
            check_weights(path, complete_weight_files(stream.folder))
            processor = self._read_processor(processor_class, path, shape)
            module = without_weights(model_class, config, known_dtype or stored_dtype(stream.folder))
            untie(path, module, stored_in(stream.folder))
            read_generation_config(module, stream.folder)
            return module, processor
        folder, is_local = cached_folder(path, self.revision), Path(path).is_dir()
        files = complete_weight_files(folder) if is_local else sorted(folder.glob(SAFETENSORS))
        if not quantised:
            check_weights(path, files)
        elif is_local:
            check_scales(path, settings, files)
        processor = self._read_processor(processor_class, path, shape)
        check_fits(shape, known_dtype, device)
        options = {DTYPE_OPTION: dtype or "auto", **({"config": dequantise(config)} if quantised else {})}
        module = load_weights(model_class, path, self.revision, options)
        if not is_local and quantised:
            check_scales(path, settings, sorted(folder.glob(SAFETENSORS)))
        elif not files:  # downloaded just now
            check_weights(path, sorted(folder.glob(SAFETENSORS)))
        return module.to(device), processor

    def _read_processor(self, processor_class: Any, path: str, module: nn.Module) -> Any:
        """Read the tokenizer or processor of a model, which needs no weights."""
        try:
            processor = from_hub(
                lambda: processor_class.from_pretrained(path, revision=self.revision),
                path,
                "the tokenizer or processor of ",
            )
        except UserError as error:
            if Path(path).is_dir() and not processor_files(Path(path)):
                raise UserError(
                    f"model.path={path} has no tokenizer or processor, such as tokenizer.json; save that of"
                    " the model there too, with its save_pretrained"
                ) from error
            raise
        with same_tokenizer(processor):
            check_vocabulary(path, module, processor)
        return processor
