"""What processes of one run agree on. Real processes train together in tests/cli/test_finetune.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ecoflap.finetune import distributed
from ecoflap.storage.masks import PackedMasks
from tests import tiny


def test_the_first_ones_weights_and_masks_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on two accelerators that do not agree to the last bit."""
    model, first = tiny.build("llama"), tiny.build("llama", seed=1)
    masks, other = PackedMasks(), PackedMasks()
    for layer in model.layers:
        masks[layer.name] = torch.rand(layer.weight.shape) < 0.5
        other[layer.name] = ~masks[layer.name]
    sent = iter([*first.module.state_dict().values(), *other.values()])

    def receive(tensor: Tensor, src: int) -> None:
        assert src == 0
        tensor.copy_(next(sent))

    monkeypatch.setattr(distributed.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.distributed, "broadcast", receive)
    distributed.agree(model, masks)
    assert model.fingerprint() == first.fingerprint()
    assert all(torch.equal(masks[name], other[name]) for name in other)
