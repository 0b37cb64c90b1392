"""The measure of NeuronAL, against its own code and against full forward passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ecoflap.allocate.allocation import Allocation
from ecoflap.allocate.misalignment import measure_misalignment
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.blocks.statistics import Statistic
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.protocol import LayerPruner
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from tests import tiny
from tests.allocate import tiny_opt
from tests.prune import reference

# get_neuroal_block and get_neuroal_block_sparsegpt of eliacunegatti/NeuroAL e30b6cc, on ``tiny_opt``.
PUBLISHED = [
    (Magnitude("row"), [0.55, 0.55 + 0.1 / 3, 0.65 - 0.1 / 3, 0.65], 0.030373900197446346),
    (Magnitude("row"), [0.35, 0.35 + 0.5 / 3, 0.85 - 0.5 / 3, 0.85], 0.03142328397370875),
    (Wanda(), [0.55, 0.55 + 0.1 / 3, 0.65 - 0.1 / 3, 0.65], 0.021329326322302222),
    (Wanda(), [0.35, 0.35 + 0.5 / 3, 0.85 - 0.5 / 3, 0.85], 0.02486057550413534),
    (Wanda(), [0.55, 0.65, 0.75, 0.85], 0.03443126147612929),
]
PUBLISHED_SPARSEGPT = ([0.35, 0.35 + 0.5 / 3, 0.85 - 0.5 / 3, 0.85], 0.017624059837544337)


def as_published(model: PrunableModel, pruner: LayerPruner, sparsities: list[float]) -> Allocation:
    """Counts with the rounding of the released code: int(cols * sparsity) weights of each row go, or with
    SparseGPT one more than int(size * sparsity) of the layer.
    """
    keep = {}
    for block, sparsity in zip(model.blocks, sparsities, strict=True):
        for layer in block.layers:
            rows, cols = layer.shape
            by_row = rows * (cols - int(cols * sparsity))
            whole = isinstance(pruner, SparseGPT)
            keep[layer.name] = layer.size - int(layer.size * sparsity) - 1 if whole else by_row
    return Allocation(keep, model.sizes, 0.6, "block")


@pytest.mark.parametrize(("pruner", "sparsities", "expected"), PUBLISHED)
def test_the_released_code_measures_the_same(
    pruner: LayerPruner, sparsities: list[float], expected: float
) -> None:
    model = tiny_opt.opt_model()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    batches = tiny_opt.calibration().batches(3)
    found = measure_misalignment(model, pruner, batches, as_published(model, pruner, sparsities))
    assert found == {"language": pytest.approx(expected, rel=1e-5)}
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


@torch.no_grad()
def slowly(
    model: PrunableModel,
    pruner: LayerPruner,
    calibration: CalibrationSet,
    allocation: Allocation,
    weigh: Callable[[Tensor], Tensor] = lambda inputs: inputs,
) -> dict[str, float]:
    """Full forward passes, one sample at a time; the model stays pruned. ``weigh`` changes the inputs that
    are compared.
    """
    found = {}
    for tower in model.towers:
        found[tower.name] = 0.0
        for block in tower.blocks:
            dense = reference.inputs_of_each(model, block.layers, calibration)
            for layer, inputs in dense.items():
                statistic: Statistic | None = None
                if pruner.statistic is not None:
                    statistic = pruner.statistic(layer.shape[1], inputs.device)
                    statistic.update(inputs)
                layer.write(pruner(layer.matrix().clone(), statistic, allocation.keep[layer.name]).weight)
            pruned = reference.inputs_of_each(model, block.layers, calibration)
            for layer, inputs in dense.items():
                one, other = (weigh(x.double()).square().mean(dim=0).sqrt() for x in (inputs, pruned[layer]))
                distance = (one / one.sum() - other / other.sum()).norm() / len(one)
                found[tower.name] += float(distance)
    return found


def test_with_sparsegpt_the_released_code_weighs_samples_unevenly() -> None:
    """Its SparseGPT class divides the inputs by the number of samples so far once too often, so that the j-th
    sample counts 1 / j.
    """
    sparsities, expected = PUBLISHED_SPARSEGPT
    model, tokens = tiny_opt.opt_model(), tiny_opt.rows().shape[1]

    def weigh(inputs: Tensor) -> Tensor:
        return inputs / torch.arange(1, len(inputs) // tokens + 1).repeat_interleave(tokens).sqrt()[:, None]

    allocation = as_published(model, SparseGPT(), sparsities)
    found = slowly(model, SparseGPT(), tiny_opt.calibration(), allocation, weigh)
    assert found == {"language": pytest.approx(expected, rel=1e-4)}


@pytest.mark.parametrize("pruner", [Wanda(), SparseGPT(), Magnitude()], ids=lambda pruner: pruner.name)
@pytest.mark.parametrize("family", ["llama", "gpt2", "blip2_t5"])
def test_full_forward_passes_measure_the_same(family: str, pruner: LayerPruner) -> None:
    model, calibration = tiny.build(family), tiny.samples(family)
    allocation = WaterFilling("model")(model, None, 0.5)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    found = measure_misalignment(model, pruner, calibration.batches(2), allocation)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert found == pytest.approx(slowly(model, pruner, calibration, allocation), rel=1e-3)


def test_inputs_of_zeros_are_all_alike() -> None:
    model = tiny_opt.opt_model()
    with torch.no_grad():
        model.module.get_parameter("model.decoder.layers.1.fc1.weight").zero_()
        model.module.get_parameter("model.decoder.layers.1.fc1.bias").zero_()
    allocation = WaterFilling("model")(model, None, 0.5)
    found = measure_misalignment(model, Magnitude(), tiny_opt.calibration().batches(8), allocation)
    assert 0 < found["language"] < 1


def test_dense_blocks_are_not_misaligned() -> None:
    model = tiny_opt.opt_model()
    allocation = WaterFilling("model")(model, None, 0.0)
    for pruner in (Wanda(), SparseGPT()):
        found = measure_misalignment(model, pruner, tiny_opt.calibration().batches(8), allocation)
        assert found == {"language": 0.0}


def test_a_failure_restores_the_model() -> None:
    class Fails(Magnitude):
        def __call__(self, weight: Tensor, statistic: Statistic | None, keep: int) -> None:  # type: ignore[override]
            raise RuntimeError("no memory")

    model = tiny_opt.opt_model()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    with pytest.raises(RuntimeError):
        measure_misalignment(
            model, Fails(), tiny_opt.calibration().batches(8), WaterFilling("model")(model, None, 0.5)
        )
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
