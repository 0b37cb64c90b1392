"""Whatever a model does between its blocks, what enters and leaves each block is that of a full forward pass
of the model as it is then.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from ecoflap.blocks.bypass import bypassing
from ecoflap.blocks.capture import Flow, flows
from ecoflap.blocks.containers import equal, snapshot
from ecoflap.blocks.recorder import CaptureComplete, LearningRecorder, Recorder
from ecoflap.data.batch import Batch
from tests import unchained
from tests.blocks.stacks import (
    WAYS,
    Adding,
    batches,
    built,
    change,
    depths_of_short_ones,
    given_mean_of_short_ones,
    in_full_passes,
    model_of,
)


@torch.no_grad()
@pytest.mark.parametrize("pictures", ["in all", "not in the first", "not in the last"])
@pytest.mark.parametrize("way", WAYS)
def test_each_block_is_carried_as_full_passes_would(way: str, pictures: str) -> None:
    model, given = model_of(way), batches(pictures)
    towers = model.towers if pictures != "not in the first" else model.towers[1:]
    if way == "side_by_side" and pictures != "in all":
        pytest.skip("the later mergers are not called without a picture")
    for flow in flows(
        model, towers, [{name: tensor.clone() for name, tensor in batch.items()} for batch in given]
    ):
        for index, block in enumerate(flow.tower.blocks):
            flow.enter(index)  # a second time, it is entered already
            streams, expected = flow.enter(index), in_full_passes(model, block.module, given)
            assert len(streams) == len(expected)
            for stream, (entered, left) in zip(streams, expected, strict=True):
                assert torch.equal(stream.hidden, entered), block.name
                for _ in range(2):  # once to measure, once more to leave
                    assert torch.equal(stream.call(index).run(block.module, stream.hidden), left), block.name
            change(block)
            flow.leave(index)


@torch.no_grad()
@pytest.mark.parametrize(("way", "copies"), [("plainly", 1), ("in_place", 4), ("deepstack", 4)])
def test_hidden_states_that_bypassed_blocks_return_are_copied_once(way: str, copies: int) -> None:
    model, batch = model_of(way), batches("in all")[0]
    plain, found = LearningRecorder(model.towers[1]), Recorder(model.towers[1], 1, range(4), writes=True)
    with plain.recording():
        model.loss(batch)
    bypasses = {module: made for module, made in plain.bypasses.items() if made is not None}
    with found.recording(), bypassing(bypasses), suppress(CaptureComplete):
        model.loss(batch)
    kept = [given.hidden for calls in found.inputs.values() for given in calls]
    assert len(kept) == 4
    assert len({hidden.data_ptr() for hidden in kept}) == copies


@torch.no_grad()
@pytest.mark.parametrize(
    ("way", "shared"), [("plainly", [True] * 3), ("in_place", [False] * 3), ("skipping", [True, True, False])]
)
def test_the_output_that_enters_the_next_block_is_copied_once(way: str, shared: list[bool]) -> None:
    model = model_of(way)
    found = LearningRecorder(model.towers[1])
    with found.recording():
        model.loss(batches("in all")[0])
    pairs = [(found.outputs[index][0].output, found.inputs[index + 1][0].hidden) for index in range(3)]
    assert [left is entered for left, entered in pairs] == shared


@torch.no_grad()
@pytest.mark.parametrize("number", [2, 3, 4])
def test_a_pass_that_runs_out_of_memory_proves_nothing(number: int) -> None:
    model, calls = model_of("deepstack"), count(1)

    def loss(module: Any, batch: Batch, _: int) -> Tensor:
        if next(calls) == number:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return module(**batch).mean(dim=(1, 2))

    with pytest.raises(RuntimeError, match="can't allocate memory"):
        Flow(replace(model, loss_function=loss), model.towers[1], batches("in all"))


@torch.no_grad()
@pytest.mark.parametrize("sizes", [(1,) * 9, (2, 2, 2, 2, 1), (3, 3, 3), (5, 4), (1, 3, 5)])
def test_a_tower_that_runs_sample_by_sample_is_run_for_all(sizes: tuple[int, ...]) -> None:
    """As MiniCPM-V's merger runs picture by picture."""
    model = model_of("given_end")
    together = batches("in all")
    samples = {name: torch.cat([one[name] for one in together]) for name in together[0]}
    parts = zip(*(tensor.split(sizes) for tensor in samples.values()), strict=True)
    given = [dict(zip(samples, part, strict=True)) for part in parts]

    def loss(module: Any, batch: Batch, _: int) -> Tensor:
        seen = [module.see(image)[-1] for image in batch["image"].split(1)]
        return module(**batch).mean(dim=(1, 2)) + torch.cat(seen).mean(dim=(1, 2))

    model = replace(model, loss_function=loss)
    vision = model.towers[0]
    flow = Flow(model, vision, given)
    for index, block in enumerate(vision.blocks):
        change(block)
        found = [stream.hidden.clone() for stream in flow.enter(index)]
        expected = [hidden for hidden, _ in in_full_passes(model, block.module, given)]
        assert len(found) == len(expected) == 9 + len(given)
        assert all(map(torch.equal, found, expected))
        flow.leave(index)


@torch.no_grad()
def test_the_end_of_a_looped_tower_is_that_of_the_pruned_model() -> None:
    """Its second pass reads what pruned blocks leave in the first."""
    model, given = model_of("given_end"), batches("in all")

    def loss(module: Any, batch: Batch, _: int) -> Tensor:
        once = module.see(batch["image"])[-1]
        return module(batch["hidden"], once).mean(dim=(1, 2))

    model = replace(model, loss_function=loss)
    for flow in flows(model, model.towers, given):
        for index, block in enumerate(flow.tower.blocks):
            streams, expected = flow.enter(index), in_full_passes(model, block.module, given)
            if flow.tower is model.towers[1]:
                for stream, (_, left) in zip(streams, expected, strict=True):
                    assert torch.equal(stream.call(index).run(block.module, stream.hidden), left), block.name
            change(block)
            flow.leave(index)


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
def test_blocks_that_are_the_identity_hide_nothing(way: str) -> None:
    """Where no block does anything, hidden states are the same at every depth, and what is read from where
    can't be seen by comparing them.
    """
    model, given = model_of(way), batches("in all")
    for block in model.blocks:
        for parameter in block.module.parameters():
            parameter.zero_()
    for flow in flows(
        model, model.towers, [{name: tensor.clone() for name, tensor in batch.items()} for batch in given]
    ):
        for index, block in enumerate(flow.tower.blocks):
            streams, expected = flow.enter(index), in_full_passes(model, block.module, given)
            assert all(
                torch.equal(stream.hidden, entered)
                for stream, (entered, _) in zip(streams, expected, strict=True)
            ), block.name
            for parameter in block.module.parameters():
                parameter.fill_(0.3)
            flow.leave(index)


@torch.no_grad()
@pytest.mark.parametrize(
    ("way", "from_output", "from_start"),
    [
        ("plainly", [], []),
        ("deepstack", [1, 2, 3], []),
        ("in_place", [1, 2, 3], []),
        ("twice", [1, 2, 3], []),
        ("skipping", [], [3]),
        ("backwards", [], [1, 2, 3]),
        ("out_of_order", [], [1, 2, 3]),
        ("narrowed", [1, 2, 3], []),
        ("transposed", [1, 2, 3], []),
        ("looped", [], [1, 2, 3]),
        ("side_by_side", [1, 2, 3], []),
        ("given_end", [], []),
        ("given_mean", [1, 2, 3], []),
        ("shared_dict", [1, 2, 3], []),
        ("replaced_in_dict", [1, 2, 3], []),
        ("shared_list", [1, 2, 3], []),
        ("shared_cache", [1, 2, 3], []),
        ("shared_tensor", [], [1, 2, 3]),
        ("shared_tensor_twice", [], [1, 2, 3]),
        ("own_hidden_states", [], []),
        ("handed_on", [], [1, 2, 3]),
    ],
)
def test_what_is_captured_anew(way: str, from_output: list[int], from_start: list[int]) -> None:
    model = model_of(way)
    flow = Flow(model, model.towers[-1], batches("in all"))
    assert flow.structure is not None
    assert (sorted(flow.structure.from_output), sorted(flow.from_start)) == (from_output, from_start)


@torch.no_grad()
@pytest.mark.parametrize("way", [given_mean_of_short_ones, depths_of_short_ones])
def test_what_one_kind_of_batch_shows_counts_for_all(way: Callable[..., Tensor]) -> None:
    """The long samples come first, and nothing of them shows what the short ones do."""
    model, long = built(way, Adding), batches("in all")
    given = [*long, *({name: tensor[:, :3] for name, tensor in batch.items()} for batch in long)]
    for flow in flows(model, model.towers, given):
        for index, block in enumerate(flow.tower.blocks):
            streams = flow.enter(index)
            for stream, (hidden, output) in zip(
                streams, in_full_passes(model, block.module, given), strict=True
            ):
                torch.testing.assert_close(stream.hidden, hidden)
                torch.testing.assert_close(stream.call(index).run(block.module, stream.hidden), output)
            change(block)
            flow.leave(index)


@torch.no_grad()
@pytest.mark.parametrize(
    ("way", "runs"), [("given_end", 0), ("plainly", 0), ("deepstack", 1), ("given_depths", 1)]
)
def test_a_tower_is_bypassed_where_only_its_end_is_read(way: str, runs: int) -> None:
    model, given, seen = model_of(way), batches("in all"), []
    model.towers[0].blocks[0].layers[0].module.register_forward_pre_hook(
        lambda _, arguments: seen.append(len(arguments[0]))
    )
    for flow in flows(model, model.towers, given):
        for index in range(len(flow.tower.blocks)):
            seen.clear()
            flow.enter(index)
            if flow.tower is model.towers[1]:
                anew = index in flow.structure.from_output
                assert seen.count(3) == (runs * len(given) if anew else 0)
            flow.leave(index)


@torch.no_grad()
def test_only_blocks_that_read_shared_states_are_captured_anew() -> None:
    model = unchained.build("gemma3n")
    flow = Flow(model, model.towers[0], unchained.samples("gemma3n").batches(2))
    assert flow.structure is not None
    assert flow.structure.from_output == {3, 4, 5}, (
        "the third block is the first whose keys and values are shared"
    )
    assert not flow.from_start


@pytest.mark.parametrize(
    "one", [1, 1.5, "one", torch.ones(2), [torch.ones(2)], {"a": 1}, UserDict(a=torch.ones(1)), None]
)
def test_arguments_that_differ(one: Any) -> None:
    others = [
        2,
        2.5,
        "two",
        torch.zeros(2),
        torch.ones(2).half(),
        [torch.zeros(2)],
        [],
        {"a": 2},
        {"b": 1},
        UserDict(a=torch.zeros(1)),
        0,
    ]
    assert equal(one, snapshot(one))
    assert not any(equal(one, other) for other in others)


@torch.no_grad()
def test_a_pass_that_runs_blocks_ends_at_the_one_it_is_for() -> None:
    """The fourth block reads the first's output, too: it costs one run of the three before it."""
    model, given, ran = model_of("skipping"), batches("in all"), []
    flow = Flow(model, model.towers[1], given)
    for index, block in enumerate(flow.tower.blocks):
        block.layers[0].module.register_forward_hook(lambda *_, index=index: ran.append(index))
    for index in range(len(flow.tower.blocks)):
        flow.enter(index)
        assert ran == ([0, 1, 2] * len(given) if index == 3 else [])
        flow.leave(index)
        ran.clear()
