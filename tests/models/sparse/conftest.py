"""What the tests of sparse layers share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch

from ecoflap.errors import UserError
from ecoflap.models.sparse import library

VARIANTS = {
    f"{dtype}, {variant.instructions}": (dtype, variant)
    for dtype, variants in library.VARIANTS.items()
    for variant in variants
}


@cache
def why_not(variant: library.Variant) -> str:
    """Why this machine has no such products, or nothing where it has: compiling them again takes a second."""
    try:
        library.compiled(variant)
    except UserError as error:
        return str(error)
    return ""


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.dtype]:
    """Each dtype, for each variant of its products that this machine has, which is then the only one."""
    chosen, variant = request.param
    if reason := why_not(variant):
        pytest.skip(reason)
    monkeypatch.setitem(library.VARIANTS, chosen, (variant,))  # type: ignore[arg-type]
    library.products.cache_clear()
    yield chosen
    library.products.cache_clear()
