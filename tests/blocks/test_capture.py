from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ecoflap.blocks import stream as streams
from ecoflap.blocks.block_call import first_tensor
from ecoflap.blocks.capture import Flow, flows
from ecoflap.blocks.containers import equal
from ecoflap.blocks.finished_towers import TowerPasses
from ecoflap.data.batch import Batch
from ecoflap.errors import UserError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block, Selection, Tower
from ecoflap.models.loading.loader import prunable
from ecoflap.models.offload.placement import Placement
from tests import tiny


def outputs_of_blocks(model: PrunableModel, blocks: list[nn.Module], batch: Batch) -> list[list[Tensor]]:
    """The outputs of blocks in a plain forward pass of the whole model, one per pass through their tower."""
    outputs: dict[nn.Module, list[Tensor]] = {block: [] for block in blocks}
    handles = [
        block.register_forward_hook(
            lambda module, _, output: outputs[module].append(first_tensor(output).clone())
        )
        for block in blocks
    ]
    model.loss(batch)
    for handle in handles:
        handle.remove()
    return [outputs[block] for block in blocks]


def modules_of(tower: Tower) -> list[nn.Module]:
    return [block.module for block in tower.blocks]


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_replay_reproduces_the_forward_pass(family: str) -> None:
    model, batches = tiny.build(family), tiny.samples(family).batches(2)
    with quiet_forward(model.module):
        for tower in model.every_tower:
            flow = Flow(model, tower, batches)
            assert not flow.structure.from_output | flow.from_start
            per_block = zip(
                *(outputs_of_blocks(model, modules_of(tower), batch) for batch in batches), strict=True
            )
            for index, of_batches in enumerate(per_block):
                flow.leave(index)
                expected = [output for of_batch in of_batches for output in of_batch]
                assert len(flow.streams) == len(expected)
                assert all(
                    torch.equal(stream.hidden, output)
                    for stream, output in zip(flow.streams, expected, strict=True)
                )


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_replay_of_a_changed_block_reproduces_the_changed_model(family: str) -> None:
    """Captured while the first block was dense, replayed after it changed: only the hidden states may differ
    between blocks.
    """
    model, batch = tiny.build(family), tiny.samples(family).batches(2)[0]
    with quiet_forward(model.module):
        for tower in model.every_tower:
            flow = Flow(model, tower, [batch])
            for layer in tower.blocks[0].layers:
                layer.write(layer.matrix() * (layer.matrix().abs() > 0.1))
            for index, outputs in enumerate(outputs_of_blocks(model, modules_of(tower), batch)):
                flow.leave(index)
                assert all(
                    torch.equal(stream.hidden, output)
                    for stream, output in zip(flow.streams, outputs, strict=True)
                )


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "tower", "passes"),
    [("blip_retrieval", "text", 3), ("blip2_itm", "qformer", 4), ("clip", "text", 1)],
)
def test_every_pass_of_a_batch_is_captured(family: str, tower: str, passes: int) -> None:
    """Text alone, the pair, and the text with a wrong picture; BLIP-2's Q-Former reads the picture alone as
    well.
    """
    model = tiny.build(family)
    wanted = next(one for one in model.every_tower if one.name == tower)
    assert len(Flow(model, wanted, tiny.samples(family).batches(2)[:1]).streams) == passes


class Bumpy(nn.Module):
    """Something is added to the hidden states between its blocks, as deepstack models add picture
    features.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh()) for _ in range(3)])

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden) + 1
        return hidden


@torch.no_grad()
def test_hidden_states_that_change_between_blocks() -> None:
    torch.manual_seed(0)
    model = prunable(
        "bumpy", Bumpy(), None, lambda module, batch, _: module(batch["hidden"]).mean(dim=(1, 2)), Selection()
    )
    batches = [{"hidden": torch.randn(2, 3, 4)} for _ in range(2)]
    tower = model.towers[0]
    flow = Flow(model, tower, batches)
    assert flow.structure.from_output == {1, 2}
    assert not flow.from_start
    for index, block in enumerate(tower.blocks):
        block.layers[0].write(block.layers[0].matrix() * (block.layers[0].matrix() > 0))
        flow.leave(index)
        streams = flow.enter(index + 1) if index + 1 < len(tower.blocks) else []
        inputs: list[Tensor] = []
        following = tower.blocks[(index + 1) % 3].module
        handle = following.register_forward_pre_hook(
            lambda _, arguments, inputs=inputs: inputs.append(arguments[0].clone())
        )
        for batch in batches:
            model.loss(batch)
        handle.remove()
        assert all(
            torch.equal(stream.hidden, expected) for stream, expected in zip(streams, inputs, strict=False)
        )


@torch.no_grad()
@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_t5_position_bias_of_the_first_block_reaches_the_later_ones(name: str) -> None:
    model, batch = tiny.build("blip2_t5"), tiny.samples("blip2_t5").batches(2)[0]
    tower = next(tower for tower in model.every_tower if tower.name == name)
    with quiet_forward(model.module):
        before = Flow(model, tower, [batch]).streams[0]
        tower.blocks[0].module.layer[0].SelfAttention.relative_attention_bias.weight.mul_(-3)
        after = Flow(model, tower, [batch]).streams[0]
        second = tower.blocks[1].module
        assert torch.equal(before.hidden, after.hidden)
        assert not torch.allclose(
            before.call(1).run(second, before.hidden), after.call(1).run(second, after.hidden)
        )


class Elsewhere(Placement):
    """Offloads hidden states to the disk; weights stay on their device."""

    kind = "disk"

    def __init__(self, folder: Path) -> None:
        self.folder = folder


@torch.no_grad()
@pytest.mark.parametrize("family", ["t5", "blip2_t5", "llama"])
def test_large_arguments_are_offloaded_like_hidden_states(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Position biases of long texts are larger than they are; what blocks of a pass share is stored once."""
    if family not in tiny.FAMILIES:
        pytest.skip(f"{family} is not in the installed transformers")
    monkeypatch.setattr(streams, "LARGE", 1)
    model = tiny.build(family)
    batches = tiny.samples(family).batches(2)
    offloading = replace(model, placement=Elsewhere(tmp_path / "offloaded"))
    with quiet_forward(model.module):
        for tower in model.towers:
            plain, other = Flow(model, tower, batches), Flow(offloading, tower, batches)
            for stream, put in zip(plain.streams, other.streams, strict=True):
                calls = [(stream.call(index), put.call(index)) for index in range(len(tower.blocks))]
                assert all(equal(one, two) for one, two in calls)
                assert not any(call.tensors for call in put._calls.values())
            shared = sum(
                len({id(tensor) for call in stream._calls.values() for tensor in call.tensors})
                for stream in plain.streams
            )
            assert len(list((tmp_path / "offloaded").iterdir())) == len(other.streams) + shared
            del put, other
    assert not list((tmp_path / "offloaded").iterdir())


@torch.no_grad()
def test_capture_stops_before_the_rest_of_the_model_and_leaves_no_hooks() -> None:
    model = tiny.build("blip2_t5")
    ran = []
    model.towers[1].blocks[0].module.register_forward_pre_hook(lambda *_: ran.append("encoder"))
    hooks = [dict(module._forward_pre_hooks) for module in model.module.modules()]
    batches = tiny.samples("blip2_t5").batches(2)
    Flow(model, model.towers[0], batches)
    assert len(ran) == 3, (
        "two samples of each length run to their end, once more of one while layers are perturbed; the others"
        " stop"
    )
    assert [dict(module._forward_pre_hooks) for module in model.module.modules()] == hooks


def test_tower_that_is_never_reached() -> None:
    model, other = tiny.build("llama"), tiny.build("llama")
    first, stranger = model.towers[0].blocks[0], other.towers[0].blocks[0]
    batches = tiny.samples("llama").batches(2)
    with pytest.raises(
        UserError, match=r"never reach all blocks of tower text \(some\.path\): 0 of 1 were called"
    ):
        Flow(model, Tower("text", "some.path", (stranger,)), batches)
    with pytest.raises(UserError, match="1 of 2 were called"):
        Flow(model, Tower("text", "some.path", (first, stranger)), batches)
    assert not any(module._forward_pre_hooks for module in model.module.modules())


def test_block_without_tensors() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(1, 1)])
            self.blocks[0].forward = lambda scale: scale

        def forward(self) -> Tensor:
            return self.blocks[0](3)

    module = Model()
    tower = Tower("language", "blocks", (Block("blocks.0", module.blocks[0], ()),))
    model = PrunableModel("tiny", module, (tower,), (tower,), (), lambda module, *_: module(), None)
    with pytest.raises(UserError, match="called without any tensor"):
        Flow(model, tower, [{}])


def changed_on_the_way(model: PrunableModel, batches: list[Batch], seen: list[int]) -> list[list[Tensor]]:
    """Every tower's streams at its end, when each block was changed before it was left; ``seen``: samples
    that went through the first tower.
    """
    ends = []
    handle = (
        model.towers[0]
        .blocks[0]
        .layers[0]
        .module.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    )
    with quiet_forward(model.module):
        for flow in flows(model, model.towers, batches):
            for index, block in enumerate(flow.tower.blocks):
                flow.enter(index)
                for layer in block.layers:
                    layer.write(layer.matrix() * (layer.matrix().abs() > 0.05))
                flow.leave(index)
            ends.append([stream.hidden for stream in flow.streams])
    handle.remove()
    return ends


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_ends_of_towers_are_those_of_the_changed_model(family: str) -> None:
    model, batches = tiny.build(family), tiny.samples(family).batches(2)
    ends = changed_on_the_way(model, batches, [])
    with quiet_forward(model.module):
        for tower, streams in zip(model.towers, ends, strict=True):
            expected = [
                output
                for batch in batches
                for output in outputs_of_blocks(model, modules_of(tower)[-1:], batch)[0]
            ]
            assert all(torch.equal(stream, output) for stream, output in zip(streams, expected, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("family", ["blip2_t5", "llava"])
def test_a_finished_tower_is_not_run_again(family: str) -> None:
    model, batches = tiny.build(family), tiny.samples(family, lengths=(5,) * 8).batches(4)
    seen: list[int] = []
    changed_on_the_way(model, batches, seen)
    # One leave per batch; learning passes of two and three samples in each tower; a capture per batch where
    # the first tower was not its own shortcut.
    of_batches = [size for size in seen if size > 3]
    assert len(of_batches) == (
        len(batches) if family == "blip2_t5" else 2 * len(batches)
    )  # LLaVA reads its vision tower before the end


@pytest.mark.parametrize(
    ("order", "current"),
    [
        ([0, 0, 1, 1, 2, 2], [0, 1, 2]),
        ([1, 1, 0, 0], [1]),  # the first reads the output of the second, which was pruned since
        ([0, 0, 1, 1, 0, 0], [1]),
        ([0, 0, 2, 2, 1, 1], [0, 2]),
        ([1, 1], [1]),
        ([], []),
    ],
)
def test_a_tower_that_reads_what_was_pruned_after_it_is_run_again(
    order: list[int], current: list[int]
) -> None:
    passes = TowerPasses([])
    passes.order = order
    assert sorted(passes.independent()) == current
