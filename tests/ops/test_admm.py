import pytest
import torch
from torch import Tensor

from ecoflap.ops import Pattern, admm_repair, admm_solve, normalised_inverse

from . import reference
from .problem import problem

# Of fmfi-compbio/admm-pruning 8039208 (lib/admm.py, defaults) on `published_layer`: the relative squared
# output error, the sum of all |w|, and the mask, each row as a binary number.
PUBLISHED: dict[str, tuple[Pattern, tuple[int, int, int], int, float, float, list[int]]] = {
    "row": ("row", (6, 16, 40), 48, 0.0049351305, 59.5838, [2367, 9139, 1959, 3022, 9958, 4827]),
    "sparse_row": ("row", (6, 16, 40), 24, 0.0422477461, 35.5495, [23, 658, 550, 78, 102, 585]),
    "2:4": ((2, 4), (6, 16, 40), 48, 0.0212046808, 67.4272, [51510, 13107, 13222, 39372, 26214, 23242]),
    "fewer_tokens_than_columns": (
        "row",
        (12, 32, 20),
        192,
        0.0042110123,
        217.4383,
        [
            446108526,
            9092847,
            113026515,
            17513469,
            941951,
            70563707,
            60803371,
            20755943,
            18276325,
            9391071,
            77622271,
            9861039,
        ],
    ),
}
STEPS = (20, 15, 1.0)  # iterations, those that choose a mask, relaxation: as published
PUBLISHED_WEIGHTS = {"row": {4: -1.87837, 7: -0.89504}, "2:4": {0: -0.58038, 1: 1.10639, 4: -1.57701}}


def published_layer(rows: int, cols: int, tokens: int) -> tuple[Tensor, Tensor]:
    """A weight [rows, cols] and correlated inputs [tokens, cols] of very different norms."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(tokens, cols, generator=generator) @ torch.randn(cols, cols, generator=generator)
    inputs = inputs * torch.linspace(0.1, 3, cols)
    return torch.randn(rows, cols, generator=generator), inputs


def loss(weight: Tensor, pruned: Tensor, gram: Tensor) -> float:
    change = (pruned - weight).double()
    return float((change @ gram.double() * change).sum())


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_code(case: str) -> None:
    pattern, shape, keep, error, absolute, rows = PUBLISHED[case]
    weight, inputs = published_layer(*shape)
    gram = inputs.t() @ inputs / len(inputs)
    (solution,) = admm_solve([weight], normalised_inverse(gram), [keep], [pattern], *STEPS)
    masks = [int("".join("1" if kept else "0" for kept in row), 2) for row in solution.mask.tolist()]
    assert masks == rows
    dense = (weight @ inputs.t()).double().square().sum()
    assert loss(weight, solution.weight, gram) * len(inputs) / float(dense) == pytest.approx(error, rel=1e-3)
    assert float(solution.weight.double().abs().sum()) == pytest.approx(absolute, rel=1e-5)
    for place, value in PUBLISHED_WEIGHTS.get(case, {}).items():
        assert float(solution.weight.flatten()[place]) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("relaxation", [1.0, 1.8])
@pytest.mark.parametrize(
    ("rows", "cols", "keep", "pattern"),
    [
        (12, 20, 120, "row"),
        (12, 20, 101, "row"),
        (12, 20, 101, "matrix"),
        (1, 30, 7, "row"),
        (30, 1, 7, "matrix"),
        (8, 16, 8 * 8, (2, 4)),
        (8, 15, 8 * 5, (1, 3)),
        (8, 16, 8 * 16 - 1, "matrix"),
    ],
)
def test_equals_the_reference(rows: int, cols: int, keep: int, pattern: Pattern, relaxation: float) -> None:
    weight, gram = problem(rows, cols)
    expected, mask = reference.admm(weight, gram, keep, pattern, relaxation=relaxation)
    (solution,) = admm_solve([weight], normalised_inverse(gram), [keep], [pattern], 20, 15, relaxation)
    assert int(solution.mask.sum()) == keep
    assert torch.equal(solution.mask, mask)
    torch.testing.assert_close(solution.weight.double(), expected, rtol=1e-3, atol=1e-4)


def test_dead_and_tiny_columns_equal_the_reference() -> None:
    """Dead columns count as zeros in the mean diagonal; tiny ones are columns as any other."""
    weight, gram = problem(12, 20)
    scales = torch.logspace(-6, 0, 20)
    weight /= scales
    scales[::4] = 0
    gram = scales[:, None] * gram * scales
    expected, mask = reference.admm(weight, gram, 120, "row", damping=1.0)
    (solution,) = admm_solve([weight], normalised_inverse(gram, 1.0), [120], ["row"], *STEPS)
    assert torch.equal(solution.mask, mask)
    torch.testing.assert_close(solution.weight.double() * scales, expected * scales, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("relaxation", [1.0, 1.8])
def test_counts_of_rows_equal_the_reference_of_each_row(relaxation: float) -> None:
    """Rows are independent, so each is a problem of its own, in which all of its weights compete."""
    weight, gram = problem(12, 20)
    keep = torch.tensor([0, 1, 2, 5, 7, 9, 10, 13, 17, 18, 19, 20])
    (solution,) = admm_solve([weight], normalised_inverse(gram), [keep], ["row"], 20, 15, relaxation)
    for row, count in enumerate(keep.tolist()):
        expected, mask = reference.admm(weight[row : row + 1], gram, count, "matrix", relaxation=relaxation)
        assert torch.equal(solution.mask[row], mask[0])
        torch.testing.assert_close(solution.weight[row].double(), expected[0], rtol=1e-3, atol=1e-4)
    assert torch.equal(solution.weight[-1], weight[-1])


@pytest.mark.parametrize("pattern", ["row", "matrix"])
@pytest.mark.parametrize("keep", [0, 1, 299, 300, 301, 599, 600])
def test_exact_count_and_exact_zeros(keep: int, pattern: Pattern) -> None:
    weight, gram = problem(20, 30)
    (solution,) = admm_solve([weight], normalised_inverse(gram), [keep], [pattern], *STEPS)
    assert int(solution.mask.sum()) == keep
    assert torch.equal(solution.weight == 0, ~solution.mask)
    if pattern == "row":
        counts = solution.mask.sum(dim=1)
        assert int(counts.max() - counts.min()) <= 1
    if keep == 600:
        assert torch.equal(solution.weight, weight)


def test_zero_weights_tie_and_the_count_stays() -> None:
    _, gram = problem(6, 8)
    (solution,) = admm_solve([torch.zeros(6, 8)], normalised_inverse(gram), [17], ["matrix"], *STEPS)
    assert int(solution.mask.sum()) == 17
    assert not solution.weight.any()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_scale_of_the_inputs_does_not_matter(scale: float) -> None:
    weight, gram = problem(8, 12)
    (expected,) = admm_solve([weight], normalised_inverse(gram), [50], ["row"], *STEPS)
    (solution,) = admm_solve([weight], normalised_inverse(scale * gram), [50], ["row"], *STEPS)
    assert torch.equal(solution.mask, expected.mask)
    torch.testing.assert_close(solution.weight, expected.weight)


@pytest.mark.parametrize("pattern", ["row", "matrix"])
@pytest.mark.parametrize("keep", [8 * 40, 8 * 25, 8 * 20, 8 * 15, 8])
def test_dead_columns_go_first_and_survivors_keep_their_value(keep: int, pattern: Pattern) -> None:
    weight, gram = problem(8, 40)
    dead = torch.arange(40) % 2 == 0
    gram[dead] = 0
    gram[:, dead] = 0
    (solution,) = admm_solve([weight], normalised_inverse(gram), [keep], [pattern], *STEPS)
    assert int(solution.mask.sum()) == keep
    assert int(solution.mask[:, dead].sum()) == max(0, keep - 8 * 20)
    torch.testing.assert_close(solution.weight[:, dead], (weight * solution.mask)[:, dead])
    assert solution.weight.isfinite().all()


def test_a_gram_matrix_of_zeros() -> None:
    weight = torch.randn(3, 4)
    (solution,) = admm_solve([weight], normalised_inverse(torch.zeros(4, 4)), [6], ["row"], *STEPS)
    torch.testing.assert_close(solution.weight, weight * solution.mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_solved_in_fp32_and_left_alone(dtype: torch.dtype) -> None:
    weight, gram = problem(8, 12)
    half = weight.to(dtype)
    before, matrix = half.clone(), gram.clone()
    (solution,) = admm_solve([half], normalised_inverse(gram), [40], ["row"], *STEPS)
    (expected,) = admm_solve([half.float()], normalised_inverse(gram), [40], ["row"], *STEPS)
    assert solution.weight.dtype == torch.float32
    assert torch.equal(solution.weight, expected.weight)
    assert torch.equal(half, before)
    assert torch.equal(gram, matrix)


def test_matrices_that_share_an_input_are_solved_as_if_alone() -> None:
    (first, gram), (second, _), (third, _) = problem(8, 12), problem(3, 12, seed=1), problem(5, 12, seed=2)
    weights, keeps = [first, second, third], [40, 36, 20]
    patterns: list[Pattern] = ["row", "matrix", (1, 3)]
    inverse = normalised_inverse(gram)
    together = admm_solve(weights, inverse, keeps, patterns, *STEPS)
    for weight, keep, pattern, solution in zip(weights, keeps, patterns, together, strict=True):
        (alone,) = admm_solve([weight], inverse, [keep], [pattern], *STEPS)
        assert torch.equal(solution.mask, alone.mask)
        torch.testing.assert_close(solution.weight, alone.weight)


def test_adapted_weights_err_less_than_the_same_mask_alone() -> None:
    weight, gram = problem(32, 64)
    inverse = normalised_inverse(gram)
    (solution,) = admm_solve([weight], inverse, [1024], ["row"], *STEPS)
    (repaired,) = admm_repair([weight], inverse, [solution.mask], 20, 1.0)
    alone = loss(weight, weight * solution.mask, gram)
    assert loss(weight, solution.weight, gram) < 0.7 * alone
    assert loss(weight, repaired, gram) < 0.7 * alone


@pytest.mark.parametrize("relaxation", [1.0, 1.8])
def test_repair_equals_the_reference(relaxation: float) -> None:
    weight, gram = problem(12, 20)
    mask = torch.rand(12, 20, generator=torch.Generator().manual_seed(5)) < 0.4
    mask[0], mask[1] = True, False
    expected, _ = reference.admm(weight, gram, 0, "row", relaxation=relaxation, mask=mask)
    (repaired,) = admm_repair([weight], normalised_inverse(gram), [mask], 20, relaxation)
    torch.testing.assert_close(repaired.double(), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(repaired == 0, ~mask)
    assert torch.equal(repaired[0], weight[0])


@pytest.mark.parametrize("penalty", [0.5, 1.0, 2.0])
def test_repair_converges_to_least_squares_on_the_mask(penalty: float) -> None:
    weight, gram = problem(6, 16)
    mask = torch.rand(6, 16, generator=torch.Generator().manual_seed(5)) < 0.5
    (repaired,) = admm_repair([weight], normalised_inverse(gram, 0, penalty), [mask], 6000, 1.0)
    for row, kept, dense in zip(repaired, mask, weight, strict=True):
        exact = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ dense)
        torch.testing.assert_close(row[kept], exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(number: float) -> None:
    weight, gram = problem(4, 6)
    inverse = normalised_inverse(gram)
    weight[1, 2] = number
    with pytest.raises(ValueError, match="1 of 24 weights are NaN or infinite"):
        admm_solve([weight], inverse, [10], ["row"], *STEPS)
    gram[1, 2] = number
    with pytest.raises(ValueError, match="1 of 36 entries of the Gram matrix"):
        normalised_inverse(gram)


def test_a_singular_gram_matrix_without_damping() -> None:
    with pytest.raises(ValueError, match="singular with damping=0 and penalty=1e-12; use a larger"):
        normalised_inverse(torch.ones(4, 4), 0.0, 1e-12)


def test_arguments_that_do_not_match() -> None:
    weight, gram = problem(4, 6)
    inverse = normalised_inverse(gram)
    with pytest.raises(ValueError, match=r"weight \[rows, cols\] needs an inverse"):
        admm_solve([torch.zeros(4, 5)], inverse, [10], ["row"], *STEPS)
    with pytest.raises(ValueError, match="asked to keep 25 weights of a"):
        admm_solve([weight], inverse, [25], ["row"], *STEPS)
    with pytest.raises(ValueError, match="groups of 4 columns"):
        admm_solve([weight], inverse, [12], [(2, 4)], *STEPS)
    with pytest.raises(ValueError, match="schedule=6 must be between 1 and iterations=5"):
        admm_solve([weight], inverse, [12], ["row"], 5, 6, 1.0)
    with pytest.raises(ValueError, match="square matrix"):
        normalised_inverse(torch.zeros(3, 4))
    for damping, penalty in ((-0.1, 1.0), (0.1, 0.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="damping is 0 or more"):
            normalised_inverse(gram, damping, penalty)
