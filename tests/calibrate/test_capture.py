import pytest
import torch
from torch import Tensor, nn

from ecoflap.calibrate.capture import advance, capture, first_tensor
from ecoflap.errors import UserError
from ecoflap.models.prunable import Batch, PrunableModel, quiet_forward
from ecoflap.models.towers import Block, Tower
from tests import tiny


def outputs_of_blocks(model: PrunableModel, blocks: list[nn.Module], batch: Batch) -> list[Tensor]:
    """What blocks put out in a plain forward pass of the whole model."""
    outputs: dict[nn.Module, Tensor] = {}
    handles = [block.register_forward_hook(lambda module, _, output: outputs.update({module: first_tensor(output).clone()})) for block in blocks]
    model.loss(batch)
    for handle in handles:
        handle.remove()
    return [outputs[block] for block in blocks]


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_replay_reproduces_the_forward_pass(family: str) -> None:
    model, batches = tiny.build(family), tiny.samples(family).batches(2)
    with quiet_forward(model.module):
        for tower in model.every_tower:
            streams = capture(model, tower, batches)
            expected = [outputs_of_blocks(model, [block.module for block in tower.blocks], batch) for batch in batches]
            assert [stream.samples for stream in streams] == [2, 1, 2]
            for index, block in enumerate(tower.blocks):
                advance(block, index, streams)
                for stream, outputs in zip(streams, expected, strict=True):
                    assert torch.equal(stream.hidden, outputs[index])


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_replay_of_a_changed_block_reproduces_the_changed_model(family: str) -> None:
    """Captured while the first block was dense, replayed after it changed: only the hidden states may differ between blocks."""
    model, batch = tiny.build(family), tiny.samples(family).batches(2)[0]
    with quiet_forward(model.module):
        for tower in model.every_tower:
            streams = capture(model, tower, [batch])
            dense = streams[0].hidden
            for layer in tower.blocks[0].layers:
                layer.write(layer.matrix() * (layer.matrix().abs() > 0.1))
            expected = outputs_of_blocks(model, [block.module for block in tower.blocks], batch)
            for index, block in enumerate(tower.blocks):
                advance(block, index, streams)
                assert torch.equal(streams[0].hidden, expected[index])
            assert not torch.equal(capture(model, tower, [batch])[0].calls[1].run(tower.blocks[1].module, dense), expected[1])


@torch.no_grad()
@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_t5_position_bias_of_the_first_block_reaches_the_later_ones(name: str) -> None:
    model, batch = tiny.build("blip2_t5"), tiny.samples("blip2_t5").batches(2)[0]
    tower = next(tower for tower in model.every_tower if tower.name == name)
    with quiet_forward(model.module):
        before = capture(model, tower, [batch])[0]
        tower.blocks[0].module.layer[0].SelfAttention.relative_attention_bias.weight.mul_(-3)
        after = capture(model, tower, [batch])[0]
        second = tower.blocks[1].module
        assert torch.equal(before.hidden, after.hidden)
        assert not torch.allclose(before.calls[1].run(second, before.hidden), after.calls[1].run(second, after.hidden))


@torch.no_grad()
def test_capture_stops_before_the_rest_of_the_model_and_leaves_no_hooks() -> None:
    model = tiny.build("blip2_t5")
    ran = []
    model.towers[1].blocks[0].module.register_forward_pre_hook(lambda *_: ran.append("encoder"))
    hooks = [dict(module._forward_pre_hooks) for module in model.module.modules()]
    capture(model, model.towers[0], tiny.samples("blip2_t5").batches(2))
    assert ran == []
    assert [dict(module._forward_pre_hooks) for module in model.module.modules()] == hooks


def test_tower_that_is_never_reached() -> None:
    model, other = tiny.build("llama"), tiny.build("llama")
    first, stranger = model.towers[0].blocks[0], other.towers[0].blocks[0]
    batches = tiny.samples("llama").batches(2)
    with pytest.raises(UserError, match=r"never reach all blocks of tower text \(some\.path\): 0 of 1 were called"):
        capture(model, Tower("text", "some.path", (stranger,)), batches)
    with pytest.raises(UserError, match="1 of 2 were called"):
        capture(model, Tower("text", "some.path", (first, stranger)), batches)
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
    model = PrunableModel("tiny", module, (tower,), (tower,), (), lambda module, _: module(), None)
    with pytest.raises(UserError, match="called without any tensor"):
        capture(model, tower, [{}])
