"""Every family shows the logits that its loss compares with targets."""

import pytest
import torch

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
