"""``propagate=dense``: every layer is pruned by what it reads in the dense model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ecoflap.blocks.input_statistics import InputsComplete, InputStatistics
from ecoflap.blocks.statistics import MeanSquare
from ecoflap.blocks.walk import walk
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.prune.driver import prune
from ecoflap.prune.finished_blocks import FinishedBlocks
from ecoflap.prune.inputs import measure_dense
from ecoflap.prune.report import BlockReport
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from tests import tiny

from . import reference
from .test_driver import data, toy
from .test_families import uniform
from .test_layer_by_layer import rows, stack


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "t5", "blip2_t5", "blip2_opt", "clip"])
def test_masks_are_those_of_the_dense_model(family: str) -> None:
    model, calibration = tiny.build(family), tiny.samples(family)
    allocation = uniform(model)
    one_by_one = tiny.one_by_one(family, calibration, 2)
    expected = {}
    with quiet_forward(model.module):
        for layer in model.layers:
            inputs = reference.inputs_of(model, layer, calibration, one_by_one)
            _, expected[layer.name] = reference.wanda(
                layer.matrix().clone(), inputs, allocation.keep[layer.name]
            )
    report = prune(model, calibration, Wanda(), allocation, 2, propagate="dense")
    assert list(report.masks) == [layer.name for layer in model.layers]
    for layer in model.layers:
        assert torch.equal(layer.oriented(report.masks[layer.name]), expected[layer.name]), layer.name


@pytest.mark.parametrize("pruner", [Wanda(), SparseGPT()])
def test_it_is_another_result_and_one_pass(pruner: Wanda | SparseGPT) -> None:
    weights, runs = {}, {}
    for propagate in ("pruned", "dense"):
        model, calibration = tiny.build("llama"), tiny.samples("llama")
        ran: list[int] = []
        model.blocks[1].layers[0].module.register_forward_pre_hook(
            lambda _, arguments, ran=ran: ran.append(len(arguments[0]))
        )
        prune(model, calibration, pruner, uniform(model), 2, propagate=propagate)
        weights[propagate], runs[propagate] = model.layers[-1].weight.detach().clone(), sum(ran)
    assert not torch.equal(weights["pruned"], weights["dense"])
    small = 4 * 2  # show how blocks are called for both lengths, and whether those do the same alone
    assert runs == {"pruned": small + 2 * 5, "dense": small + 5}


def test_a_stopped_run_goes_on_with_inputs_of_the_dense_model(tmp_path: Path) -> None:
    whole, stopped, resumed = toy(), toy(), toy()

    def stop(_: BlockReport) -> None:
        raise KeyboardInterrupt

    given: dict[str, Any] = {"propagate": "dense", "finished": FinishedBlocks(tmp_path, "key")}
    prune(whole, data(), SparseGPT(), uniform(whole), 2, propagate="dense")
    with pytest.raises(KeyboardInterrupt):
        prune(stopped, data(), SparseGPT(), uniform(stopped), 2, stop, **given)
    prune(resumed, data(), SparseGPT(), uniform(resumed), 2, **given)
    for layer, other in zip(resumed.layers, whole.layers, strict=True):
        assert torch.equal(layer.weight, other.weight), layer.name


@torch.no_grad()
def test_a_block_is_run_no_further_than_its_last_layer_reads() -> None:
    model, calibration = tiny.build("llama"), tiny.samples("llama")
    block, statistics, finished = model.blocks[0], InputStatistics(MeanSquare), []
    block.layers[-1].module.register_forward_hook(lambda *_: finished.append(True))
    with statistics.gathering(block.layers):
        for batch in calibration.batches(1):
            statistics.begin_run((), [], (batch["input_ids"].shape,))
            try:
                model.loss(batch)
            except InputsComplete:
                continue
    assert len(finished) == 2, "the first run of each length shows that no layer is called twice"
    assert statistics[block.layers[-1]].tokens == statistics[block.layers[0]].tokens == 29


class Chunked(nn.Module):
    """Sends long texts through its layer in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + torch.cat([torch.tanh(self.layer(part)) for part in hidden.split(5, dim=1)], dim=1)


class Slots(nn.Module):
    """Sends each text through two experts, one after the other, which its second and third numbers choose."""

    place = "experts"

    def __init__(self) -> None:
        super().__init__()
        self.add_module(self.place, nn.ModuleList(nn.Linear(8, 8) for _ in range(2)))

    def forward(self, hidden: Tensor) -> Tensor:
        output = hidden.clone()
        for slot in (hidden[:, 0, 1:3] > 0).long().unbind(1):
            for number in slot.unique().tolist():
                added = torch.tanh(self.get_submodule(f"{self.place}.{number}")(hidden[slot == number]))
                output[slot == number, :, 3:] += added[..., 3:]
        return output


class UnnamedSlots(Slots):
    """Slots whose names don't tell that they are experts."""

    place = "choices"


class Sometimes(nn.Module):
    """Its last layer reads only the texts whose second number is positive, if there are some."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        output, chosen = hidden + torch.tanh(self.first(hidden)), hidden[:, 0, 1] > 0
        if chosen.any():
            output[chosen, :, 3:] += torch.tanh(self.last(hidden[chosen]))[..., 3:]
        return output


class Apart(nn.Module):
    """Two layers read the same tensor in short texts only."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        read = hidden if hidden.shape[1] < 6 else hidden * torch.arange(8)
        return hidden + self.one(hidden) + self.other(read)


@torch.no_grad()
@pytest.mark.parametrize("leave", [False, True])
@pytest.mark.parametrize("block", [Chunked, Slots, UnnamedSlots, Sometimes, Apart])
def test_batches_that_call_layers_otherwise_than_the_first(
    block: Callable[[], nn.Module], leave: bool
) -> None:
    calibration, model = rows([5] * 4 + [7] * 4), stack(block)
    for number, sample in enumerate(calibration.samples):
        sample["x"][0, 1:3] = torch.tensor([-1.0, 1.0]) * (-1) ** (number == 3)
    for visit in walk(model, model.towers, calibration.batches(2), "check"):
        found = visit.measure(MeanSquare, leave)
        assert found is not None
        for layer in visit.block.layers:
            inputs = reference.inputs_of(model, layer, calibration)
            assert found[layer].tokens == len(inputs), layer.name
            torch.testing.assert_close(found[layer].value, inputs.square().mean(0))
        if not leave:
            visit.leave()


@pytest.mark.parametrize("family", ["llama", "gpt2", "blip2_t5", "clip", "torchvision_vit"])
def test_what_was_measured_of_the_dense_model_prunes_like_measuring_on_the_way(family: str) -> None:
    together, apart = tiny.build(family), tiny.build(family)
    calibration = tiny.samples(family)
    given = measure_dense(apart, calibration, 2)
    assert set(given) == {layer.name for layer in apart.layers}
    prune(together, calibration, Wanda(), uniform(together), 2, propagate="dense")
    report = prune(apart, calibration, Wanda(), uniform(apart), 2, propagate="dense", recall=lambda _: given)
    for one, other in zip(together.layers, apart.layers, strict=True):
        assert torch.equal(one.weight, other.weight), one.name
    assert all(error is not None for error in report.errors.values())
