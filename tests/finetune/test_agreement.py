"""What processes of one run train. Real processes train together in tests/cli/test_finetune.py."""

from __future__ import annotations

import torch

from ecoflap.distributed.processes import rank
from ecoflap.finetune.agreement import agree
from ecoflap.storage.masks import PackedMasks
from tests import tiny
from tests.distributed.together import together


def test_the_first_ones_weights_and_masks_count() -> None:
    """As on two accelerators that do not agree to the last bit."""

    def work() -> tuple[str, dict[str, torch.Tensor]]:
        model, masks = tiny.build("llama", seed=rank()), PackedMasks()
        for layer in model.layers:
            masks[layer.name] = torch.full(layer.weight.shape, rank() == 0)
        agree(model, masks)
        return model.fingerprint(), dict(masks)

    for fingerprint, masks in together(2, work):
        assert fingerprint == tiny.build("llama").fingerprint()
        assert masks
        assert all(bool(mask.all()) for mask in masks.values())
