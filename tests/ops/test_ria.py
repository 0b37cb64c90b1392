import pytest
import torch

from ecoflap.ops import ria_metric


def test_by_hand() -> None:
    weight = torch.tensor([[1.0, -3.0], [-3.0, 1.0]])
    metric = ria_metric(weight, torch.tensor([16.0, 81.0]))
    torch.testing.assert_close(metric, torch.tensor([[1.0, 4.5], [3.0, 1.5]]))
    assert ria_metric(weight, torch.tensor([16.0, 81.0]), power=1.0)[0].tolist() == [2.0, 13.5]


def test_published_code() -> None:
    """The line that computes W_metric in lib/prune.py of RIA's repository (7bc55b0), a = 0.5."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 16, generator=generator) @ torch.randn(16, 16, generator=generator)
    inputs = inputs * torch.linspace(0.1, 3, 16)
    weight = torch.randn(6, 16, generator=generator)
    metric = ria_metric(weight, inputs.square().sum(dim=0))
    first = [0.120275, 0.639241, 0.802503, 1.044541, 2.981854, 1.006346]
    assert metric.flatten()[:6].tolist() == pytest.approx(first, rel=1e-5)
    assert float(metric.sum()) == pytest.approx(133.2304, rel=1e-5)


def test_the_scale_of_the_weights_does_not_matter() -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ria_metric(weight * 2**-20, torch.ones(7)), ria_metric(weight, torch.ones(7)))


def test_rows_and_columns_of_zeros_score_zero() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 2.0]])
    metric = ria_metric(weight, torch.tensor([1.0, 1.0, 0.0]))
    assert metric.tolist() == [[0.0, 0.0, 0.0], [pytest.approx(4 / 3), 0.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scored_in_fp32(dtype: torch.dtype) -> None:
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    square = torch.rand(16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ria_metric(weight, square), ria_metric(weight.float(), square))


def test_shape_mismatch() -> None:
    with pytest.raises(ValueError, match=r"mean_square \[cols\]"):
        ria_metric(torch.zeros(2, 3), torch.zeros(2))
