"""LoRA (Hu et al., ICLR 2022) under the mask: low-rank updates of kept weights, merged at the end.

    W' = W + M * (alpha / r) B A

The product is masked during training, not only when it is merged: a model that is trained with an unmasked
update differs from the model that remains after masking. peft creates, places and scales the factors.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.functional import linear
from typing_extensions import override

from ecoflap.blocks.footprint import WIDE
from ecoflap.errors import UserError, require_positive
from ecoflap.finetune.footprint import TrainingFootprint, masked_sizes
from ecoflap.finetune.job import Job
from ecoflap.finetune.options import LoraOptions
from ecoflap.finetune.training import Supervised
from ecoflap.models.core.layers import Layer, is_layer, read_by
from ecoflap.models.core.prunable import PrunableModel

ADAPTER = "default"
STATE_SPACE = re.compile("Mamba|Bamba|FalconH1")
"""Classes whose kernels on GPUs read the weight of ``out_proj``, past an update."""


class MaskedLinear(Linear):
    """peft's LoRA layer with a mask over the update; replaces the class of an existing layer."""

    mask: Tensor

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The masked update, in the mask's shape."""
        delta: Tensor = super().get_delta_weight(adapter)
        return delta * self.mask

    def forward(self, *arguments: Any, **keywords: Any) -> Tensor:
        """Apply the layer with its weights as they will be merged: [..., cols] -> [..., rows]."""
        base: Any = self.get_base_layer()
        weight = base.weight + self.get_delta_weight(ADAPTER)
        return linear(read_by(arguments, keywords), weight.t() if self.fan_in_fan_out else weight, base.bias)


@dataclass(frozen=True)
class Lora(LoraOptions, Supervised):
    """Low-rank updates of the pruned weights, merged under their masks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("finetune", self, "rank", "alpha")

    @override
    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model with a layer that can't get an update, by placing empty ones for a moment."""
        super().check_model(model)
        with self._placed(model.module, model.layers):
            pass

    @override
    def footprint(self, model: PrunableModel, sparsity: float) -> TrainingFootprint:
        """All weights, the masks, and each pruned weight with its update added."""
        masked, _ = masked_sizes(model.layers, sparsity)
        trained = sum(self.rank * sum(layer.shape) for layer in model.layers)
        return self.of_schedule(model, WIDE * (model.parameter_count() + masked + trained) + masked, trained)

    @override
    @contextmanager
    def trainable(self, job: Job) -> Iterator[None]:
        """Train only updates of all masked layers in a context; merge them, or drop them after an error."""
        layers = [layer for layer in job.model.layers if layer.name in job.masks]
        with self._placed(job.model.module, layers, job.seed) as updates:
            for layer, update in zip(layers, updates, strict=True):
                update.__class__ = MaskedLinear
                mask = job.masks[layer.name].to(layer.weight.device)
                update.register_buffer("mask", mask, persistent=False)
            yield
            with torch.no_grad():
                for layer, update in zip(layers, updates, strict=True):
                    layer.weight.add_(update.get_delta_weight(ADAPTER))

    @contextmanager
    def _placed(
        self, module: nn.Module, layers: Sequence[Layer], seed: int | None = None
    ) -> Iterator[list[Any]]:
        """Put peft's modules in the place of layers in a context, and leave the module as it was.

        Args:
            module: the whole model.
            layers: its layers that get an update.
            seed: seed of the updates; None for updates without values.

        Raises:
            UserError: if a layer can't get one.
        """
        owners = _owners(module)
        # Without a config: by the model's type, peft takes names such as gate_proj for those of experts that
        # transformers has merged since, wherever they are.
        alone = nn.Sequential(module)
        places = [f"0.{_place(layer, module, owners)}" for layer in layers]
        gradients = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
        try:
            self._inject(alone, places, any(layer.transposed for layer in layers), seed)
            yield [alone.get_submodule(place) for place in places]
        finally:
            for layer, place in zip(layers, places, strict=True):
                parent, _, child = place.rpartition(".")
                setattr(alone.get_submodule(parent), child, layer.module)
            for parameter, flag in gradients:
                parameter.requires_grad_(flag)

    def _inject(
        self, module: nn.Sequential, places: Sequence[str], transposed: bool, seed: int | None
    ) -> None:
        """Let peft put its modules at some places of a model.

        Raises:
            UserError: if peft refuses one.
        """
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=f"({'|'.join(map(re.escape, places))})",
            lora_dropout=0.0,
            fan_in_fan_out=transposed,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed or 0)
            try:
                inject_adapter_in_model(config, module, ADAPTER, low_cpu_mem_usage=seed is None)
            except ValueError as error:
                raise UserError(
                    f"finetune=lora can't update a layer of {type(module[0]).__name__}: peft says"
                    f" {str(error).partition('. ')[0]!r}; use finetune=full, or skip_layers"
                ) from error


def _owners(module: nn.Module) -> Counter[int]:
    """{id of a parameter: in how many places of the model a module owns it}; a shared module has several."""
    children = (
        child for parent in module.modules() for child in parent._modules.values() if child is not None
    )
    return Counter(id(parameter) for child in children for parameter in child._parameters.values())


def _place(layer: Layer, module: nn.Module, owners: Counter[int]) -> str:
    """The path of the module that gets the update.

    Raises:
        UserError: if the weight is a part of a larger module, such as the packed projections of
            ``nn.MultiheadAttention``, another place of the model, which would get no update, shares it, or
            some kernel would read it without the update.
    """
    path = layer.name.removesuffix(".weight")
    alone = owners[id(layer.weight)] == 1
    if path == layer.name or not alone or not is_layer(module.get_submodule(path)):
        raise UserError(
            f"finetune=lora can't update {layer.name}, which no linear module owns alone; use finetune=full,"
            " or skip_layers"
        )
    parent, _, child = path.rpartition(".")
    owner = type(module.get_submodule(parent)).__name__
    if child == "out_proj" and STATE_SPACE.search(owner):
        raise UserError(
            f"finetune=lora can't update {layer.name}, which kernels of {owner} read without the update; use"
            " finetune=full, or add out_proj to skip_layers"
        )
    return path
