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
from torch import Tensor, nn

from ecoflap.blocks.block_call import first_tensor
from ecoflap.blocks.bypass import bypassing
from ecoflap.blocks.capture import Flow, flows
from ecoflap.blocks.containers import equal, snapshot
from ecoflap.blocks.recorder import CaptureComplete, LearningRecorder, Recorder
from ecoflap.data.batch import Batch
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.loading.loader import prunable
from tests import unchained


class Block(nn.Module):
    """A residual layer that may read and write what it is given beside."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden: Tensor, *_: Any) -> Any:
        return hidden + self.linear(hidden).tanh()


class Adding(Block):
    """Adds what it is given."""

    def forward(self, hidden: Tensor, other: Tensor) -> Tensor:
        return super().forward(hidden) + other


class Remembering(Block):
    """Reads the values of the block that first wrote, and writes where nobody did: Gemma 3n's and Gemma 4's
    key-value states.
    """

    def forward(self, hidden: Tensor, shared: Any) -> Tensor:
        if "values" not in shared:
            shared["values"] = self.linear(hidden)
        return super().forward(hidden) + shared["values"]


class Replacing(Block):
    """Puts another tensor in the place of the one that it reads, as a running state."""

    def forward(self, hidden: Tensor, shared: dict[str, Tensor]) -> Tensor:
        shared["sum"] = shared["sum"] + self.linear(hidden)
        return super().forward(hidden) + shared["sum"]


class Appending(Block):
    """Reads what all blocks before it wrote, as from a cache that grows."""

    def forward(self, hidden: Tensor, shared: list[Tensor]) -> Tensor:
        shared.append(self.linear(hidden))
        return super().forward(hidden) + torch.stack(shared).sum(dim=0)


class Accumulating(Block):
    """Writes into a tensor."""

    def forward(self, hidden: Tensor, total: Tensor) -> Tensor:
        total.add_(self.linear(hidden))
        return super().forward(hidden) + total


class Overwriting(Block):
    """Writes into its own hidden states."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.add_(self.linear(hidden).tanh())


class Making(Block):
    """The first makes something for all later ones, from weights that are pruned."""

    def forward(self, hidden: Tensor, made: Tensor | None) -> tuple[Tensor, Tensor]:
        made = self.linear(hidden) if made is None else made
        return super().forward(hidden) + made, made


class Cache:
    """An object that holds tensors."""

    def __init__(self) -> None:
        self.layers: list[Tensor] = []


class Caching(Appending):
    def forward(self, hidden: Tensor, cache: Cache) -> Tensor:
        return super().forward(hidden, cache.layers)


class Model(nn.Module):
    """Two towers; ``way`` says how the hidden states [batch, tokens, 4] go through the second, given the
    states of the first's blocks.
    """

    def __init__(self, way: Callable[..., Tensor], kind: type[Block] = Block) -> None:
        super().__init__()
        self.vision = nn.ModuleList([Block() for _ in range(3)])
        self.layers = nn.ModuleList([kind() for _ in range(4)])
        self.way = way

    def forward(self, hidden: Tensor, image: Tensor) -> Tensor:
        return self.way(self.layers, hidden, self.see(image) if image.any() else [image])

    def see(self, image: Tensor) -> list[Tensor]:
        states = [image]
        for block in self.vision:
            states.append(block(states[-1]))
        return states


def deepstack(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    hidden = hidden + states[-1]
    for index, block in enumerate(layers):
        hidden = block(hidden)
        if index + 1 < len(states):
            hidden = hidden + states[index]
    return hidden


def in_place(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    for index, block in enumerate(layers):
        hidden = block(hidden)
        hidden += states[-1] * (index == 1)
    return hidden


def skipping(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    """The last block reads the first's output too."""
    first = layers[0](hidden)
    second = layers[1](first)
    return layers[3](layers[2](second) + first)


def backwards(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    for block in reversed(layers):
        hidden = block(hidden + states[-1])
    return hidden


def out_of_order(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    """Each block reads the very output of another one, but not of the one before it in the list."""
    return layers[3](layers[1](layers[2](layers[0](hidden))))


def narrowed(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    """The last token is cut off behind each block: the rest begins at the same address."""
    for block in layers:
        hidden = block(hidden)[:, :-1]
    return hidden


def transposed(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    """As many tokens as features, which change places: the address and the shape stay."""
    hidden = hidden[:, :4]
    for block in layers:
        hidden = block(hidden).transpose(1, 2)
    return hidden


def looped(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    for _ in range(2):
        for block in layers:
            hidden = block(hidden)
    return hidden


def side_by_side(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    """A list of mergers."""
    return sum(block(state) for block, state in zip(layers, states, strict=False)) + hidden


def given_depths(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    """Each block reads another block of the first tower."""
    for index, block in enumerate(layers):
        hidden = block(hidden, states[min(index, len(states) - 1)])
    return hidden


def given_end(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    for block in layers:
        hidden = block(hidden, states[-1])
    return hidden


def given_mean(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    for block in layers:
        hidden = block(hidden, hidden.mean(dim=1, keepdim=True))
    return hidden


def given_mean_with_pictures(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    """Pictures are added between blocks, which are then given what depends on blocks."""
    for block in layers:
        if len(states) == 1:
            hidden = block(hidden, torch.ones(()))
        else:
            hidden = block(hidden, hidden.mean(dim=1, keepdim=True)) + states[-1]
    return hidden


def given_mean_of_short_ones(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    """What the blocks are given depends on blocks in one kind of batch, and in the other it doesn't."""
    for block in layers:
        hidden = block(hidden, hidden.mean(dim=1, keepdim=True) if hidden.shape[1] < 5 else torch.ones(()))
    return hidden


def depths_of_short_ones(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    """Only short samples read more of the first tower than its end."""
    return (given_depths if hidden.shape[1] < 5 else given_end)(layers, hidden, states)


def twice(way: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Two passes that don't depend on each other."""

    def passes(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
        return way(layers, hidden, states) + way(layers, hidden.flip(1), states)

    return passes


def plainly(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    hidden = hidden * 1  # a copy, as blocks may write into it
    for block in layers:
        hidden = block(hidden)
    return hidden


def sharing(make: Callable[[Tensor], Any]) -> Callable[..., Tensor]:
    def way(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
        shared = make(hidden)
        for block in layers:
            hidden = block(hidden, shared)
        return hidden

    return way


def handed_on(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    made = None
    for block in layers:
        hidden, made = block(hidden, made)
    return hidden


WAYS: dict[str, tuple[Callable[..., Tensor], type[Block]]] = {
    "plainly": (plainly, Block),
    "deepstack": (deepstack, Block),
    "in_place": (in_place, Block),
    "twice": (twice(deepstack), Block),
    "skipping": (skipping, Block),
    "backwards": (backwards, Block),
    "out_of_order": (out_of_order, Block),
    "narrowed": (narrowed, Block),
    "transposed": (transposed, Block),
    "looped": (looped, Block),
    "side_by_side": (side_by_side, Block),
    "given_depths": (given_depths, Adding),
    "given_end": (given_end, Adding),
    "given_mean": (given_mean, Adding),
    "given_mean_with_pictures": (given_mean_with_pictures, Adding),
    "shared_dict": (sharing(lambda _: {}), Remembering),
    "shared_mapping": (sharing(lambda _: UserDict()), Remembering),
    "replaced_in_dict": (sharing(lambda hidden: {"sum": torch.zeros_like(hidden)}), Replacing),
    "shared_list": (sharing(lambda _: []), Appending),
    "shared_cache": (sharing(lambda _: Cache()), Caching),
    "shared_tensor": (sharing(torch.zeros_like), Accumulating),
    "shared_tensor_twice": (twice(sharing(torch.zeros_like)), Accumulating),
    "own_hidden_states": (plainly, Overwriting),
    "handed_on": (handed_on, Making),
}


def model_of(way: str) -> PrunableModel:
    return built(*WAYS[way])


def built(way: Callable[..., Tensor], kind: type[Block]) -> PrunableModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Model(way, kind)
    return prunable(
        "toy", module, None, lambda module, batch, _: module(**batch).mean(dim=(1, 2)), Selection()
    )


def batches(pictures: str) -> list[Batch]:
    """Three batches; all with pictures, none in the first, or none in the last."""
    generator = torch.Generator().manual_seed(1)
    made = [
        {name: torch.randn(3, 5, 4, generator=generator) for name in ("hidden", "image")} for _ in range(3)
    ]
    if pictures != "in all":
        made[0 if pictures == "not in the first" else -1]["image"].zero_()
    return made


def in_full_passes(model: PrunableModel, block: nn.Module, given: list[Batch]) -> list[tuple[Tensor, Tensor]]:
    """What enters and leaves a block, call by call."""
    entered: list[Tensor] = []
    left: list[Tensor] = []
    before = block.register_forward_pre_hook(lambda _, arguments: entered.append(arguments[0].clone()))
    after = block.register_forward_hook(lambda _, __, output: left.append(first_tensor(output).clone()))
    for batch in given:
        model.loss({name: tensor.clone() for name, tensor in batch.items()})
    before.remove()
    after.remove()
    return list(zip(entered, left, strict=True))


def change(block: Any) -> None:
    for layer in block.layers:
        layer.write(layer.matrix() * (layer.matrix().abs() > 0.2))


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
def test_blocks_that_return_dicts_are_refused() -> None:
    class Named(Block):
        def forward(self, hidden: Tensor, *_: Any) -> dict[str, Tensor]:
            return {"hidden": super().forward(hidden)}

    def named(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
        for block in layers:
            hidden = block(hidden)["hidden"]
        return hidden

    module = Model(named, Named)
    model = prunable("toy", module, None, lambda module, batch, _: module(**batch).mean((1, 2)), Selection())
    with pytest.raises(UserError, match=r"a block returned a dict, .* change what its forward returns"):
        Flow(model, model.towers[1], batches("in all"))


@torch.no_grad()
def test_a_batch_that_leaves_blocks_out_is_refused() -> None:
    model = model_of("side_by_side")
    flow = Flow(model, model.towers[1], batches("not in the last"))
    with pytest.raises(
        UserError, match=r"batch 3 of 3 calls layers\.1 0 times and the first block of tower language 1 times"
    ):
        flow.enter(1)


@torch.no_grad()
def test_blocks_of_which_some_are_called_more_often_are_refused() -> None:
    def first_twice(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
        return plainly(layers, layers[0](hidden), states)

    model = built(first_twice, Block)
    with pytest.raises(UserError, match=r"tower language \(layers\) are called 1 to 2 times per batch"):
        Flow(model, model.towers[1], batches("in all"))


@torch.no_grad()
def test_a_batch_that_leaves_out_replayed_blocks_is_refused() -> None:
    def first_alone(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
        return layers[0](hidden) if len(states) == 1 else plainly(layers, hidden, states)

    model = built(first_alone, Block)
    with pytest.raises(
        UserError, match=r"batch 3 of 3 calls layers\.1 0 times and the first block of tower language 1 times"
    ):
        Flow(model, model.towers[1], batches("not in the last"))


@torch.no_grad()
def test_a_batch_that_runs_a_tower_more_often_is_refused() -> None:
    model, given = model_of("given_end"), batches("in all")
    given[2]["image"][2] = 9

    def loss(module: Any, batch: Batch, _: int) -> Tensor:
        if (batch["image"] == 9).any():
            module.see(batch["image"])
        return module(**batch).mean(dim=(1, 2))

    carried = flows(replace(model, loss_function=loss), model.towers, given)
    vision = next(carried)
    for index in range(len(vision.tower.blocks)):
        vision.leave(index)
    with pytest.raises(UserError, match=r"a batch runs tower vision \(vision\) more than 1 times"):
        next(carried)


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
@pytest.mark.parametrize(
    ("lengths", "bare", "runs_twice"),
    [
        ((5, 5, 5), 1, lambda batch: "image" not in batch),
        ((5, 3, 5), None, lambda batch: batch["hidden"].shape[1] == 3),
        ((5, 5, 3), 1, lambda batch: batch["hidden"].shape[1] == 3),
        ((3, 4, 5), None, lambda batch: batch["hidden"].shape[1] == 5),
    ],
    ids=["other inputs", "another length", "another length beside other inputs", "the longest"],
)
def test_a_kind_of_batch_that_runs_the_tower_more_often_is_refused(
    lengths: tuple[int, ...], bare: int | None, runs_twice: Callable[[Batch], bool]
) -> None:
    model = model_of("given_end")
    given = [
        {name: tensor[:, :length] for name, tensor in batch.items()}
        for batch, length in zip(batches("in all"), lengths, strict=True)
    ]
    if bare is not None:
        del given[bare]["image"]

    def loss(module: Any, batch: Batch, _: int) -> Tensor:
        hidden, image = batch["hidden"], batch.get("image", batch["hidden"])
        for _ in range(2 if runs_twice(batch) else 1):
            hidden = module(hidden, image)
        return hidden.mean(dim=(1, 2))

    with pytest.raises(
        UserError, match=r"one batch runs tower language \(layers\) 1 times and another 2 times; calibrate on"
    ):
        Flow(replace(model, loss_function=loss), model.towers[1], given)


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
