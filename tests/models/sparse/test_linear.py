"""A sparse layer gives what the dense one gives, up to the rounding of sums."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ecoflap.errors import UserError
from ecoflap.models.sparse.library import BLOCK, FEW_TOKENS
from ecoflap.models.sparse.linear import SparseLinear
from tests.storage.bitmask.by_hand import same

pytestmark = [pytest.mark.any_release, pytest.mark.long]

TOKENS = (*range(1, FEW_TOKENS + 2), *range(16, BLOCK, 8), BLOCK - 1, BLOCK, 2 * BLOCK + 5)

Product = Callable[[SparseLinear, Tensor], Tensor]


def layer(rows: int, cols: int, dtype: torch.dtype, sparsity: float = 0.6, bias: bool = True) -> nn.Linear:
    generator = torch.Generator().manual_seed(rows + cols)
    dense = nn.Linear(cols, rows, bias=bias)
    weight = torch.randn(rows, cols, generator=generator)
    dense.weight.data = torch.where(torch.rand(rows, cols, generator=generator) < sparsity, 0, weight)
    if bias:
        dense.bias.data = torch.randn(rows, generator=generator)
    return dense.to(dtype)


def check(dense: nn.Linear, inputs: Tensor, product: Product = SparseLinear.forward) -> None:
    """Compare with sums in double precision, within what rounding them in fp32 and the result can make."""
    found = product(SparseLinear(dense), inputs)
    weight, bias = dense.weight.double(), 0 if dense.bias is None else dense.bias.double()
    expected = inputs.double() @ weight.T + bias
    size = inputs.double().abs() @ weight.abs().T
    room = 2e-6 * size + torch.finfo(dense.weight.dtype).eps * expected.abs() + 1e-30
    assert found.dtype == inputs.dtype
    assert found.shape == expected.shape
    assert ((found.double() - expected).abs() <= room).all()


@pytest.mark.parametrize("shape", [(1, 1), (3, 15), (5, 33), (7, 64), (40, 129), (33, 500)], ids=str)
@torch.no_grad()
def test_every_number_of_tokens_and_odd_shapes(shape: tuple[int, int], dtype: torch.dtype) -> None:
    rows, cols = shape
    for tokens in TOKENS:
        for bias in (True, False):
            check(layer(rows, cols, dtype, bias=bias), torch.randn(tokens, cols).to(dtype))


def test_it_is_called_by_keyword_as_the_dense_layer_is() -> None:
    dense, inputs = layer(5, 33, torch.float32), torch.randn(2, 33)
    check(dense, inputs, lambda sparse, given: sparse(input=given))
    assert torch.equal(SparseLinear(dense)(input=inputs), SparseLinear(dense)(inputs))


@pytest.mark.parametrize("sparsity", [0.0, 0.97, 1.0])
@torch.no_grad()
def test_no_zeros_few_weights_and_none(sparsity: float, dtype: torch.dtype) -> None:
    """At 97 % some rows of the matrix are empty."""
    check(layer(20, 70, dtype, sparsity), torch.randn(4, 70).to(dtype))


@torch.no_grad()
def test_empty_rows_at_both_ends(dtype: torch.dtype) -> None:
    dense = layer(6, 50, dtype)
    dense.weight[[0, 3, 5]] = 0
    check(dense, torch.randn(2, 50).to(dtype))


@torch.no_grad()
def test_threads_share_the_rows(dtype: torch.dtype) -> None:
    """Two give to the bit what one gives, for rows that come out even and others."""
    before = torch.get_num_threads()
    try:
        for rows in (1, 2, 37, 64):
            sparse = SparseLinear(layer(rows, 100, dtype))
            for tokens in (1, 3, FEW_TOKENS, 20, BLOCK + 1):
                inputs, found = torch.randn(tokens, 100).to(dtype), []
                for threads in (1, 2):
                    torch.set_num_threads(threads)
                    found.append((sparse(inputs), sparse.weight))
                assert all(map(torch.equal, *found))
                check(layer(rows, 100, dtype), inputs)
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def test_inputs_of_any_layout(dtype: torch.dtype) -> None:
    dense = layer(12, 64, dtype)
    batch = torch.randn(2, 3, 64).to(dtype)
    for inputs in (batch, batch.transpose(0, 1), torch.randn(64, 4).to(dtype).T, batch[:, 1], batch[0, 0]):
        check(dense, inputs)
    assert SparseLinear(dense)(batch[:0]).shape == (0, 3, 12)


@pytest.mark.parametrize("tokens", [3, 20])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@torch.no_grad()
def test_what_is_not_finite_is_multiplied_as_by_the_dense_layer(
    value: float, tokens: int, dtype: torch.dtype
) -> None:
    """A zero times infinity is no number, though products with many tokens skip zeros."""
    dense = layer(8, 40, dtype)
    dense.weight[2, 3], dense.weight[4, 5] = float("nan"), float("inf")
    inputs = torch.randn(tokens, 40).to(dtype)
    inputs[1, 7] = value
    found, expected = SparseLinear(dense)(inputs), dense(inputs)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[found.isinf()], expected[expected.isinf()])


@torch.no_grad()
def test_finite_inputs_of_an_infinite_sum(dtype: torch.dtype) -> None:
    dense = layer(8, 40, dtype)
    inputs = torch.full((20, 40), torch.finfo(dtype).max / 100).to(dtype)
    assert inputs.sum().isinf()
    assert torch.equal(SparseLinear(dense)(inputs).isfinite(), dense(inputs).isfinite())
    check(dense, inputs / 1e6)


def test_the_weight_comes_back_to_the_bit(dtype: torch.dtype) -> None:
    dense = layer(9, 45, dtype)
    with torch.no_grad():
        dense.weight[1, 1], dense.weight[2, 2] = -0.0, float("nan")
    sparse = SparseLinear(dense)
    assert same(sparse.weight[1, 1], torch.zeros((), dtype=dtype)), "a negative zero is not stored"
    dense.weight.data[1, 1] = 0
    assert same(sparse.weight, dense.weight.detach())
    mine, others = sparse.state_dict(), dense.state_dict()
    assert mine.keys() == others.keys()
    assert all(same(mine[name], others[name]) for name in mine)
    assert "sparsity=0.6" in repr(sparse)


@pytest.mark.parametrize("shape", [(2, 45), (2, 10, 45)], ids=str)
def test_gradients_reach_the_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    dense = layer(9, 45, dtype)
    inputs, same_inputs = (torch.ones(shape, dtype=dtype, requires_grad=True) for _ in range(2))
    sparse = SparseLinear(dense)
    found = sparse(inputs)
    with torch.no_grad():
        assert torch.equal(found, sparse(inputs)), "the product is the same"
    (found * found.detach()).sum().backward()
    expected = dense(same_inputs)
    (expected * found.detach()).sum().backward()
    assert inputs.grad is not None
    assert torch.equal(inputs.grad, same_inputs.grad)  # type: ignore[arg-type]
    assert not any(parameter.requires_grad for parameter in sparse.parameters())


def test_second_and_forward_derivatives(dtype: torch.dtype) -> None:
    dense, tangent = layer(9, 45, dtype), torch.linspace(-1, 1, 90).to(dtype).view(2, 45)
    sparse = SparseLinear(dense)
    seconds = []
    for module in (dense, sparse):
        inputs = torch.ones(2, 45, dtype=dtype, requires_grad=True)
        (first,) = torch.autograd.grad(module(inputs).square().sum(), inputs, create_graph=True)
        (second,) = torch.autograd.grad((first * tangent).sum(), inputs)
        seconds.append(second.float())
    room, (expected, found) = 100 * torch.finfo(dtype).eps, seconds
    assert torch.allclose(found, expected, rtol=room, atol=room * float(expected.abs().max()))
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled), forward_ad.dual_level():
            inputs = forward_ad.make_dual(torch.ones(2, 45, dtype=dtype), tangent)
            found, expected = (forward_ad.unpack_dual(one(inputs)).tangent for one in (sparse, dense))
        assert torch.allclose(found.float(), expected.float(), rtol=room, atol=10 * room)


@pytest.mark.parametrize("tokens", [1, FEW_TOKENS, FEW_TOKENS + 1, 37])
def test_a_compiled_model_calls_the_layer_as_it_is(tokens: int, dtype: torch.dtype) -> None:
    torch.compiler.reset()
    dense = layer(40, 70, dtype)
    model = nn.Sequential(SparseLinear(dense), nn.ReLU())
    compiled = torch.compile(model, backend="aot_eager")
    inputs = torch.randn(tokens, 70).to(dtype)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(compiled(inputs), model(inputs))
    gradients = []
    for one in (compiled, model):
        leaf = inputs.clone().requires_grad_()
        one(leaf).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)  # type: ignore[arg-type]
    sparse = SparseLinear(dense)
    matrix = torch.compile(lambda given: given @ sparse.weight.T, backend="aot_eager")
    assert torch.equal(matrix(inputs), inputs @ sparse.weight.T)


@pytest.mark.parametrize("record", [torch.jit.trace, torch.export.export])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trace_is_refused(record: Callable[..., object], dtype: torch.dtype) -> None:
    """Its pointers would be those of the example."""
    options = {"strict": False} if record is torch.export.export else {}
    with pytest.raises(UserError, match=r"can't be traced or exported; .* sparse=False"):
        record(SparseLinear(layer(5, 33, dtype)), (torch.ones(2, 33, dtype=dtype),), **options)


@torch.no_grad()
def test_the_dense_matrix_is_made_and_multiplied_part_by_part(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where no product takes many tokens."""
    monkeypatch.setattr("ecoflap.models.sparse.linear.PART", 45 * dtype.itemsize * 2)
    check(layer(9, 45, dtype), torch.randn(20, 45).to(dtype), SparseLinear._in_parts)


def test_copies_and_moves(dtype: torch.dtype) -> None:
    sparse = SparseLinear(layer(9, 45, dtype))
    other = copy.deepcopy(sparse).eval().to("cpu").to(dtype)
    inputs = torch.randn(3, 45).to(dtype)
    assert same(other.weight, sparse.weight)
    for convert in (sparse.half, sparse.double, lambda: sparse.to(torch.float16)):
        with pytest.raises(UserError, match="load the model with sparse=False"):
            convert()
        assert same(sparse.weight, other.weight), "a refusal changes nothing"
        assert same(sparse(inputs), other(inputs))
    with pytest.raises(UserError, match="on meta"):
        other.to("meta")
    assert same(sparse.weight, other.weight)


def test_inputs_that_do_not_fit_are_refused_as_by_the_dense_layer(dtype: torch.dtype) -> None:
    sparse = SparseLinear(layer(9, 45, dtype))
    with pytest.raises(RuntimeError):
        sparse(torch.ones(2, 44, dtype=dtype))
    with pytest.raises(RuntimeError):
        sparse(torch.ones(2, 45, dtype=torch.float64))


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_torchs_default_dtype_changes_nothing(default: torch.dtype, dtype: torch.dtype) -> None:
    dense, inputs = layer(40, 129, dtype), [torch.randn(tokens, 129).to(dtype) for tokens in (1, 5, 70)]
    expected = [SparseLinear(dense)(one) for one in inputs]
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = [SparseLinear(dense)(one) for one in inputs]
    finally:
        torch.set_default_dtype(before)
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))


@torch.no_grad()
def test_torchs_default_device_changes_nothing(dtype: torch.dtype) -> None:
    dense, inputs = layer(40, 129, dtype), torch.randn(70, 129).to(dtype)
    expected, sparse = SparseLinear(dense)(inputs), SparseLinear(dense)
    with torch.device("meta"):
        found, weight = sparse(inputs), sparse.weight
    assert same(found, expected)
    assert same(weight, sparse.weight)


@pytest.mark.parametrize("cols", [64, 100])
@torch.no_grad()
def test_inputs_of_other_strides(cols: int, dtype: torch.dtype) -> None:
    """Padding a picture whose channels come last keeps its strides."""
    pictures = torch.randn(2, cols, 3, 4).to(dtype).to(memory_format=torch.channels_last)
    for order in ((0, 2, 3, 1), (0, 3, 2, 1)):
        check(layer(20, cols, dtype), pictures.permute(*order))
    tokens_last = torch.randn(2, 5, cols, 3).to(dtype).permute(0, 1, 3, 2)
    check(layer(20, cols, dtype), tokens_last)
    check(layer(20, cols, dtype), torch.randn(2, 3, 5, cols).to(dtype).permute(0, 2, 1, 3))


@torch.no_grad()
def test_inputs_on_another_device_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        SparseLinear(layer(5, 33, dtype))(torch.empty(2, 33, dtype=dtype, device="meta"))


def test_a_state_dict_is_refused(dtype: torch.dtype) -> None:
    sparse = SparseLinear(layer(5, 33, dtype))
    with pytest.raises(UserError, match=r"don't read state dicts; .* ecoflap\.load_pruned"):
        sparse.load_state_dict(sparse.state_dict())
