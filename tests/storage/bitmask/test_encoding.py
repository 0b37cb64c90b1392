"""Every tensor comes back to the bit, and takes the bytes that it should."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from ecoflap.storage.bitmask.coding import planes_of, restore, squeeze, values_of
from ecoflap.storage.bitmask.convert import convert
from ecoflap.storage.bitmask.encoding import Encoded, bits_of, decode, encode
from ecoflap.storage.saved_model import open_checkpoint
from tests.storage.bitmask.by_hand import FLOATS, INTEGERS, decode_by_hand, pruned, raw, same

pytestmark = [pytest.mark.any_release, pytest.mark.long]


def decoded(one: Encoded, like: Tensor) -> Tensor:
    parts = {**one.places, "values" if one.places else "": one.values}
    return decode(one.encoding, False, tuple(like.shape), like.dtype, parts.__getitem__)


def groups(n: int, count: int, dtype: torch.dtype) -> Tensor:
    """Rows of four in which every choice of n places occurs."""
    places = list(combinations(range(4), n))
    mask = torch.zeros(count, 4, dtype=torch.bool)
    for row in range(count):
        mask[row, list(places[row % len(places)])] = True
    return (torch.arange(1, 4 * count + 1).reshape(count, 4) * mask).to(dtype)


@pytest.mark.parametrize("density", [0, 0.3, 0.6, 1])
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_every_dtype_comes_back(dtype: torch.dtype, density: float) -> None:
    tensor = pruned((37, 61), density, dtype)
    one = encode(tensor)
    assert same(decoded(one, tensor), tensor)
    assert one.encoding == ("dense" if density == 1 and dtype != torch.bool else "bitmask")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_negative_zeros_and_every_nan_survive(dtype: torch.dtype) -> None:
    special = torch.tensor([-0.0, 0.0, math.nan, -math.nan, 1e-45, 1.0]).to(dtype)
    payload = special.clone()
    payload.view(torch.uint8)[2 * dtype.itemsize] ^= 1  # another NaN, or another number
    tensor = torch.zeros(64, 64, dtype=dtype)
    tensor[3, :6], tensor[60, -6:] = special, payload
    one = encode(tensor)
    assert one.encoding == "bitmask"
    assert same(decoded(one, tensor), tensor)
    assert len(one.values) == sum(raw(value) != bytes(dtype.itemsize) for value in tensor.reshape(-1))


@pytest.mark.parametrize("shape", [(), (0,), (5,), (0, 8), (8, 0), (1, 1), (1, 3), (3, 1, 0), (2, 3, 5, 7)])
@pytest.mark.parametrize("density", [0, 0.5, 1])
def test_every_shape_comes_back(shape: tuple[int, ...], density: float) -> None:
    tensor = pruned(shape, density, torch.bfloat16)
    assert same(decoded(encode(tensor), tensor), tensor)


@pytest.mark.parametrize("tensor", [torch.zeros(4096), torch.zeros(8, 8), torch.tensor(0.0)])
def test_vectors_and_small_tensors_stay_dense(tensor: Tensor) -> None:
    assert encode(tensor).encoding == "dense"


def test_a_transposed_tensor() -> None:
    tensor = pruned((40, 60), 0.4, torch.float32).T
    assert same(decoded(encode(tensor), tensor), tensor)


@pytest.mark.parametrize("count", [997, 1000, 1001])
@pytest.mark.parametrize(("n", "per_byte"), [(1, 4), (2, 3), (3, 4)])
def test_n_of_4_takes_fewer_bytes_than_a_bitmask(n: int, per_byte: int, count: int) -> None:
    tensor = groups(n, count, torch.bfloat16)
    one = encode(tensor)
    assert one.encoding == f"{n}:4"
    assert one.places["codes"].nbytes == math.ceil(count / per_byte) < 4 * count / 8
    assert len(one.values) == n * count
    assert same(decoded(one, tensor), tensor)


def test_groups_with_fewer_than_n_weights_keep_zeros_as_values() -> None:
    tensor = groups(2, 1002, torch.bfloat16)
    tensor[5], tensor[7, 0] = 0, -0.0
    one = encode(tensor)
    assert one.encoding == "2:4"
    assert same(decoded(one, tensor), tensor)


def test_a_bitmask_where_one_group_has_too_many() -> None:
    tensor = groups(2, 1000, torch.bfloat16)
    tensor[500] = 1
    one = encode(tensor)
    assert one.encoding == "bitmask"
    assert same(decoded(one, tensor), tensor)


def test_groups_lie_within_rows() -> None:
    """Rows of 6 have no groups of 4, although 6 x 1000 weights have."""
    tensor = groups(2, 1500, torch.bfloat16).reshape(1000, 6)
    assert encode(tensor).encoding == "bitmask"


def test_the_sizes_of_sparse_matrices_in_bf16() -> None:
    dense = 1000 * 1024 * 2
    for sparsity in (0.5, 0.6, 0.7):
        one = encode(pruned((1000, 1024), 1 - sparsity, torch.bfloat16))
        size = one.values.nbytes + one.places["mask"].nbytes
        assert size / dense == pytest.approx(1 - sparsity + 1 / 16, abs=2e-3)
    one = encode(groups(2, 256_000, torch.bfloat16))
    assert (one.values.nbytes + one.places["codes"].nbytes) / dense == pytest.approx(0.5 + 1 / 24, abs=1e-4)


def test_coding_shortens_the_exponents_of_random_weights_to_their_entropy() -> None:
    values = bits_of(torch.randn(200_000, generator=torch.Generator().manual_seed(0)).bfloat16())
    exponents, rest = planes_of(values)
    counts = torch.bincount(torch.from_numpy(exponents).long()).double()
    shares = counts[counts > 0] / counts.sum()
    entropy = float(-(shares * shares.log2()).sum())
    assert entropy <= 8 * len(squeeze(exponents)) / len(exponents) < 1.03 * entropy
    assert squeeze(rest) is rest
    assert (values_of([exponents, rest], values.dtype) == values).all()


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_planes_come_back(dtype: torch.dtype) -> None:
    values = bits_of(pruned((999,), 0.7, dtype))
    stored = [squeeze(plane) for plane in planes_of(values)]
    assert (values_of([restore(plane, 999) for plane in stored], values.dtype) == values).all()


def test_a_code_of_another_length_is_refused() -> None:
    coded = squeeze(planes_of(bits_of(torch.zeros(4000, dtype=torch.uint8)))[0])
    assert len(coded) < 4000
    for count in (3999, 4001):
        with pytest.raises(ValueError, match="instead of"):
            restore(coded, count)
    with pytest.raises(ValueError, match="can't be read"):
        restore(coded[::-1].copy(), 4000)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 24), min_size=0, max_size=3).map(tuple),
    density=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    n=st.sampled_from([None, 1, 2, 3]),
    dtype=st.sampled_from([*FLOATS, *INTEGERS]),
    form=st.sampled_from(["bitmask", "coded"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_slow_decoder_by_the_documented_format_agrees(
    shape: tuple[int, ...], density: float, n: int | None, dtype: torch.dtype, form: str, seed: int
) -> None:
    tensor = pruned((16, *shape), density, dtype, seed)
    if n is not None and tensor.dim() > 1 and tensor.shape[-1] % 4 == 0 and tensor.numel():
        order = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(seed)).reshape(-1, 4)
        # As bytes, because fp8 can't be assigned by a mask.
        tensor.view(torch.uint8).reshape(-1, 4, tensor.element_size())[order.argsort(1) >= n] = 0
    with TemporaryDirectory() as name:
        source, out = Path(name) / "source", Path(name) / "out"
        source.mkdir()
        save_file({"a.weight": tensor, "b": pruned((3,), 1, torch.float32)}, source / "model.safetensors")
        convert(source, out, form)
        assert decode_by_hand(out)["a.weight"] == raw(tensor)
        with open_checkpoint(out) as checkpoint:
            assert same(checkpoint.tensor("a.weight"), tensor)
