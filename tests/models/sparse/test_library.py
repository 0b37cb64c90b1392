"""Which variant of the sparse products a machine gets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ecoflap.errors import UserError
from ecoflap.models.sparse import library
from ecoflap.models.sparse.library import VARIANTS, Variant
from ecoflap.models.sparse.linear import SparseLinear
from tests.models.sparse.test_linear import layer
from tests.storage.bitmask.by_hand import same

pytestmark = [pytest.mark.any_release, pytest.mark.long]
LACKING = Variant("others", ("-D__builtin_cpu_supports(name)=0", "-mavx2", "-mfma"), torch.float32)
NOT_COMPILED = Variant("unknown", ("-mno-such-instructions",), torch.float32)


@pytest.fixture(autouse=True)
def _chosen_anew() -> Iterator[None]:
    library.products.cache_clear()
    yield
    library.products.cache_clear()


@pytest.mark.parametrize("first", [LACKING, NOT_COMPILED], ids=lambda one: one.instructions)
def test_the_first_variant_that_works_is_taken(
    first: Variant, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    (working,) = VARIANTS[dtype]
    monkeypatch.setitem(VARIANTS, dtype, (first, working, first))  # type: ignore[arg-type]
    library.products.cache_clear()
    assert library.products(dtype) is library.compiled(working)


@pytest.mark.parametrize("dtype", VARIANTS, ids=str)
def test_where_all_lack_something_the_least_is_said(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = tuple(one._replace(flags=(*one.flags, LACKING.flags[0])) for one in VARIANTS[dtype])
    monkeypatch.setitem(VARIANTS, dtype, lacking)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="lacks the instructions of sparse products: AVX2 and FMA"):
        library.products(dtype)


def test_clang_is_refused() -> None:
    with pytest.raises(UserError, match="use gcc"):
        library.compiled(Variant("clang's", ("-D__clang__", "-mavx2", "-mfma"), torch.float32))


@pytest.mark.parametrize("weights", VARIANTS, ids=str)
@torch.no_grad()
def test_all_variants_read_what_one_has_stored(weights: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may be pickled on one machine and loaded on another."""
    dense = layer(9, 45, weights)
    try:
        sparse = SparseLinear(dense)
    except UserError as error:
        pytest.skip(str(error))
    for variant in VARIANTS[weights]:
        try:
            library.compiled(variant)
        except UserError:
            continue
        monkeypatch.setitem(VARIANTS, weights, (variant,))  # type: ignore[arg-type]
        library.products.cache_clear()
        assert same(sparse.weight, dense.weight.detach())
