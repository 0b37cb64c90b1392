"""Random numbers that depend on their purpose and nothing else: not on the global generator, the device, or
what was drawn before.
"""

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor


def seed_for(*parts: str | int) -> int:
    """Hash what a draw is for, for example (seed, "zeroth_order", layer name, draw number), to a seed.

    Args:
        parts: the purpose; order, boundaries and types count, so ("a", "b"), ("ab",) and (1,), ("1",) all
            differ.

    Returns:
        An integer in 0..2^63 - 1, the same in every process and on every machine.
    """
    # JSON keeps the boundaries between parts; Python's own hash() changes from process to process.
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def gaussian(
    shape: Sequence[int],
    *parts: str | int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw standard normal numbers for one purpose.

    They are drawn in fp32 on the CPU and then moved and rounded, so every device and dtype sees the same
    draw.

    Args:
        shape: shape of the result.
        parts: the purpose, as for `seed_for`.
        device: where the result goes.
        dtype: floating dtype of the result.

    Returns:
        Independent N(0, 1) numbers of the given shape.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed_for(*parts))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32, device="cpu").to(
        device=device, dtype=dtype
    )
