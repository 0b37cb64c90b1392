import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ecoflap.allocate.protocol import Context
from ecoflap.allocate.trial import trial_pruner
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.blocks.loss_batches import loss_batches
from ecoflap.blocks.statistics import Statistic
from ecoflap.errors import NumericalError
from ecoflap.ops import Keep
from ecoflap.prune.admm import ADMM
from ecoflap.prune.driver import prune
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.protocol import LayerPruner, Pruned
from ecoflap.prune.ria import RIA
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from tests import tiny

pytestmark = pytest.mark.long

PRUNERS = {"magnitude": Magnitude(), "wanda": Wanda(), "sparsegpt": SparseGPT()}


def context(family: str, pruner: LayerPruner) -> Context:
    return Context(pruner, tiny.samples(family), batch_size=2, seed=0)


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.every_run(*tiny.REPRESENTATIVES)
def test_a_trial_prunes_as_the_fine_stage_does_from_dense_inputs(family: str, name: str) -> None:
    model, other, pruner = tiny.build(family), tiny.build(family), PRUNERS[name]
    keep = WaterFilling()(model, None, 0.5)
    before = model.fingerprint()
    with trial_pruner(model, context(family, pruner)) as trial:
        trial.prune(WaterFilling()(model, None, 0.8).keep)  # a trial starts from the dense weights
        trial.prune(keep.keep)
        prune(other, tiny.samples(family), pruner, keep, batch_size=2, propagate="dense")
        for layer, expected in zip(model.layers, other.layers, strict=True):
            assert torch.equal(layer.weight == 0, expected.weight == 0), layer.name
            torch.testing.assert_close(layer.weight, expected.weight, rtol=1e-3, atol=1e-5)
    assert model.fingerprint() == before


@pytest.mark.parametrize("tokens", ["text", "answer"])
def test_a_trial_counts_the_tokens_of_the_fine_stage(tokens: str) -> None:
    model, other, every = (tiny.build("llava", towers=["language"]) for _ in range(3))
    keep, samples = WaterFilling()(model, None, 0.5), tiny.samples("llava")
    with trial_pruner(model, replace(context("llava", Wanda()), tokens=tokens)) as trial:
        trial.prune(keep.keep)
        prune(other, samples, Wanda(), keep, batch_size=2, propagate="dense", tokens=tokens)
        prune(every, samples, Wanda(), keep, batch_size=2, propagate="dense")
        rows = zip(model.layers, other.layers, every.layers, strict=True)
        alike = [[torch.equal(one.weight, two.weight) for two in others] for one, *others in rows]
    assert all(same for same, _ in alike)
    assert not all(same for _, same in alike)


@pytest.mark.parametrize(("options", "trials"), [({}, (4, 3)), ({"trial_iterations": 20}, (12, 10))])
def test_admm_prunes_trials_with_fewer_iterations(options: dict[str, int], trials: tuple[int, int]) -> None:
    model, other, pruner = tiny.build("llama"), tiny.build("llama"), ADMM(**options)
    keep = WaterFilling()(model, None, 0.5)
    with trial_pruner(model, context("llama", pruner)) as trial:
        trial.prune(keep.keep)
        short = ADMM(iterations=trials[0], schedule=trials[1])
        prune(other, tiny.samples("llama"), short, keep, batch_size=2, propagate="dense")
        for layer, expected in zip(model.layers, other.layers, strict=True):
            assert torch.equal(layer.weight == 0, expected.weight == 0), layer.name
            torch.testing.assert_close(layer.weight, expected.weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("iterations", "schedule", "trials"), [(20, 15, (4, 3)), (12, 1, (4, 1)), (3, 2, (3, 2)), (4, 4, (4, 4))]
)
def test_the_schedule_of_trials_has_the_share_of_all(
    iterations: int, schedule: int, trials: tuple[int, int]
) -> None:
    short = ADMM(iterations=iterations, schedule=schedule, mask="2:4").for_trials
    assert (short.iterations, short.schedule, short.mask) == (*trials, "2:4")


def test_a_pruner_that_writes_into_its_weight_gets_another_copy_each_time() -> None:
    class InPlace(Magnitude):
        def __call__(self, weight: Tensor, statistic: Statistic | None, keep: Keep) -> Pruned:
            found = super().__call__(weight, statistic, keep)
            return found._replace(weight=weight.mul_(found.mask))

    model = tiny.build("llama")
    before = model.fingerprint()
    with trial_pruner(model, context("llama", InPlace())) as trial:
        trial.prune(WaterFilling()(model, None, 0.8).keep)
        trial.prune(WaterFilling()(model, None, 0.0).keep)
        assert model.fingerprint() == before
    assert model.fingerprint() == before


@pytest.mark.parametrize("family", ["gpt2", "blip2_t5"])
def test_the_dense_weights_come_back_after_an_error(family: str) -> None:
    model = tiny.build(family)
    before = model.fingerprint()

    def fail() -> None:
        with trial_pruner(model, context(family, Wanda())) as trial:
            trial.prune(WaterFilling()(model, None, 0.5).keep)
            assert model.fingerprint() != before
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert model.fingerprint() == before


def test_the_loss_is_the_mean_over_samples() -> None:
    model, calibration = tiny.build("llama"), tiny.samples("llama")
    with trial_pruner(model, context("llama", Wanda())) as trial:
        found = trial.loss(loss_batches(model, calibration, 2))
        losses = [
            model.loss({name: tensor[None] for name, tensor in sample.items()}).item()
            for sample in calibration.samples
        ]
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_what_a_pruner_cannot_compute_names_the_layer() -> None:
    model = tiny.build("llama")
    with trial_pruner(model, context("llama", SparseGPT())) as trial:
        trial.groups[0].dense[0][0, 0] = torch.nan
        with pytest.raises(NumericalError, match=re.escape(model.layers[0].name)):
            trial.prune(WaterFilling()(model, None, 0.5).keep)


@pytest.mark.parametrize("pruner", [Wanda(), RIA()])
def test_inputs_that_overflowed_are_refused_at_the_first_trial(pruner: LayerPruner) -> None:
    model = tiny.build("llama")
    with trial_pruner(model, context("llama", pruner)) as trial:
        statistic = trial.groups[1].statistic
        assert statistic is not None
        statistic.sum.view(-1)[0] = torch.inf
        with pytest.raises(NumericalError, match=rf"^{trial.groups[1].layers[0].name}: .*float32"):
            trial.prune(WaterFilling()(model, None, 0.5).keep)
