"""The model as every step sees it: its towers, a loss per sample, and how to save it."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.data.batch import Batch, samples_in
from ecoflap.errors import UserError
from ecoflap.models.core.attention import open_attention
from ecoflap.models.core.expert_slices import ExpertSlice
from ecoflap.models.core.experts import reopen
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.preparation import ADDRESS, preparation, values_of, without_origin
from ecoflap.models.core.skipped import MATCHED, Skipped
from ecoflap.models.core.towers import Block, Selection, Tower
from ecoflap.models.core.wide_parts import DTYPE_OPTION, half_precision
from ecoflap.models.offload.placement import Placement
from ecoflap.storage.cache.code import function_hash
from ecoflap.storage.stored_tensor import raw

log = logging.getLogger(__name__)

Loss = Callable[[nn.Module, Batch, int], Tensor]

SHARED_BY_LOSSES = ("losses.py", "positives.py")  # files beside this one


class Inputs(dict[str, Tensor]):
    """A batch on the model's device, with a helpful error for inputs that a loss asks for in vain."""

    def __missing__(self, name: str) -> Tensor:
        """Refuse a missing input.

        Raises:
            UserError: in any case.
        """
        raise UserError(
            f"the model is scored on {name!r}, and these data have {', '.join(self)}; choose another"
            " calibration or task"
        )


@dataclass(frozen=True)
class PrunableModel:
    """A model with the parts that are pruned.

    Attributes:
        name: the model's name in logs and result files.
        module: the transformers model.
        every_tower: all towers of the model, pruned or not, in pruning order.
        towers: the towers to prune, in pruning order.
        skipped: the weights that stay dense, with reasons.
        loss_function: (module, batch, copies) -> one loss per sample, [batch]; see ``loss``.
        processor: the tokenizer or processor that makes model inputs.
        interface: what the family can do with raw examples; it implements some of the protocols in
            ``ecoflap.models.core.protocols``.
        placement: where the weights of blocks are stored while they are not in use.
        selection: which towers and layers were asked for.
    """

    name: str
    module: nn.Module
    every_tower: tuple[Tower, ...]
    towers: tuple[Tower, ...]
    skipped: tuple[Skipped, ...]
    loss_function: Loss
    processor: Any = None
    interface: Any = None
    placement: Placement = field(default_factory=Placement)
    selection: Selection = field(default_factory=Selection)

    @property
    def layers(self) -> list[Layer]:
        """The layers to prune, in pruning order."""
        return [layer for tower in self.towers for layer in tower.layers]

    @property
    def sizes(self) -> dict[str, int]:
        """{layer to prune: its number of weights}, in pruning order."""
        return {layer.name: layer.size for layer in self.layers}

    @property
    def blocks(self) -> list[Block]:
        """Every block of the model, pruned or not."""
        return [block for tower in self.every_tower for block in tower.blocks]

    @property
    def device(self) -> torch.device:
        """The device that the model runs on."""
        return self.placement.device or next(self.module.parameters()).device

    @property
    def sees(self) -> bool:
        """Whether it reads pictures."""
        return bool(getattr(self.interface, "sees", False))

    def loss(self, batch: Batch, copies: int = 1) -> Tensor:
        """One loss per sample, [batch], in fp32.

        Args:
            batch: the inputs; the first dimension of each tensor is samples. The model reads copies.
            copies: number of identical replicas that the batch consists of, one after the other; a loss that
                compares samples does so within a replica.

        Raises:
            UserError: if the loss needs an input that the data lack, or does not return one number per
                sample.
        """
        inputs = Inputs({name: tensor.to(self.device, copy=True) for name, tensor in batch.items()})
        samples = samples_in(batch)
        loss: Any = self.loss_function(self.module, inputs, copies)
        if not isinstance(loss, Tensor) or (batch and loss.shape != (samples,)):
            found = f"has shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"is {loss!r:.40}"
            raise UserError(
                f"the loss of {self.name} {found} for {samples} samples; model.loss must give one number per"
                " sample, in a tensor"
            )
        return loss.float()

    def loss_identity(self, name: str | None) -> dict[str, Any]:
        """What a loss depends on beside weights and samples.

        Args:
            name: the loss's name in the config; None for the family's default.

        Returns:
            The name, hashes of the source of the loss with what it imports, and of what the families share,
            and a hash of the text classifier.
        """
        files = [Path(__file__).with_name(shared) for shared in SHARED_BY_LOSSES]
        source = b"".join(file.read_bytes() for file in files if file.is_file())
        classes = getattr(self.interface, "classes", None)
        values = None if classes is None else classes.cpu().float().numpy().tobytes()
        return {
            "name": name or getattr(self.loss_function, "__qualname__", ""),
            "source": [function_hash(self.loss_function, name), hashlib.sha256(source).hexdigest()],
            "classes": None if values is None else hashlib.sha256(values).hexdigest(),
        }

    def reopen(self) -> None:
        """Open attentions and experts again, where a step in Python has restored the user's model since."""
        open_attention(self.module)
        layers = (layer.module for tower in self.every_tower for layer in tower.layers)
        reopen(module for module in layers if isinstance(module, ExpertSlice))

    def parameter_count(self) -> int:
        """Number of parameters; shared ones count once."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def dense_in_blocks(self) -> Counter[str]:
        """Weights that can't be pruned in the blocks of the chosen towers, by reason.

        Layers that ``skip_layers`` matches are not among them.
        """
        inside = tuple(f"{block.name}." for tower in self.towers for block in tower.blocks)
        dense = Counter[str]()
        for skipped in self.skipped:
            if skipped.name.startswith(inside) and skipped.reason != MATCHED:
                dense[skipped.reason] += skipped.size
        return dense

    def block_weights(self) -> int:
        """Weights of two or more dimensions in the blocks of the chosen towers, without ``skip_layers``."""
        return sum(layer.size for layer in self.layers) + self.dense_in_blocks().total()

    def fingerprint(self) -> str:
        """A hash of all weights, bit for bit, the module's settings, and how its inputs are prepared."""
        digest = hashlib.blake2b(digest_size=16)
        for name, like, parts in self.placement.tensors(self.module):
            digest.update(f"{name} {like.dtype} {tuple(like.shape)}".encode())
            for part in parts:
                digest.update(raw(part.detach().cpu().contiguous()))
        settings = [*self._settings(), *preparation(self.processor, self.interface)]
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def _settings(self) -> list[Any]:
        """The module's settings beside its weights: epsilons, activations, rotary scaling and the like.

        Of a module without a config, the tree of its modules tells some of them.
        """
        configs = [getattr(self.module, name, None) for name in ("config", "generation_config")]
        found = [without_origin(values_of(config)) for config in configs if config is not None]
        return found or [ADDRESS.sub("", repr(self.module))]

    def save(self, folder: Path) -> None:
        """Write a checkpoint that ``from_pretrained`` loads.

        Raises:
            UserError: if modules share weights that their class does not tie, or transformers does not save
                the config, or the generation config.
        """
        module: Any = self.module
        dtype = half_precision(module)
        try:
            module.save_pretrained(folder, **_as_safetensors(module))
        except (TypeError, ValueError) as error:
            raise _not_saved(module, error) from error
        except RuntimeError as error:
            if "shared tensors" not in str(error):
                raise
            names = " and ".join(sorted(re.findall(r"'(.+?)'", str(error))[:2]))
            raise UserError(
                f"{names} are the same weights, and {type(module).__name__} does not tie them when"
                " it is loaded, so the checkpoint would lack one; before pruning, give each place a copy of"
                " its own, as copy.deepcopy of the module makes one"
            ) from error
        if dtype is not None and getattr(module, "dtype", dtype) != dtype:  # it has that of the first weight
            setattr(module.config, DTYPE_OPTION, dtype)
            module.config.save_pretrained(folder)
        if hasattr(self.processor, "save_pretrained"):
            self.processor.save_pretrained(folder)
        elif self.processor is not None:
            kind = type(self.processor).__name__
            log.warning("the processor (%s) has no save_pretrained; the model is saved without it", kind)


def _not_saved(module: Any, error: Exception) -> UserError:
    """The error of a model that ``save_pretrained`` refuses, such as for a setting in its config."""
    what, reasons = f"{type(module).__name__} as it is", [str(error)]
    if "GenerationConfig is invalid" in str(error):
        what = "model.generation_config as it is"
        reasons = [line[2:] for line in str(error).splitlines() if line.startswith("- ")] or reasons
    said = " ".join(" ".join(reasons).split()).rstrip(".")
    return UserError(f"transformers does not save {what}: {said}; change it in the model, and save again")


def _as_safetensors(module: Any) -> dict[str, Any]:
    """Arguments of ``save_pretrained`` for safetensors, which transformers before 4.35 has to be asked for.

    The first releases also save tied weights under each of their names, which safetensors refuse.
    """
    option = signature(module.save_pretrained).parameters.get("safe_serialization")
    if option is None or option.default:
        return {}
    state, patterns = module.state_dict(), getattr(module, "_keys_to_ignore_on_load_missing", None) or ()
    tied = {name for name in state if any(re.search(pattern, name) for pattern in patterns)}
    own = {tensor.data_ptr() for name, tensor in state.items() if name not in tied}
    kept = {name: one for name, one in state.items() if name not in tied or one.data_ptr() not in own}
    return {"safe_serialization": True, "state_dict": kept}
