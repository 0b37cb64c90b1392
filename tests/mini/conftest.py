"""What the tests of the embedded models share."""

from __future__ import annotations

import pytest
from torch import nn

from tools.train_mini.pictures import Pictures, train_and_test


@pytest.fixture(scope="session")
def held_out() -> Pictures:
    """The first 300 of Easy-VQA's test images."""
    pictures = train_and_test()[1]
    return Pictures(pictures.images[:300], pictures.labels[:300], pictures.classes[:300])


def cut(model: nn.Module, share: float) -> None:
    """Zero a share of every block's linear weights, the smallest ones."""
    for blocks in model.modules():
        if isinstance(blocks, nn.ModuleList):
            for linear in blocks.modules():
                if isinstance(linear, nn.Linear):
                    weight = linear.weight.data
                    weight[
                        weight.abs() <= weight.abs().flatten().kthvalue(int(share * weight.numel())).values
                    ] = 0
