"""Every family shows the logits that its loss compares with targets, and writes from none that are NaN."""

from typing import Any

import pytest
import torch

from ecoflap.data.example import Generation
from ecoflap.errors import NumericalError
from ecoflap.models.core.logits import collecting_logits
from tests import tiny


@pytest.mark.parametrize("family", [family for family in tiny.FAMILIES if family not in tiny.PACKED])
@torch.no_grad()
def test_the_logits_of_all_targets_are_collected(family: str) -> None:
    model = tiny.build(family)
    batch = tiny.samples(family, (7, 7, 7)).batches(3)[0]
    with collecting_logits() as found:
        expected = model.loss(batch)
    assert found
    assert all(logits.dim() == 2 and len(logits) >= 3 for logits in found)
    assert torch.equal(model.loss(batch), expected)
    seen = len(found)
    model.loss(batch)
    assert len(found) == seen, "nothing is collected outside of the context"


@torch.no_grad()
def test_only_targets_count() -> None:
    model = tiny.build("llama")
    batch = {"input_ids": torch.arange(3, 13).view(2, 5), "labels": torch.arange(3, 13).view(2, 5)}
    batch["labels"][:, :3] = -100
    with collecting_logits() as found:
        model.loss(batch)
    logits = model.module(input_ids=batch["input_ids"]).logits
    assert len(found) == 1
    assert torch.equal(found[0], logits[:, 2:4].flatten(0, 1))


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", [one for one in ("llama", "t5", "blip2_opt") if one in tiny.FAMILIES])
def test_a_model_that_computes_nan_writes_nothing(family: str, beams: int) -> None:
    model = tiny.build(family)
    batch = tiny.samples(family, (5, 5)).batches(2)[0]
    module: Any = model.module
    inputs = {name: batch[name] for name in ("pixel_values", "input_ids") if name in batch}
    options = Generation(beams, max_new_tokens=3, min_new_tokens=2).options()
    assert len(module.generate(**inputs, **options)) == 2
    torch.nn.init.constant_(model.layers[-1].weight, torch.nan)
    with pytest.raises(NumericalError, match="generates from logits that are not finite"):
        module.generate(**inputs, **options)
