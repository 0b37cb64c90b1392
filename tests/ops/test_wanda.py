import pytest
import torch

from ecoflap.ops.selection import select_in_rows, select_n_of_m
from ecoflap.ops.wanda import wanda_metric

from . import golden


def test_by_hand() -> None:
    weight = torch.tensor([[1.0, -2.0, 0.0], [-3.0, 0.5, 7.0]])
    assert wanda_metric(weight, torch.tensor([4.0, 9.0, 0.0])).tolist() == [[2.0, 6.0, 0.0], [6.0, 1.5, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scored_in_fp32_and_left_alone(dtype: torch.dtype) -> None:
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = weight.clone()
    mean_square = torch.rand(16, generator=torch.Generator().manual_seed(1)).to(dtype)
    metric = wanda_metric(weight, mean_square)
    assert metric.dtype == torch.float32
    assert torch.equal(metric, wanda_metric(weight.float(), mean_square.float()))
    assert torch.equal(weight, before)


@pytest.mark.parametrize("shape", [(2,), (3, 1), ()])
def test_shape_mismatch(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"mean_square \[cols\]"):
        wanda_metric(torch.zeros(2, 3), torch.zeros(shape))


@golden.needs_golden
@pytest.mark.parametrize("case", golden.cases("wanda"))
def test_published_metric_and_mask(case: str) -> None:
    facts, data = golden.cases("wanda")[case], golden.tensors("wanda", case)
    # The published mean is over samples, not tokens.
    metric = wanda_metric(data["weight"], data["inputs"].square().sum(dim=0) / facts["samples"])
    torch.testing.assert_close(metric, data["metric"])
    for scores in (metric, data["metric"]):
        if facts["n"]:
            mask = select_n_of_m(scores, facts["m"] - facts["n"], facts["m"])
        else:
            mask = select_in_rows(
                scores, facts["rows"] * (facts["cols"] - int(facts["cols"] * facts["sparsity"]))
            )
        assert torch.equal(~mask, data["pruned_mask"])
