import logging
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ecoflap.allocate.allocation import Allocation
from ecoflap.blocks.gram import Gram
from ecoflap.blocks.input_statistics import InputStatistics
from ecoflap.blocks.statistics import MeanSquare, Statistic
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import NumericalError, UserError
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import Keep, Part
from ecoflap.prune.admm import ADMM
from ecoflap.prune.driver import prune
from ecoflap.prune.finished_blocks import FinishedBlocks
from ecoflap.prune.inputs import require_capture
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.protocol import LayerPruner, Pruned
from ecoflap.prune.report import BlockReport
from ecoflap.prune.ria import RIA
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from tests import tiny
from tests.stack import stack

from . import reference
from .test_families import uniform


class Mlp(nn.Module):
    """A block: features -> hidden -> features, and a layer that is never run unless asked."""

    def __init__(self, hidden: int, spare: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, hidden), nn.Linear(hidden, 8)
        if spare:
            self.spare = nn.Linear(4, 4)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.down(self.up(hidden).relu())


def toy(hidden: int = 6, spare: bool = False) -> PrunableModel:
    return stack(lambda: Mlp(hidden), lambda: Mlp(hidden, spare))


def data(samples: int = 4, tokens: int = 10, dead: int = 0) -> CalibrationSet:
    rows = torch.randn(samples, tokens, 8, generator=torch.Generator().manual_seed(1))
    rows[..., :dead] = 0
    return CalibrationSet("toy", tuple({"x": row} for row in rows))


@pytest.mark.parametrize(
    ("pruner", "by_hand"),
    [(Wanda(), reference.wanda), (SparseGPT(), reference.sparsegpt), (Magnitude(), reference.magnitude)],
)
def test_layers_of_one_row_and_one_column(pruner: LayerPruner, by_hand: reference.PruneLayer) -> None:
    model, other = toy(hidden=1), toy(hidden=1)
    assert [layer.shape for layer in model.layers] == [(1, 8), (8, 1)] * 2
    allocation = uniform(model)
    report = prune(model, data(), pruner, allocation, 2)
    masks = reference.prune(other, data(), by_hand, allocation.keep)
    assert all(torch.equal(report.masks[name], mask) for name, mask in masks.items())


@pytest.mark.parametrize("keep", [0, 1, 47, 48])
@pytest.mark.parametrize("pruner", [Wanda(), SparseGPT(), Magnitude(), Wanda("matrix"), Magnitude("row")])
def test_counts_at_both_ends(pruner: LayerPruner, keep: int) -> None:
    model, dense = toy(), toy()
    sizes = model.sizes
    report = prune(
        model, data(dead=2), pruner, Allocation(dict.fromkeys(sizes, keep), sizes, 0.5, "model"), 3
    )
    assert {name: int(mask.sum()) for name, mask in report.masks.items()} == dict.fromkeys(sizes, keep)
    assert all(math.isfinite(error) for error in report.errors.values() if error is not None)
    if keep == 48:
        assert all(
            torch.equal(layer.weight, before.weight)
            for layer, before in zip(model.layers, dense.layers, strict=True)
        )


@pytest.mark.parametrize("pruner", [Wanda(), SparseGPT()])
def test_dead_inputs_go_first(pruner: LayerPruner) -> None:
    model = toy()
    report = prune(model, data(dead=3), pruner, uniform(model), 2)
    assert not report.masks["blocks.0.up.weight"][:, :3].any()


@pytest.mark.parametrize("pruner", [Wanda(), SparseGPT()])
def test_layer_that_never_runs(pruner: LayerPruner) -> None:
    model = toy(spare=True)
    with pytest.raises(
        UserError, match=r"never reach blocks\.1\.spare\.weight, .* add skip_layers=\[spare\]"
    ):
        require_capture(model, pruner, data(), 2, "pruned", "all")
    assert not any(module._forward_pre_hooks for module in model.module.modules())
    assert all(parameter.requires_grad for parameter in model.module.parameters())


@pytest.mark.parametrize(
    "pruner", [Wanda(), Wanda("2:4"), SparseGPT(), SparseGPT("2:4"), Magnitude(), Magnitude("2:4")]
)
def test_nan_names_the_layer(pruner: LayerPruner) -> None:
    model = tiny.build("llama")
    with torch.no_grad():
        model.module.model.layers[1].self_attn.v_proj.weight[1, 2] = math.nan
    with pytest.raises(NumericalError, match=r"^model\.layers\.1\.self_attn\.v_proj\.weight: .*NaN"):
        prune(model, tiny.samples("llama"), pruner, uniform(model), 2)


@pytest.mark.parametrize("pruner", [Wanda(), SparseGPT(), Magnitude()])
def test_infinite_weights_name_the_layer(pruner: LayerPruner) -> None:
    model = toy()
    with torch.no_grad():
        model.module.blocks[0].up.weight[1, 2] = math.inf
    with pytest.raises(NumericalError, match=r"^blocks\.0\.up\.weight: .*(not finite|infinite)"):
        prune(model, data(), pruner, uniform(model), 2)


def test_a_corrected_weight_that_half_precision_cannot_hold_names_the_layer() -> None:
    model, growing = toy(), changed(lambda found: found._replace(weight=found.weight.float() * 1e6))
    model.module.half()
    with pytest.raises(NumericalError, match=r"^blocks\.0\.up\.weight: .*not finite in torch\.float16"):
        prune(model, data(), growing, uniform(model), 2)


def test_an_error_in_the_measurement_leaves_the_weights_as_they_were() -> None:
    class Failing(Gram):
        measured = 0

        def output_energy(self, weight: Tensor) -> float:
            Failing.measured += 1
            if Failing.measured == 4:  # two for each layer: in the second that reads this input
                raise RuntimeError("out of memory")
            return super().output_energy(weight)

    class Measured(SparseGPT):
        statistic = Failing

    model = tiny.build("llama")
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    with pytest.raises(RuntimeError, match="out of memory"):
        prune(model, tiny.samples("llama"), Measured(), uniform(model), 2)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())


def test_output_that_overflows_names_the_block() -> None:
    model = toy()
    with torch.no_grad():
        model.module.blocks[1].down.bias[3] = math.inf
    with pytest.raises(NumericalError, match=r"the output of blocks\.1 is not finite after pruning"):
        prune(model, data(), Wanda(), uniform(model), 2)


@pytest.mark.parametrize("propagate", ["pruned", "layer", "dense"])
@pytest.mark.parametrize("pruner", [Wanda(), RIA(), SparseGPT()])
def test_inputs_that_overflow_name_the_layer_also_where_the_block_saturates(
    pruner: LayerPruner, propagate: str
) -> None:
    class Saturated(Mlp):
        def forward(self, hidden: Tensor) -> Tensor:
            return hidden + self.down(self.up(hidden * 1e5).tanh())

    model = stack(lambda: Mlp(6), lambda: Saturated(6))
    model.module.half()
    with pytest.raises(NumericalError, match=r"^blocks\.1\.up\.weight: .*(not finite|NaN or infinite)"):
        prune(model, halves(data()), pruner, uniform(model), 2, propagate=propagate)


def halves(calibration: CalibrationSet) -> CalibrationSet:
    return CalibrationSet("half", tuple({"x": sample["x"].half()} for sample in calibration.samples))


def test_raised_damping_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    model, few = toy(), data(samples=1, tokens=2)
    with caplog.at_level(logging.WARNING):
        prune(model, few, SparseGPT(damping=0.0), uniform(model), 1)
    assert "blocks.0.up.weight: damping raised from 0 to 0.0001" in caplog.messages
    caplog.clear()
    prune(toy(), few, SparseGPT(), uniform(model), 1)
    assert caplog.messages == []


def test_a_mask_that_misses_its_count_is_refused() -> None:
    class Greedy(Magnitude):
        def __call__(self, weight: Tensor, statistic: object, keep: int) -> Pruned:
            return super().__call__(weight, statistic, keep - 1)

    with pytest.raises(
        NumericalError, match=r"blocks\.0\.up\.weight: the mask keeps 23 weights and the allocation says 24"
    ):
        prune(toy(), None, Greedy(), uniform(toy()), 1)


def test_a_row_that_misses_its_count_is_refused() -> None:
    class Moving(Wanda):
        def __call__(self, weight: Tensor, statistic: Statistic | None, keep: Keep) -> Pruned:
            return super().__call__(weight, statistic, keep.flip(0) if isinstance(keep, Tensor) else keep)

    model, name = toy(), "blocks.0.up.weight"
    allocation = replace(uniform(model), rows={name: [2, 4, 4, 4, 4, 6]})
    prune(toy(), data(), Wanda(), allocation, 2)
    with pytest.raises(NumericalError, match=rf"{name}: a row of the mask does not keep what the allocation"):
        prune(model, data(), Moving(), allocation, 2)


def changed(
    change: Callable[[Pruned], Pruned], kind: type[Magnitude | Wanda] = Magnitude
) -> Magnitude | Wanda:
    """A pruner whose results are changed."""

    class Changed(kind):  # type: ignore[misc]
        def __call__(self, weight: Tensor, statistic: Statistic | None, keep: Keep) -> Pruned:
            return change(super().__call__(weight, statistic, keep))

    return Changed(name="changed")


def test_kept_weights_that_pruning_made_zero_are_warned_of(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """As often as in the run that pruned, where stored blocks are applied; zeros of the model don't count."""
    model, zeroing = toy(), changed(lambda found: found._replace(weight=found.weight * 0))
    with torch.no_grad():
        model.module.blocks[1].up.weight.zero_()
    for _ in range(2):
        caplog.clear()
        report = prune(model, None, zeroing, uniform(model), 1, finished=FinishedBlocks(tmp_path, "key"))
        names = ("blocks.0.up.weight", "blocks.0.down.weight", "blocks.1.down.weight")
        assert report.zeroed == dict.fromkeys(names, 24)
        assert "pruner=changed set 0.3750 of the prunable weights to zero that its masks keep" in caplog.text
    caplog.clear()
    assert prune(toy(), data(), SparseGPT(), uniform(toy()), 1).zeroed == {}
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("change", "form"),
    [
        (lambda found: found._replace(weight=found.weight.T), r"a weight \[8, 6\] and a mask \[6, 8\]"),
        (lambda found: found._replace(mask=found.mask.T), r"a weight \[6, 8\] and a mask \[8, 6\]"),
        (lambda found: found._replace(mask=found.mask.float()), r"a mask \[6, 8\] of torch\.float32"),
    ],
)
def test_a_result_of_another_form_is_refused(change: Callable[[Pruned], Pruned], form: str) -> None:
    message = rf"pruner=changed was given a weight \[6, 8\] of blocks\.0\.up\.weight, and returned .*{form}"
    with pytest.raises(UserError, match=message):
        prune(toy(), None, changed(change), uniform(toy()), 1)


def test_a_pruner_without_damping_is_not_asked_for_more() -> None:
    endless = changed(lambda found: found._replace(weight=found.weight * math.nan))
    with pytest.raises(
        NumericalError, match=r"pruner=changed made .*not finite in torch.float32; correct the pruner$"
    ):
        prune(toy(), None, endless, uniform(toy()), 1)


def test_removed_weights_are_positive_zeros() -> None:
    """Whatever the sign of the dense ones: a bitmask of the weights' bits would count others as kept."""
    model = toy()
    report = prune(model, data(), Wanda(), uniform(model), 2)
    for layer in model.layers:
        assert not layer.weight[~report.masks[layer.name]].signbit().any()


@torch.no_grad()
def test_an_error_is_that_of_the_weights_as_they_are_stored() -> None:
    model = toy()
    scaled = changed(lambda found: found._replace(weight=found.weight.float() * 1.001), Wanda)
    model.module.bfloat16()
    for layer in model.layers:
        layer.weight.fill_(1)  # bfloat16 has no number between 1 and 1.0078
    halves = CalibrationSet("toy", tuple({"x": sample["x"].bfloat16()} for sample in data().samples))
    report = prune(model, halves, scaled, replace(uniform(model), keep=model.sizes), 2)
    assert set(report.errors.values()) == {0.0}


class InPlace(ADMM):
    """ADMM that writes into the weights that it is given, as published code often does."""

    def together(
        self,
        weights: Sequence[Tensor],
        statistic: Statistic | None,
        keeps: Sequence[Keep],
        parts: Sequence[Part] | None = None,
    ) -> list[Pruned]:
        found = super().together(weights, statistic, keeps, parts)
        pairs = zip(weights, found, strict=True)
        return [Pruned(weight.copy_(one.weight), one.mask) for weight, one in pairs]


@pytest.mark.parametrize("propagate", ["pruned", "layer", "compensated"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_pruner_may_write_into_the_weights_that_it_is_given(weighted: bool, propagate: str) -> None:
    models, reports = [toy(), toy()], []
    for model, pruner in zip(models, (ADMM(mask="matrix"), InPlace(mask="matrix")), strict=True):
        allocation = uniform(model)
        if weighted:
            factors = {layer.name: (1.0 + torch.arange(layer.shape[0])).tolist() for layer in model.layers}
            allocation = replace(allocation, row_weights=factors)
        reports.append(prune(model, data(), pruner, allocation, 2, propagate=propagate))
    assert reports[1].errors == reports[0].errors
    assert min(error or 0.0 for error in reports[0].errors.values()) > 0.01
    for layer, other in zip(*(model.layers for model in models), strict=True):
        assert torch.equal(layer.weight, other.weight), layer.name


def test_each_block_is_reported_when_it_is_done() -> None:
    model, seen = toy(), []

    def look(report: BlockReport) -> None:
        seen.append(
            (
                report,
                int((model.module.blocks[0].up.weight == 0).sum()),
                int((model.module.blocks[1].up.weight == 0).sum()),
            )
        )

    report = prune(model, data(), Wanda(), uniform(model), 2, look)
    assert [block for block, *_ in seen] == report.blocks
    assert [zeros for _, *zeros in seen] == [[24, 0], [24, 24]]
    errors = [report.errors[f"blocks.0.{name}.weight"] for name in ("up", "down")]
    assert report.blocks[0].error == pytest.approx(sum(errors) / 2)


@torch.no_grad()
@pytest.mark.parametrize("kind", [MeanSquare, Gram])
@pytest.mark.parametrize(
    ("family", "shared"),
    [
        ("llama", [{"q_proj", "k_proj", "v_proj"}, {"o_proj"}, {"gate_proj", "up_proj"}, {"down_proj"}]),
        ("opt", [{"q_proj", "k_proj", "v_proj"}, {"out_proj"}, {"fc1"}, {"fc2"}]),
    ],
)
def test_layers_that_read_the_same_tensor_share_a_statistic(
    family: str, shared: list[set[str]], kind: type[MeanSquare] | type[Gram]
) -> None:
    model, calibration = tiny.build(family), tiny.samples(family)
    layers = model.towers[0].blocks[1].layers
    statistics = InputStatistics(kind)
    with statistics.gathering(layers):
        for batch in calibration.batches(2):
            model.loss(batch)
    groups: dict[int, set[str]] = {}
    for layer in layers:
        groups.setdefault(id(statistics[layer]), set()).add(layer.name.split(".")[-2])
    assert sorted(map(sorted, groups.values())) == sorted(map(sorted, shared))
    for layer in layers:
        inputs = reference.inputs_of(model, layer, calibration)
        gram = inputs.t() @ inputs / len(inputs)
        assert statistics[layer].tokens == len(inputs) == 29
        torch.testing.assert_close(
            statistics[layer].value, gram if kind is Gram else gram.diagonal(), rtol=1e-4, atol=1e-5
        )
        weight = torch.randn(3, layer.shape[1])
        energy = (
            float((weight @ gram * weight).sum())
            if kind is Gram
            else float((weight.square() @ gram.diagonal()).sum())
        )
        assert statistics[layer].output_energy(weight) == pytest.approx(energy, rel=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("kind", [MeanSquare, Gram])
def test_a_layer_that_is_called_once_more_has_a_statistic_of_its_own(
    kind: type[MeanSquare] | type[Gram],
) -> None:
    once, twice = (Layer(name, nn.Linear(8, 2)) for name in ("once", "twice"))
    inputs, zeros = torch.randn(10, 8, generator=torch.Generator().manual_seed(1)), torch.zeros(3, 8)
    for runs in (1, 2):
        statistics = InputStatistics(kind)
        with statistics.gathering([once, twice]):
            for _ in range(runs):
                statistics.begin_run((), [])
                for layer, read in ((once, inputs), (twice, inputs), (twice, zeros)):
                    layer.module(read)
        assert (statistics[once].tokens, statistics[twice].tokens) == (10 * runs, 13 * runs)
        torch.testing.assert_close(statistics[twice].value, statistics[once].value * 10 / 13)


@torch.no_grad()
@pytest.mark.parametrize("kind", [MeanSquare, Gram])
@pytest.mark.parametrize(
    "later",
    [["first 1", "second 2"], ["second 2", "first 1"], ["first 1"], ["first 1", "second 1", "second 2"]],
)
def test_layers_that_read_different_tensors_in_a_later_run_share_a_statistic_no_more(
    later: list[str], kind: type[MeanSquare] | type[Gram]
) -> None:
    layers = {name: Layer(name, nn.Linear(8, 2)) for name in ("first", "second", "third")}
    tensors = torch.randn(3, 10, 8, generator=torch.Generator().manual_seed(1)).unbind()
    runs = [[f"{name} 0" for name in layers]] * 2 + [[*later, "third 1"]] + [[f"{name} 0" for name in layers]]
    statistics = InputStatistics(kind)
    with statistics.gathering(list(layers.values())):
        for run in runs:
            statistics.begin_run((), [])
            for name, number in map(str.split, run):
                layers[name].module(tensors[int(number)])
    for name, layer in layers.items():
        alone = kind(8, torch.device("cpu"))
        for call in (call for run in runs for call in run if call.startswith(name)):
            alone.update(tensors[int(call[-1])])
        assert statistics[layer].tokens == alone.tokens
        assert torch.equal(statistics[layer].value, alone.value)


@torch.no_grad()
def test_a_tensor_that_is_written_to_is_another_input() -> None:
    first, second = (Layer(name, nn.Linear(8, 2)) for name in ("first", "second"))
    inputs, statistics = torch.ones(3, 8), InputStatistics(MeanSquare)
    with statistics.gathering([first, second]):
        first.module(inputs)
        second.module(inputs.mul_(2))
    assert statistics[first].value.tolist() == [1.0] * 8
    assert statistics[second].value.tolist() == [4.0] * 8


@torch.no_grad()
def test_inputs_that_the_model_has_freed_are_not_kept() -> None:
    """Such as the tokens of each expert, of which each is read once."""
    layer = Layer("one", nn.Linear(8, 2))
    inputs, statistics = torch.ones(3, 8), InputStatistics(MeanSquare)
    kept = weakref.ref(inputs)
    with statistics.gathering([layer]):
        layer.module(inputs)
        del inputs
        assert kept() is None
        layer.module(torch.full((3, 8), 2.0))
    assert statistics[layer].value.tolist() == [2.5] * 8


def test_half_precision_statistics_are_gathered_in_fp32() -> None:
    inputs = torch.full((5000, 2), 300.0, dtype=torch.float16)  # its square alone overflows
    for kind in (MeanSquare, Gram):
        statistic = kind(2, torch.device("cpu"))
        statistic.update(inputs)
        torch.testing.assert_close(
            statistic.value, torch.full_like(statistic.value, 90000.0), rtol=1e-3, atol=0
        )
