import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoflap.ops import select_globally


def by_sorting(tensors: list[torch.Tensor], keep: int) -> list[torch.Tensor]:
    """All entries in one list, sorted; of equal ones the first stay."""
    order = sorted(
        range(sum(map(torch.Tensor.numel, tensors))),
        key=lambda index: (-float(torch.cat([t.flatten() for t in tensors])[index]), index),
    )
    flat = torch.zeros(len(order), dtype=torch.bool)
    flat[order[:keep]] = True
    return [
        part.view_as(tensor)
        for part, tensor in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)
    ]


def lazily(tensors: list[torch.Tensor]) -> list:
    return [lambda tensor=tensor: tensor for tensor in tensors]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**31),
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=4),
    st.sampled_from(["floats", "ties", "zeros"]),
)
def test_equals_sorting(seed: int, shapes: list[tuple[int, int]], kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.rand(shape, generator=generator) for shape in shapes]
    if kind == "ties":
        tensors = [(4 * tensor).round() for tensor in tensors]
    elif kind == "zeros":
        tensors = [torch.where(tensor < 0.7, -0.0, tensor * 1e-38) for tensor in tensors]
    total = sum(map(torch.Tensor.numel, tensors))
    for keep in {0, 1, total // 2, total}:
        masks = select_globally(lazily(tensors), keep)
        expected = by_sorting(tensors, keep)
        assert all(torch.equal(mask, other) for mask, other in zip(masks, expected, strict=True))


@pytest.mark.parametrize("keep", [1, 30, 59])
def test_entries_in_fp64_are_compared_in_fp32(keep: int) -> None:
    generator = torch.Generator().manual_seed(0)
    close = [1 + 1e-7 * torch.rand(5, 6, generator=generator, dtype=torch.float64) for _ in range(2)]
    masks = select_globally(lazily(close), keep)
    expected = select_globally(lazily([one.float() for one in close]), keep)
    assert sum(int(mask.sum()) for mask in masks) == keep
    assert all(torch.equal(mask, other) for mask, other in zip(masks, expected, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_entries_that_have_no_place(value: float) -> None:
    with pytest.raises(ValueError, match="negative, NaN or infinite"):
        select_globally(lazily([torch.tensor([1.0, value])]), 1)


def test_too_many() -> None:
    with pytest.raises(ValueError, match="asked to keep 3 of 2 entries; valid counts are 1 to 2"):
        select_globally(lazily([torch.ones(2)]), 3)
