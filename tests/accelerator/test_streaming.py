"""How blocks come to the device: ahead of the computation, awaited, and two at a time."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.offload.copies import Copies
from ecoflap.models.offload.placement import bytes_outside
from ecoflap.prune.driver import prune
from ecoflap.prune.wanda import Wanda
from ecoflap.run.steps import memory
from ecoflap.run.steps.memory import keep_states, memory_needs
from ecoflap.run.steps.sample_cost import sample_cost
from ecoflap.run.steps.workload import Workload
from tests.accelerator.conftest import in_child
from tests.accelerator.state import Event, note, recording, storage
from tests.accelerator.streams import TooEarlyError
from tests.models.deep import BATCH, BLOCKS, TOKENS, deepened, offloaded


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    return deepened(tiny_llama, tmp_path / "model")


def forward(model: PrunableModel) -> list[Event]:
    """What happens on the device in a forward pass; an event "block" comes before the first layer of each."""
    handles = [
        block.module.input_layernorm.register_forward_pre_hook(  # type: ignore[union-attr, operator]
            lambda *_, name=block.name: note("block", name)
        )
        for block in model.blocks
    ]
    with quiet_forward(model.module), torch.no_grad(), recording() as events:
        model.loss(BATCH)
    for handle in handles:
        handle.remove()
    return events


def parts(events: list[Event]) -> list[list[Event]]:
    """The events before the first block, of each block until the next one begins, and of the last."""
    found: list[list[Event]] = [[]]
    for event in events:
        found.append([]) if event.kind == "block" else found[-1].append(event)
    return found


def test_the_next_block_is_sent_before_the_present_one_computes(folder: Path, tmp_path: Path) -> None:
    def work() -> tuple[list[Event], int]:
        model = offloaded(folder, "cpu", tmp_path, "npy")
        return forward(model), len(list(model.blocks[0].module.parameters()))

    events, weights = in_child(work)
    copies = [sum("to npy" in event.what for event in part) for part in parts(events)]
    before, *between, last = copies
    assert before == 2 * weights + len(BATCH), "the first block, and the second one"
    assert between == [weights] * (BLOCKS - 1), "the one behind the next, before the next computes"
    assert last == 0
    for part in parts(events)[1:]:
        kinds = [event.kind for event in part]
        assert "wait" not in kinds, "the host never waits"
        if "copy" in kinds:
            assert "compute" not in kinds[kinds.index("copy") :], "and the block has been computed by then"


def test_without_room_for_two_nothing_is_sent_ahead(folder: Path, tmp_path: Path) -> None:
    def work() -> tuple[list[Event], int]:
        model = offloaded(folder, "cpu", tmp_path, "npy")
        model.placement.reads_ahead = False
        return forward(model), len(list(model.blocks[0].module.parameters()))

    events, weights = in_child(work)
    before, *between, _ = [sum("to npy" in event.what for event in part) for part in parts(events)]
    assert before == weights + len(BATCH)
    assert between == [weights] * (BLOCKS - 1)


def test_a_block_that_is_not_awaited_is_found(folder: Path, tmp_path: Path) -> None:
    def work() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Copies, "await_on_device", lambda *_: None)
            with pytest.raises(TooEarlyError, match="the device reads"):
                forward(offloaded(folder, "cpu", tmp_path, "npy"))

    in_child(work)


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_two_blocks_are_on_the_device_at_a_time(folder: Path, tmp_path: Path, kind: str, ahead: bool) -> None:
    """Also where each is changed and stored on the way, and where the order is not the expected one."""

    def work() -> tuple[int, int]:
        model = offloaded(folder, kind, tmp_path, "npy")
        model.placement.reads_ahead = ahead
        alive: weakref.WeakSet[Any] = weakref.WeakSet()
        most = 0

        def finish(self: Future[Any], result: Any, own: Callable[..., Any] = Future.set_result) -> None:
            own(self, result)
            time.sleep(0.02)  # as on a busy machine: the reading thread still refers to what it has read

        def room(self: Copies, shapes: Any, own: Callable[..., Any] = Copies.room) -> dict[str, Tensor]:
            nonlocal most
            found = own(self, shapes)
            alive.update(storage(tensor) for tensor in found.values())
            most = max(most, sum(one.nbytes() for one in alive))
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Copies, "room", room)
            patch.setattr(Future, "set_result", finish)
            forward(model)
            for block in (*model.blocks, *model.blocks[::2], *reversed(model.blocks)):
                with model.placement.using(block):
                    block.layers[0].weight.data.mul_(0.5)
                    model.placement.changed(block)
            forward(model)
        return most, sum(weight.nbytes for weight in model.blocks[0].module.parameters())

    most, block = in_child(work)
    assert most == (2 if ahead else 1) * block


def test_a_changed_block_is_stored_while_the_next_computes(folder: Path, tmp_path: Path) -> None:
    def work() -> list[Event]:
        model = offloaded(folder, "cpu", tmp_path, "npy")
        block, name = model.blocks[1], "model.layers.1.mlp.up_proj.weight"
        with model.placement.using(block):
            dense = model.module.get_parameter(name).cpu()
            model.module.get_parameter(name).data.mul_(0.5)
            model.placement.changed(block)
        events = forward(model)
        stored = {full: next(iter(values)) for full, _, values in model.placement.tensors(model.module)}
        assert torch.equal(stored[name], 0.5 * dense)
        assert stored[name].is_pinned()
        return events

    events = in_child(work)
    assert any("to cpu" in event.what for event in events)
    assert not any(event.kind == "wait" for part in parts(events)[1:] for event in part)


def test_a_block_that_is_read_on_its_way_back_is_found(folder: Path, tmp_path: Path) -> None:
    def work() -> None:
        model = offloaded(folder, "cpu", tmp_path, "npy")
        with model.placement.using(model.blocks[0]):
            model.placement.changed(model.blocks[0])

        def read() -> list[Tensor]:
            tensors = model.placement.tensors(model.module)
            return [value.sum() for _, _, values in tensors for value in values]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Copies, "finish", lambda *_: None)
            with pytest.raises(TooEarlyError, match="the host reads"):
                read()
        read()

    in_child(work)


@pytest.mark.parametrize(("room", "waiting"), [(2, 0), (1, 1), (0, 2)])
def test_hidden_states_stay_while_they_fit(folder: Path, tmp_path: Path, room: int, waiting: int) -> None:
    """Two batches of one sample pass through five blocks."""
    samples = [{name: tensor[number] for name, tensor in BATCH.items()} for number in range(2)]
    calibration, pruner = CalibrationSet("tokens", tuple(samples)), Wanda()

    def work() -> tuple[list[Event], list[int], int]:
        model = offloaded(folder, "cpu", tmp_path, "npy")
        cost = sample_cost(model, calibration)
        (need,) = memory_needs(model, cost, Workload(pruner, 2, 1))
        hidden = TOKENS.shape[1] * model.module.config.hidden_size * 4
        outside = bytes_outside(model.module, model.blocks)
        free = need.weights - outside + 2 * (need.states + need.work) + room * hidden
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(memory, "free_memory", lambda _: free)
            (kept,) = keep_states(model, [need])
        allocation = WaterFilling()(model, None, 0.5)
        with recording() as events:
            prune(model, calibration, pruner, allocation, 1)
        assert model.placement.room == room * hidden, "all of it is free again"
        return events, [kept.states - need.states, need.offloaded - kept.offloaded], hidden

    events, stays, hidden = in_child(work)
    copies = [event for event in events if event.what == f"(1, {TOKENS.shape[1]}, 16) to cpu"]
    # Of each batch that waits: what enters the first block, and what leaves each.
    assert len(copies) == waiting * (BLOCKS + 1)
    assert stays == [room * hidden] * 2
