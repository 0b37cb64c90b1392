"""Random numbers that depend only on their purpose.

Neither the global generator, the device nor earlier draws affect them.
"""

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor


def seed_for(*parts: str | int) -> int:
    """Hash the purpose of a draw, such as (seed, "zeroth_order", layer name, draw number), to a seed.

    Args:
        parts: the purpose. Order, boundaries and types count: ("a", "b") and ("ab",) differ, (1,) and ("1",)
            too.

    Returns:
        An integer in 0..2^63 - 1, the same in every process and on every machine.
    """
    # JSON keeps the boundaries between parts; Python's own hash() changes from process to process.
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def gaussian(shape: Sequence[int], *parts: str | int, device: torch.device | str = "cpu") -> Tensor:
    """Draw independent standard normal numbers, N(0, 1), for one purpose.

    The numbers are drawn on the CPU, then moved, so every device gets the same draw.

    Args:
        shape: shape of the result.
        parts: the purpose, as for `seed_for`.
        device: device of the result.

    Returns:
        The numbers, of the given shape, fp32.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed_for(*parts))
    drawn = torch.randn(tuple(shape), generator=generator, dtype=torch.float32, device="cpu")
    return drawn.to(device)
