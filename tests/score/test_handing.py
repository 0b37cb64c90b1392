"""Scores of models whose blocks hand each other more than hidden states, against full passes and plain
autograd.
"""

import pytest
import torch
from torch import Tensor, nn

from ecoflap.blocks.loss_batches import loss_batches
from ecoflap.blocks.suffix import SuffixRunner
from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.loading.loader import prunable
from ecoflap.score.first_order import FirstOrder
from ecoflap.score.local import Local
from ecoflap.score.zeroth_order import ZerothOrder
from tests import handing, hybrids, tiny
from tests.prune import reference
from tests.prune.test_handing import REFUSED
from tests.score.test_zeroth_order import LARGE, slopes_by_autograd, two_forward_passes_per_probe
from tests.stack import stack

# Where a block that is computed again finds what another one has left there since.
LEFT_BEHIND = [("ByOneAttribute", 1), ("ByOneAttribute", 2), ("ByAttribute", 2)]


def gradients_by_autograd(
    model: PrunableModel, calibration: CalibrationSet, batch_size: int
) -> dict[str, float]:
    """The sum of |gradient| of each layer, mean over samples: all gradients of a batch at once, no block
    computed twice.
    """
    sums = dict.fromkeys((layer.name for layer in model.layers), 0.0)
    for batch in loss_batches(model, calibration, batch_size):
        with quiet_forward(model.module):
            for layer in model.layers:
                layer.weight.requires_grad_(True)
            gradients = torch.autograd.grad(
                model.loss(batch).mean(), [layer.weight for layer in model.layers], allow_unused=True
            )
        for layer, gradient in zip(model.layers, gradients, strict=True):
            sums[layer.name] += (
                0.0 if gradient is None else len(next(iter(batch.values()))) * float(gradient.abs().sum())
            )
    return {name: total / len(calibration) for name, total in sums.items()}


@pytest.mark.parametrize("way", handing.WAYS)
@pytest.mark.parametrize(("lengths", "rounds"), [((5, 7, 5, 7, 5), 1), ((5,), 1), ((5, 5), 2)])
def test_stacks_probed_equal_moved_weights(way: str, lengths: tuple[int, ...], rounds: int) -> None:
    model, calibration = handing.build(way, rounds), handing.samples(lengths)
    scores = ZerothOrder(**LARGE)(model, calibration, seed=7).importance
    assert scores == pytest.approx(
        two_forward_passes_per_probe(model, calibration, ZerothOrder(**LARGE), seed=7), rel=1e-3, abs=1e-5
    )
    assert min(scores.values()) > 0


@pytest.mark.parametrize("way", handing.WAYS)
def test_stacks_that_are_not_replayed_say_so(way: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        ZerothOrder(samples=2, batch_size=2)(handing.build(way), handing.samples(), 0)
    assert ("the whole model is run for each probe of language" in caplog.text) == (
        way in ("ByAttribute", "ByOneAttribute", "InPlace")
    )


class Dropping(nn.Linear):
    """Drops numbers in evaluation mode too."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(input), 0.2, training=True)


class Growing(nn.Linear):
    """Its output grows with each call."""

    calls = 0

    def forward(self, input: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(input) * self.calls


@pytest.mark.parametrize("kind", [Dropping, Growing])
@pytest.mark.parametrize("probe", ["layer", "block"])
def test_a_loss_that_differs_from_pass_to_pass_is_refused(kind: type[nn.Linear], probe: str) -> None:
    model = stack(lambda: nn.Sequential(nn.Linear(8, 8), kind(8, 8)), lambda: nn.Sequential(nn.Linear(8, 8)))
    samples = CalibrationSet("random", tuple({"x": torch.randn(3, 8)} for _ in range(2)))
    with pytest.raises(UserError, match=r"two passes over the same samples have a loss of .* score=none"):
        ZerothOrder(samples=2, batch_size=2, probe=probe)(model, samples, 0)


def test_state_left_by_an_earlier_pass_is_noticed() -> None:
    """Right after the recording, an unprobed replay finds in the attribute what the recording left there."""
    model = handing.build("ByAttribute")
    with quiet_forward(model.module):
        runner = SuffixRunner(model, handing.samples((5, 5)).batches(2)[0])
        block = model.blocks[2]
        assert torch.equal(runner.losses_from(block.module, 1)[0], runner.losses)
        assert not runner.can_replay([block], 1)


@pytest.mark.parametrize(
    "way", [way for way in handing.WAYS if way not in ("ByPreallocatedTensor", "InPlace")]
)  # which can't be differentiated
@pytest.mark.parametrize("rounds", [1, 2])
def test_stacks_recomputed_equal_plain_autograd(way: str, rounds: int) -> None:
    model, calibration = handing.build(way, rounds), handing.samples()
    expected = gradients_by_autograd(model, calibration, 2)
    for recompute in (False,) if (way, rounds) in LEFT_BEHIND else (True, False):
        assert FirstOrder(batch_size=2, recompute=recompute)(
            model, calibration, 0
        ).importance == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("scorer", [FirstOrder(), ZerothOrder(probe="derivative")])
@pytest.mark.parametrize(("way", "rounds"), LEFT_BEHIND)
def test_block_that_is_something_else_when_it_is_computed_again(
    scorer: FirstOrder | ZerothOrder, way: str, rounds: int
) -> None:
    model = handing.build(way, rounds)
    with pytest.raises(UserError, match=r"blocks\.\d puts out something else .* score\.recompute=false"):
        scorer(model, handing.samples(), 0)
    assert not any("forward" in block.module.__dict__ for block in model.blocks)


@pytest.mark.parametrize("scorer", [FirstOrder(), ZerothOrder(probe="derivative")])
def test_model_that_can_not_be_differentiated(scorer: FirstOrder | ZerothOrder) -> None:
    with pytest.raises(
        UserError, match=r"writes into tensors that a backward pass needs.*score=zeroth_order"
    ):
        scorer(handing.build("InPlace"), handing.samples(), 0)


class Counting(nn.Module):
    """Counts its calls where no argument shows it; its first feature is a thousand times the others, as in
    large models.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(3, 3), 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        large, others = hidden[..., :1] + 1000, hidden[..., 1:]
        return torch.cat([large, others + self.calls * 0.1 * self.linear(others)], dim=-1)


def test_block_that_differs_in_small_features_when_it_is_computed_again() -> None:
    module = nn.Module()
    module.blocks = nn.ModuleList([Counting(), Counting()])

    def loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
        hidden = batch["x"]
        for block in module.blocks:  # type: ignore[union-attr]
            hidden = block(hidden)
        return hidden.mean(dim=(1, 2))

    model = prunable("counting", module, None, loss, Selection())
    rows = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    with pytest.raises(UserError, match=r"blocks\.\d puts out something else"):
        FirstOrder()(model, CalibrationSet("random", tuple({"x": row} for row in rows)), 0)


@torch.no_grad()
@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("way", handing.WAYS)
def test_local_scores_are_those_of_full_passes_or_refused(way: str, rounds: int) -> None:
    model, calibration = handing.build(way, rounds), handing.samples()
    if (refused := REFUSED[way]) is not None:
        with pytest.raises(UserError, match=refused):
            Local(batch_size=2)(model, calibration, 0)
        return
    scores = Local(batch_size=2)(model, calibration, 0).importance
    for layer in model.layers:
        norms = reference.inputs_of(model, layer, calibration).double().square().mean(dim=0).sqrt()
        assert scores[layer.name] == pytest.approx(
            float((layer.matrix().double().abs() * norms).sum()), rel=1e-4
        )


@pytest.mark.parametrize("name", hybrids.EVERY)
@pytest.mark.every_run("falcon_h1", "gemma4", "mamba2")
def test_hybrids_probed_equal_moved_weights(name: str) -> None:
    model, calibration = hybrids.build(name, hybrids.UNCALLED.get(name)), tiny.samples("llama")
    scores = ZerothOrder(**LARGE)(model, calibration, seed=7).importance
    assert scores == pytest.approx(
        two_forward_passes_per_probe(model, calibration, ZerothOrder(**LARGE), seed=7), rel=1e-3, abs=1e-4
    )


@pytest.mark.parametrize("name", [*hybrids.EVERY, *hybrids.TIED])
@pytest.mark.every_run("gemma3n", "falcon_h1", "jamba", "mamba", "mamba2")
def test_hybrids_differentiated_equal_plain_autograd(name: str) -> None:
    """Weights that are used without a call of their module have gradients like any other."""
    model, calibration = hybrids.build(name), tiny.samples("llama")
    expected = gradients_by_autograd(model, calibration, 2)
    for recompute in (True, False):
        assert FirstOrder(batch_size=2, recompute=recompute)(
            model, calibration, 0
        ).importance == pytest.approx(expected, rel=1e-4, abs=1e-7)
    scorer = ZerothOrder(samples=5, batch_size=2, probe="derivative")
    assert scorer(model, calibration, 7).importance == pytest.approx(
        slopes_by_autograd(model, calibration, scorer, 7), rel=1e-3, abs=1e-5
    )


@pytest.mark.parametrize("name", ["jamba", "mamba", *hybrids.TIED])
@pytest.mark.parametrize("scorer", [ZerothOrder(), ZerothOrder(probe="block"), Local()])
def test_weights_that_are_used_without_their_module_are_refused(
    name: str, scorer: ZerothOrder | Local
) -> None:
    with pytest.raises(UserError, match=r"outside the call of their module.* add skip_layers=\["):
        scorer(hybrids.build(name), tiny.samples("llama"), 0)
