"""``propagate=compensated``: weights undo a part of what pruned layers before have done, then are pruned."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ecoflap.blocks import layer_by_layer
from ecoflap.blocks.drifts import GroupDrift
from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block, Selection
from ecoflap.models.loading.loader import prunable
from ecoflap.ops import compensate
from ecoflap.prune.admm import ADMM
from ecoflap.prune.driver import prune
from ecoflap.prune.finished_blocks import FinishedBlocks
from ecoflap.prune.inputs import check_propagate
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.protocol import LayerPruner
from ecoflap.prune.report import BlockReport
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from tests import experts, handing, tiny, unchained
from tests.stack import stack

from . import reference
from .test_families import EVERY_TOWER, PRUNERS, assert_batch_size_changes_nothing, uneven, uniform
from .test_layer_by_layer import CALLED_ONCE, assert_equal

Writers = dict[str, str | None]


def test_an_input_of_zeros_compensates_nothing() -> None:
    weight = torch.randn(3, 4)
    (found,) = compensate([weight], torch.zeros(4, 4), torch.zeros(4, 4), [torch.ones(3, 4)])
    assert torch.equal(found, weight)
    assert found is not weight


@pytest.mark.parametrize("pruner", [ADMM(), SparseGPT()])
def test_a_layer_that_is_removed_leaves_zeros_to_the_next(pruner: LayerPruner) -> None:
    model = tiny.build("llama")
    allocation = uneven(model)
    name = next(name for name in allocation.keep if name.endswith("v_proj.weight"))
    allocation.keep[name] = 0
    prune(model, tiny.samples("llama"), pruner, allocation, 2, propagate="compensated")
    assert all(torch.isfinite(layer.weight).all() for layer in model.layers)


# {family: {end of a layer's name: the module of its block that reads the residual stream after the layer was
# added to it; None for the output of the block}}
LLAMA: Writers = {"self_attn.o_proj": "post_attention_layernorm", "mlp.down_proj": None}
CLIP: Writers = {"self_attn.out_proj": "layer_norm2", "mlp.fc2": None}
T5: Writers = {
    "0.SelfAttention.o": "layer.1",
    "1.EncDecAttention.o": "layer.2",
    "1.DenseReluDense.wo": None,
    "2.DenseReluDense.wo": None,
}
WRITERS: dict[str, Writers] = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "gpt2": {"attn.c_proj": "ln_2", "mlp.c_proj": None},
    "opt": {"self_attn.out_proj": "final_layer_norm", "fc2": None},
    "bart": {
        "self_attn.out_proj": "self_attn_layer_norm",
        "encoder_attn.out_proj": "encoder_attn_layer_norm",
        "fc2": "final_layer_norm",
    },
    "t5": T5,
    "clip": CLIP,
    "llava": CLIP | LLAMA,
}


def compensated(weight: Tensor, inputs: Tensor, dense_inputs: Tensor, stream: Tensor | None) -> Tensor:
    """Half of the step to the damped least squares solution, in fp64.

    Args:
        weight: [rows, cols].
        inputs: in the pruned model, [tokens, cols].
        dense_inputs: in the dense model, [tokens, cols].
        stream: what the dense residual stream has beyond the pruned one, [tokens, rows].
    """
    x, clean, weight = inputs.double(), dense_inputs.double(), weight.double()
    gram = x.t() @ x
    alive = gram.diagonal() > 0
    step = torch.zeros_like(weight)
    damped = gram + 0.1 * alive.double().mean() * torch.diag(gram.diagonal())
    missing = (clean - x) @ weight.t()  # of the output, [tokens, rows]
    if stream is not None:
        missing = missing + stream.double()
    wanted = (missing.t() @ x)[:, alive]
    step[:, alive] = torch.linalg.solve(damped[alive][:, alive], wanted.t()).t()
    return (weight + 0.5 * step).float()


def stream_before(
    model: PrunableModel,
    block: Block,
    layer: Layer,
    reader: str | None,
    calibration: CalibrationSet,
    batches: list[Batch],
) -> Tensor:
    """The residual stream before a layer is added to it, [tokens, rows]: what comes next, less the output."""
    outputs: list[Tensor] = []
    after: list[Tensor] = []

    def rows(tensor: Tensor) -> Tensor:
        return tensor.detach().reshape(-1, layer.shape[0]).clone()

    def wrote(_: nn.Module, __: Any, output: Tensor) -> None:
        outputs.append(rows(output))

    def read(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        after.append(rows(arguments[0]))

    def ended(_: nn.Module, __: Any, output: Any) -> None:
        after.append(rows(output if isinstance(output, Tensor) else output[0]))

    handles = [layer.module.register_forward_hook(wrote)]
    if reader is None:
        handles.append(block.module.register_forward_hook(ended))
    else:
        handles.append(block.module.get_submodule(reader).register_forward_pre_hook(read))
    reference.plain_passes(model, calibration, batches)
    for handle in handles:
        handle.remove()
    return torch.cat(after) - torch.cat(outputs)


@torch.no_grad()
def prune_by_hand(
    model: PrunableModel,
    twin: PrunableModel,
    calibration: CalibrationSet,
    prune_layer: reference.PruneLayer,
    keep: dict[str, int],
    batches: list[Batch],
    writers: Writers,
) -> dict[str, Tensor]:
    """Prune ``model`` layer by layer beside a ``twin`` whose present tower is dense; returns the masks."""
    masks: dict[str, Tensor] = {}
    for tower, dense_tower in zip(model.towers, twin.towers, strict=True):
        dense_layers = {layer.name: layer for layer in dense_tower.layers}
        for block, dense_block in zip(tower.blocks, dense_tower.blocks, strict=True):
            waiting = list(block.layers)
            while waiting:
                with reference.calls_of(block, waiting) as calls:
                    inputs = reference.inputs_of_each(model, waiting, calibration, batches)
                layer = reference.first_of(calls)
                assert layer is not None
                dense_layer, stream = dense_layers[layer.name], None
                ends = [end for end in writers if layer.name.endswith(f"{end}.weight")]
                if ends:
                    reader = writers[ends[0]]
                    stream = stream_before(twin, dense_block, dense_layer, reader, calibration, batches)
                    stream -= stream_before(model, block, layer, reader, calibration, batches)
                dense_inputs = reference.inputs_of(twin, dense_layer, calibration, batches)
                target = compensated(layer.matrix(), inputs[layer], dense_inputs, stream)
                weight, masks[layer.name] = prune_layer(target, inputs[layer], keep[layer.name])
                layer.write(weight)
                waiting.remove(layer)
        for layer in tower.layers:
            dense_layers[layer.name].write(layer.matrix())
    return {layer.name: masks[layer.name] for layer in model.layers}


@pytest.mark.parametrize("name", ["sparsegpt", "admm"])
@pytest.mark.parametrize("family", [family for family in WRITERS if family in CALLED_ONCE])
@pytest.mark.every_run("t5-admm", "llava-sparsegpt", "llama", "clip-admm", "gpt2")
def test_equals_full_forward_passes_of_both_models(family: str, name: str) -> None:
    pruner, by_hand = PRUNERS[name]
    calibration = tiny.samples(family, lengths=tiny.UNPADDED.get(family, (7, 9, 7)))
    model, other, twin = (tiny.build(family, towers=EVERY_TOWER[family]) for _ in range(3))
    allocation = uneven(model)
    report = prune(model, calibration, pruner, allocation, batch_size=2, propagate="compensated")
    batches, writers = tiny.one_by_one(family, calibration, 2), WRITERS[family]
    with quiet_forward(other.module), quiet_forward(twin.module):
        masks = prune_by_hand(other, twin, calibration, by_hand, allocation.keep, batches, writers)
    assert_equal(model, report, other, masks)


@pytest.mark.parametrize(
    ("family", "captured"),
    [
        ("gemma3n", [r"3 of 6 blocks of tower language \(model\.layers\), such as model\.layers\.3"]),
        ("qwen3_vl", [r"2 of 4 blocks of tower language .*, such as model\.language_model\.layers\.1"]),
        ("llava_of_two_depths", []),
    ],
)
def test_blocks_at_which_errors_are_not_known_are_named(
    family: str, captured: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = unchained.build(family, dense="audio|merger")
    prune(model, unchained.samples(family), SparseGPT(), uniform(model), 2, propagate="compensated")
    found = [message for message in caplog.messages if message.startswith("propagate=compensated")]
    assert len(found) == len(captured)
    assert all(re.search(pattern, message) for pattern, message in zip(captured, found, strict=True))


@pytest.mark.parametrize("family", [family for family in CALLED_ONCE if family not in tiny.MATCHING])
@pytest.mark.every_run("llama", "clip", "t5", "llava")
def test_batch_size_changes_nothing(family: str) -> None:
    assert_batch_size_changes_nothing(family, SparseGPT(), propagate="compensated")


def test_one_sample_and_a_target_of_nothing() -> None:
    calibration, model, dense = tiny.samples("llama", lengths=(5,)), tiny.build("llama"), tiny.build("llama")
    prune(model, calibration, ADMM(), uniform(model), 8, propagate="compensated")
    assert all(torch.isfinite(layer.weight).all() for layer in model.layers)
    first = model.layers[0].name
    # Nothing is pruned before the layers that read the embeddings, so they are as with propagate=layer.
    prune(dense, calibration, ADMM(), uniform(dense), 8, propagate="layer")
    same = {layer.name: layer.weight for layer in dense.layers}
    assert torch.equal(model.layers[0].weight, same[first])
    assert not torch.equal(model.layers[-1].weight, dense.layers[-1].weight)


@torch.no_grad()
def test_the_output_comes_closer_to_the_dense_model() -> None:
    """On the tokens that it is fitted to; docs/in_context_ablations.md has what it is worth on others."""
    calibration, dense = tiny.samples("llama", lengths=(16,) * 32), tiny.build("llama")
    last: Layer = dense.layers[-1]
    errors = {}
    with quiet_forward(dense.module):
        expected = reference.inputs_of(dense, last, calibration)
        for propagate in ("layer", "compensated"):
            model = tiny.build("llama")
            prune(model, calibration, ADMM(), uniform(model), 32, propagate=propagate)
            with quiet_forward(model.module):
                found = reference.inputs_of(model, model.layers[-1], calibration)
            errors[propagate] = float((found - expected).norm() / expected.norm())
    assert errors["compensated"] < errors["layer"]


@pytest.mark.parametrize("size", [2, 100])
def test_a_stopped_run_goes_on_to_the_same_weights(size: int, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(_: BlockReport, blocks: list[BlockReport] = []) -> None:  # noqa: B006
        blocks.append(_)
        if len(blocks) == 1:
            raise StopError

    calibration, models = tiny.samples("llama"), [tiny.build("llama") for _ in range(3)]
    finished = FinishedBlocks(tmp_path, "key")
    whole = prune(models[0], calibration, ADMM(), uniform(models[0]), size, propagate="compensated")
    with pytest.raises(StopError):
        prune(
            models[1], calibration, ADMM(), uniform(models[1]), size, stop, "compensated", finished=finished
        )
    resumed = prune(
        models[2],
        calibration,
        ADMM(),
        uniform(models[2]),
        size,
        propagate="compensated",
        finished=finished,
    )
    assert all(torch.equal(whole.masks[name], mask) for name, mask in resumed.masks.items())
    for layer, other in zip(models[0].layers, models[2].layers, strict=True):
        assert torch.equal(layer.weight, other.weight), layer.name


class Listed(nn.ModuleDict):
    """Mixtral's experts as modules, as releases before the fifth have them or as Switch Transformers does."""

    def __init__(self, experts: nn.Module, name: str) -> None:
        super().__init__()
        ends = ("gate_up_proj", "down_proj")
        for number, matrices in enumerate(zip(*(getattr(experts, end) for end in ends), strict=True)):
            expert = nn.ModuleDict()
            for end, matrix in zip(ends, matrices, strict=True):
                expert[end] = nn.Linear(*reversed(matrix.shape), bias=False)
                expert[end].weight = nn.Parameter(matrix.detach().clone())
            self[name.format(number)] = expert

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """[tokens, features] -> the same, through the experts of each token."""
        output = torch.zeros_like(hidden)
        for number, expert in enumerate(self.values()):
            tokens, place = (index == number).nonzero(as_tuple=True)
            gate, up = expert["gate_up_proj"](hidden[tokens]).chunk(2, dim=-1)
            found = expert["down_proj"](nn.functional.silu(gate) * up)
            output.index_add_(0, tokens, found * weights[tokens, place, None])
        return output


@pytest.mark.parametrize("name", ["{}", "expert_{}"])
def test_no_expert_is_compensated_in_either_layout(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dense model may route other tokens to it."""
    grouped, inner = experts.build("mixtral"), experts.build("mixtral").module
    for block in inner.get_submodule("model.layers").children():
        mlp: Any = block.get_submodule("mlp")
        mlp.experts = Listed(mlp.experts, name)
    listed = prunable("mixtral", inner, None, grouped.loss_function, Selection())
    compensated: list[str] = []

    class Noted(GroupDrift):
        def __init__(self, layers: Sequence[Layer], *rest: Any) -> None:
            super().__init__(layers, *rest)
            compensated.extend(layer.name for layer in layers)

    monkeypatch.setattr(layer_by_layer, "GroupDrift", Noted)
    for model in (grouped, listed):
        prune(model, experts.samples(7, 9, 7), ADMM(), uniform(model), 2, propagate="compensated")
    assert compensated
    assert not [one for one in compensated if ".experts." in one]
    found = {layer.name: layer.matrix() for layer in listed.layers}
    assert len(found) == len(grouped.layers)
    for layer in grouped.layers:
        head, is_expert, tail = layer.name.partition(".experts.")
        end, _, number = tail.partition(".")
        other = f"{head}.experts.{name.format(number)}.{end}.weight" if is_expert else layer.name
        torch.testing.assert_close(layer.matrix(), found[other], rtol=1e-3, atol=1e-4)


def test_layers_that_are_called_again_are_refused_as_by_layer() -> None:
    model = handing.build("ByDict", 2)
    with pytest.raises(UserError, match=r"calls .* several times"):
        prune(model, handing.samples((5, 7, 5)), ADMM(), uneven(model), 2, propagate="compensated")


@pytest.mark.parametrize("way", ["ByDict", "ByCache", "InPlace"])
def test_blocks_that_hand_each_other_more_than_hidden_states(way: str) -> None:
    """Where the model gives each block its inputs anew, the errors that are known are those of its layers."""
    models = [handing.build(way, 1) for _ in range(2)]
    for model, size in zip(models, (2, 100), strict=True):
        prune(model, handing.samples((5, 5, 5)), ADMM(), uneven(model), size, propagate="compensated")
    for layer, other in zip(*(model.layers for model in models), strict=True):
        torch.testing.assert_close(layer.weight, other.weight, rtol=1e-3, atol=1e-4)


class Doubling(nn.Module):
    """A block that doubles what its first layer has read."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        read = hidden.tanh()
        output = self.first(read)
        read = read.mul_(2) if self.in_place else read * 2
        return hidden + self.second(read + output).tanh()


@pytest.mark.any_release
def test_what_a_block_writes_into_an_input_later_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = tuple({"x": torch.randn(20, 8, generator=generator)} for _ in range(3))
    models = [stack(*[partial(Doubling, in_place)] * 2) for in_place in (False, True)]
    for model in models:
        prune(model, CalibrationSet("rows", rows), ADMM(), uniform(model), 2, propagate="compensated")
    for layer, other in zip(*(model.layers for model in models), strict=True):
        torch.testing.assert_close(layer.weight, other.weight)


@pytest.mark.parametrize("pruner", [Wanda(), Magnitude(), Wanda(refine="swaps")])
def test_pruners_that_change_no_weight_are_refused(pruner: LayerPruner) -> None:
    with pytest.raises(UserError, match="propagate=compensated changes the weights that stay"):
        check_propagate("compensated", pruner)


@pytest.mark.parametrize("pruner", [ADMM(), SparseGPT(), Wanda(repair=True)])
def test_pruners_that_correct_weights_are_taken(pruner: LayerPruner) -> None:
    check_propagate("compensated", pruner)
