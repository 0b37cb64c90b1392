"""A tiny random model of one architecture, and the samples it is calibrated on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ecoflap.data.batch import Sample
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.prunable import Loss, PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.loading.loader import prunable
from tests.zoo.small import small_config

torch.set_num_threads(1)

LENGTHS = (9, 9, 7)  # tokens of the samples' texts
IMAGE_TOKEN = 62
MakeSample = Callable[["Draw"], Sample]


class Draw:
    """Random numbers of one sample."""

    def __init__(self, length: int, generator: torch.Generator) -> None:
        self.length, self.generator = length, generator

    def tokens(self, count: int | None = None) -> Tensor:
        """Ordinary token ids, [count]."""
        return torch.randint(3, 60, (self.length if count is None else count,), generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        """Pixels, frames."""
        return torch.randn(shape, generator=self.generator)


def text_sample(draw: Draw) -> Sample:
    """What a decoder is calibrated on."""
    return {"input_ids": draw.tokens()}


@dataclass(frozen=True)
class Architecture:
    """How to build one architecture tiny.

    Attributes:
        name: of the architecture: its ``model_type`` in transformers.
        kind: for the table.
        model: name of its class in transformers.
        loss: of the family that the package loads it as.
        settings: of its config, beside those that are small everywhere.
        sample: makes a sample.
        config: name of its config class in transformers; null for what ``AutoConfig`` knows by the name.
        prepare: called with the new module; for what a config can't say.
        package: that a part of the model comes from, beside transformers; null for none.
    """

    name: str
    kind: str
    model: str
    loss: Loss
    settings: dict[str, Any] = field(default_factory=dict)
    sample: MakeSample = text_sample
    config: str | None = None
    prepare: Callable[[Any], object] = lambda _: None
    package: str | None = None

    def missing(self) -> str | None:
        """Why it can't be built with what is installed; null where it can."""
        if self.package is not None and find_spec(self.package) is None:
            return f"{self.package} is not installed"
        if hasattr(transformers, self.model) and (self.config is None or hasattr(transformers, self.config)):
            known = self.config is not None or self.name in transformers.CONFIG_MAPPING
            return None if known else f"transformers {transformers.__version__} has no {self.name}"
        return f"transformers {transformers.__version__} has no {self.model}"

    def module(self) -> nn.Module:
        """The model, the same each time, moved away from 0 and 1, where norms, gates and biases start."""
        config_class = (
            getattr(transformers, self.config) if self.config else transformers.CONFIG_MAPPING[self.name]
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = getattr(transformers, self.model)._from_config(small_config(config_class, self.settings))
            self.prepare(module)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_((0.2 if parameter.ndim > 1 else 0.1) * torch.randn_like(parameter))
        return module.eval()  # type: ignore[no-any-return]

    def samples(self) -> CalibrationSet:
        """Three samples, two of them of one shape."""
        generator = torch.Generator().manual_seed(1)
        return CalibrationSet("zoo", tuple(self.sample(Draw(length, generator)) for length in LENGTHS))

    def prunable(self, towers: Sequence[str] | None = None, skip_layers: Sequence[str] = ()) -> PrunableModel:
        """The model as the package sees it."""
        selection = Selection(None if towers is None else list(towers), list(skip_layers))
        return prunable(self.name, self.module(), None, self.loss, selection)


@torch.no_grad()
def reached_towers(model: PrunableModel, sample: Sample) -> list[str]:
    """The towers that a sample passes; no sample here has sound."""
    reached: dict[str, None] = {}
    handles = [
        tower.blocks[0].module.register_forward_pre_hook(lambda *_, name=tower.name: reached.setdefault(name))
        for tower in model.every_tower
    ]
    model.loss({name: tensor[None] for name, tensor in sample.items()})
    for handle in handles:
        handle.remove()
    return [tower.name for tower in model.every_tower if tower.name in reached]
