"""Refuse parts of the user's own that change the weights of the model that they measure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.storage.cache.code import in_package
from ecoflap.storage.stored_tensor import raw


@contextmanager
def keeping_weights(model: PrunableModel, part: object, written: str) -> Iterator[None]:
    """Refuse a part that leaves other weights than it found, to the bit; those of this package leave them.

    Args:
        model: with weights.
        part: what runs in this context.
        written: how it was asked for, for the message.

    Raises:
        UserError: if a weight has changed.
    """
    if in_package(type(part).__module__):
        yield
        return
    before = _weights(model)
    yield
    if changed := [name for name, found in _weights(model).items() if found != before.get(name)]:
        raise UserError(
            f"{written} changed weights of the model ({len(changed)} tensors, such as {changed[0]}), and what"
            " follows would be of another model; correct it: write a copy of them back, as adding and"
            " subtracting a number leaves rounding errors"
        )


def _weights(model: PrunableModel) -> dict[str, str]:
    """{weight of the model: a hash of its values}; a buffer may change in any forward pass."""
    buffers, hashes = dict(model.module.named_buffers(remove_duplicate=False)), {}
    for name, _, parts in model.placement.tensors(model.module):
        if name in buffers:
            continue
        digest = hashlib.blake2b(digest_size=16)
        for part in parts:
            digest.update(raw(part.detach().cpu().contiguous()))
        hashes[name] = digest.hexdigest()
    return hashes
