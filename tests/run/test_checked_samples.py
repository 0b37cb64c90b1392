"""The form of a calibration set of the user's own is checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.families.language.causal_lm import language_loss
from ecoflap.run.checked_samples import checked_samples
from tests import tiny

IDS = torch.arange(5)
PADDED = {"input_ids": IDS, "attention_mask": torch.tensor([1, 1, 1, 0, 0])}


@dataclass(frozen=True)
class Own:
    """Draws one sample, whatever it is."""

    sample: Any
    wrap: Callable[[tuple[Any, ...]], Any] = lambda samples: CalibrationSet("own", samples)
    samples: int = 1
    name: str = "own"

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        found: CalibrationSet = self.wrap((self.sample,))
        return found


def own_loss(module: torch.nn.Module, batch: dict[str, Tensor], copies: int = 1) -> Tensor:
    return language_loss(module, batch, copies)


def llama() -> PrunableModel:
    return replace(tiny.build("llama"), loss_function=language_loss)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (IDS, "sample 0 of calibration=own is a Tensor; give a dict of tensors"),
        ({"input_ids": [1, 2]}, "sample 0 of calibration=own has a list as input_ids; give a tensor"),
        ({"input_ids": IDS, "text": "a cat"}, "has a str as text; give a tensor, or leave it out"),
        ({"input_ids": IDS[None]}, r"has input_ids \[1, 5\] with a batch dimension; leave it out"),
        (PADDED, r"is padded: attention_mask has zeros, .* as by input_ids\[attention_mask\.bool\(\)\]"),
    ],
    ids=["tensor", "list", "text", "batched", "padded"],
)
def test_a_sample_of_another_form_is_refused(sample: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        checked_samples(Own(sample), llama(), 0)


def test_what_is_no_set_is_refused() -> None:
    with pytest.raises(UserError, match="calibration=own returned a NoneType; correct it"):
        checked_samples(Own({"input_ids": IDS}, lambda _: None), llama(), 0)


def test_padding_that_a_loss_of_ones_own_may_declare_is_kept() -> None:
    for model, sample in (
        (replace(llama(), loss_function=own_loss), PADDED),
        (llama(), {**PADDED, "attention_mask": torch.ones(5)}),
    ):
        assert checked_samples(Own(sample), model, 0).samples == (sample,)
