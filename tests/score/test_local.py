import pytest
import torch

from ecoflap.blocks.gram import Gram
from ecoflap.errors import UserError
from ecoflap.score.local import Local, sparsegpt_sum
from tests import tiny, unchained
from tests.prune import reference


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "clip", "qwen3_vl", "gemma3n"])
@pytest.mark.parametrize("measure", ["wanda", "sparsegpt"])
@pytest.mark.every_run("wanda-t5", "sparsegpt-clip", "wanda-qwen3_vl", "llama")
def test_equals_the_metric_on_all_inputs(family: str, measure: str) -> None:
    made = unchained if family in unchained.BUILDERS else tiny
    model, calibration = made.build(family), made.samples(family)
    scores = Local(measure, batch_size=2)(model, calibration, 0)
    batches = tiny.one_by_one(family, calibration, 2)
    for layer in model.layers:
        inputs = reference.inputs_of(model, layer, calibration, batches).double()
        weight = layer.matrix().double()
        if measure == "wanda":
            expected = (weight.abs() * inputs.square().mean(dim=0).sqrt()).sum()
        else:
            gram = inputs.t() @ inputs / len(inputs)
            damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram))
            factor = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
            expected = (weight.square() / factor.diagonal().square()).sum()
        assert scores.importance[layer.name] == pytest.approx(float(expected), rel=2e-3)


@pytest.mark.parametrize("measure", ["wanda", "sparsegpt"])
def test_only_the_first_samples_are_used(measure: str) -> None:
    model, calibration = tiny.build("opt"), tiny.samples("opt")
    few = Local(measure, samples=2)(model, calibration, 0)
    assert few.details["samples"] == 2
    assert Local(measure, samples=99)(model, calibration, 0).details["samples"] == len(calibration)
    assert few == Local(measure, samples=2)(model, calibration.take(2), 0)
    assert few.importance != Local(measure, samples=3)(model, calibration, 0).importance


def test_weights_of_dead_columns_count_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = (torch.randn(rows, 6, generator=generator) for rows in (4, 50))
    inputs[:, 2] = 0
    statistic = Gram(6, torch.device("cpu"))
    statistic.update(inputs)
    alive = [0, 1, 3, 4, 5]
    gram = (inputs.t() @ inputs / 50).double()
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(6)
    factor = torch.linalg.cholesky(torch.linalg.inv(damped[alive][:, alive]), upper=True)
    expected = (weight[:, alive].double() / factor.diagonal()).square().sum()
    assert float(sparsegpt_sum(weight, statistic)) == pytest.approx(float(expected), rel=1e-5)


def test_the_batch_size_tells_scores_apart() -> None:
    """A loss that takes negatives from the batch changes what the layers read."""
    model, calibration = tiny.build("blip_retrieval"), tiny.samples("blip_retrieval")
    one, other = (Local(batch_size=size) for size in (2, 5))
    assert one(model, calibration, 0).importance != pytest.approx(
        other(model, calibration, 0).importance, rel=1e-3
    )
    assert one.identity() != other.identity()


@pytest.mark.parametrize("options", [{"measure": "sparsegpt"}, {"samples": 3}])
def test_other_options_are_another_entry_of_the_cache(options: dict) -> None:
    assert Local(**options).identity() != Local().identity()


def test_refusals() -> None:
    with pytest.raises(
        UserError, match=r"score\.measure=gradient is not known; the choices are wanda, sparsegpt"
    ):
        Local("gradient")
