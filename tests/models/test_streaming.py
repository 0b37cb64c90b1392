"""Blocks that are read and written in the background: in time, in order, and with their errors."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ecoflap.blocks.loss_batches import loss_batches
from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import NumericalError, UserError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block, Selection
from ecoflap.models.families.language.causal_lm import CausalLM
from ecoflap.models.offload import shards, weight_memory
from ecoflap.models.offload.ahead import Order
from ecoflap.models.offload.in_memory import InMemory, OnCpu
from ecoflap.models.offload.load import load_offloaded
from ecoflap.models.offload.placement import block_bytes, bytes_outside, is_placeholder, own_parameters
from ecoflap.models.offload.shards import Shards
from ecoflap.run.steps.sample_cost import sample_cost
from tests.cli.conftest import tiny_llama  # noqa: F401 - a fixture
from tests.models.deep import BATCH, BLOCKS, TOKENS, deepened, offloaded

pytestmark = pytest.mark.any_release  # old ones lack LlamaConfig

LAYER = "model.layers.3.mlp.up_proj.weight"
SOON = 30  # seconds


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    return deepened(tiny_llama, tmp_path / "model")


def losses(model: PrunableModel) -> Tensor:
    with quiet_forward(model.module), torch.no_grad():
        return model.loss(BATCH)


def loaded(model: PrunableModel) -> list[int]:
    """The blocks whose weights are in place."""
    return [number for number, block in enumerate(model.blocks) if not is_placeholder(block.layers[0].weight)]


def test_the_next_block_is_read_while_one_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that runs waits here until the next one has been read."""
    model, read = offloaded(folder, "disk", tmp_path), {number: threading.Event() for number in range(BLOCKS)}

    def noting(self: Shards, name: str, dtype: torch.dtype, own: Any = Shards.read) -> Tensor:
        found: Tensor = own(self, name, dtype)
        if "mlp.down_proj" in name:
            read[int(name.split(".")[2])].set()
        return found

    def wait(following: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            assert read[following].wait(SOON), "nothing is read while a block runs"
            assert len(loaded(model)) == 1, "and the block before has left"

        return hook

    monkeypatch.setattr(Shards, "read", noting)
    for number, block in enumerate(model.blocks[:-1]):
        block.layers[0].module.register_forward_pre_hook(wait(number + 1))
    losses(model)


def test_what_was_read_is_gone_before_the_next_block_is_saved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the saved form is a copy, as of stacked experts."""
    model, read = offloaded(folder, "disk", tmp_path), dict[str, weakref.ref[Tensor]]()

    def noting(self: Shards, name: str, dtype: torch.dtype, own: Any = Shards.read) -> Tensor:
        others = (tensor for other, tensor in read.items() if other.split(".")[2] != name.split(".")[2])
        assert all(tensor() is None for tensor in others)
        found: Tensor = own(self, name, dtype)
        read[name] = weakref.ref(found)
        return found

    def copied(_: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in tensors.items()}

    monkeypatch.setattr(shards, "saved_form", copied)
    monkeypatch.setattr(Shards, "read", noting)
    (tmp_path / "saved").mkdir()
    model.placement.save(replace(model, processor=SimpleNamespace(save_pretrained=str)), tmp_path / "saved")
    assert {name.split(".")[2] for name in read} == {str(number) for number in range(BLOCKS)}


def test_a_weight_tied_inside_a_block_stays_in_memory(tmp_path: Path) -> None:
    """A state dict has it under both names, and the block's file under one."""
    module = nn.Module()
    module.blocks = nn.ModuleList(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))) for _ in range(2))
    for one in module.blocks:
        one[2].weight = one[0].weight
    blocks = [Block(f"blocks.{number}", one, ()) for number, one in enumerate(module.blocks)]
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    offloaded = own_parameters(module, blocks)
    source = InMemory({name: one.data for mine in offloaded.values() for name, one in mine.items()})
    placement = OnCpu(module, blocks, source, torch.device("cpu"), tmp_path, True)
    for block in blocks:
        with placement.using(block):
            pass
    for name, _, parts in placement.tensors(module):
        assert torch.equal(torch.cat([part.flatten() for part in parts]), before[name].flatten()), name


@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_the_same_losses_with_and_without(folder: Path, tmp_path: Path, kind: str) -> None:
    ahead, behind = (offloaded(folder, kind, tmp_path / str(number)) for number in range(2))
    behind.placement.reads_ahead = False
    plain = offloaded(folder, "none", tmp_path)
    for model in (ahead, behind, plain):
        with model.placement.using(model.blocks[1]):
            model.blocks[1].layers[0].weight.data.mul_(0.5)
            model.placement.changed(model.blocks[1])
    for _ in range(2):
        assert torch.equal(losses(ahead), losses(plain))
        assert torch.equal(losses(behind), losses(plain))
    assert ahead.fingerprint() == behind.fingerprint() == plain.fingerprint()


def test_an_error_of_the_reader_stops_the_run_at_its_block(folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if LAYER in tensors:
            tensors[LAYER][0, 0] = float("nan")
            save_file(tensors, file, metadata={"format": "pt"})
    model = offloaded(folder, "disk", tmp_path / "work")
    with model.placement.using(model.blocks[2]):
        pass  # the next one is on its way, and nobody has asked for it
    with model.placement.using(model.blocks[0]):
        pass
    with pytest.raises(NumericalError, match="holds NaN") as caught:
        losses(model)
    assert LAYER in str(caught.value)


def test_an_error_of_the_writer_stops_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise UserError("no space left")

    model = offloaded(folder, "disk", tmp_path / "work")
    monkeypatch.setattr(Shards, "write", full)
    with model.placement.using(model.blocks[0]):
        model.placement.changed(model.blocks[0])
    with pytest.raises(UserError, match="no space left"):
        losses(model)


def _killed_while_it_writes(folder: Path, work: Path) -> None:
    torch.set_num_threads(1)

    def half(
        path: Path, shapes: Mapping[str, Tensor], parts: Callable[[str], Iterable[Tensor]], own: Any = None
    ) -> None:
        def dying(name: str) -> Iterable[Tensor]:
            if name != next(iter(shapes)):
                os.kill(os.getpid(), signal.SIGKILL)
            return parts(name)

        write(path, shapes, dying)

    write, shards.write_in_parts = shards.write_in_parts, half
    model = offloaded(folder, "disk", work)
    for block in model.blocks:
        with model.placement.using(block):
            model.placement.changed(block)


def test_a_killed_run_leaves_no_file_that_looks_whole(folder: Path, tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=_killed_while_it_writes, args=(folder, tmp_path / "work")
    )
    process.start()
    process.join(SOON)
    assert process.exitcode == -signal.SIGKILL
    assert [file.suffix for file in (tmp_path / "work").iterdir()] == [".partial"]


@pytest.mark.parametrize(("blocks", "ahead"), [(2.0, True), (1.9, False), (1.0, False), (0.9, None)])
@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_nothing_is_loaded_ahead_without_room(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    blocks: float,
    ahead: bool | None,
) -> None:
    plain = offloaded(folder, "none", tmp_path)
    room = bytes_outside(plain.module, plain.blocks) + blocks * max(block_bytes(plain.blocks))
    monkeypatch.setattr(weight_memory, "free_memory", lambda _: int(room))
    if ahead is None:
        with pytest.raises(UserError, match="still needs"):
            offloaded(folder, kind, tmp_path)
    else:
        model = offloaded(folder, kind, tmp_path)
        assert model.placement.reads_ahead == ahead
        assert torch.equal(losses(model), losses(plain))
        assert loaded(model) == [BLOCKS - 1]


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_blocks_on_their_way_are_no_activations(folder: Path, tmp_path: Path, kind: str, ahead: bool) -> None:
    model, plain = offloaded(folder, kind, tmp_path), offloaded(folder, "none", tmp_path)
    model.placement.reads_ahead = ahead
    samples = CalibrationSet("tokens", ({"input_ids": TOKENS[0], "attention_mask": torch.ones(5).long()},))
    assert sample_cost(model, samples) == sample_cost(plain, samples)


def guesses(order: Order, uses: str) -> str:
    found = ""
    for name in uses:
        order.use(name)
        found += order.next()
    return found


def test_the_order_is_learned_from_the_pass_before() -> None:
    order = Order("abcd")
    assert guesses(order, "abcd") == "bcda"
    assert guesses(order, "aabbccdd") == "bbccddaa", "each is used again and again"
    order = Order("abcd")
    there_and_back = "abcdcba"
    guesses(order, there_and_back)
    assert guesses(order, there_and_back[1:] * 2) == "cdcbab" * 2
    order = Order("abcdef")  # vision blocks behind the language model's, in the model's order
    guesses(order, "efabcd")
    assert guesses(order, "efabcd") == "fabcde"


@pytest.mark.parametrize("kind", ["none", "cpu", "disk"])
def test_padding_is_tried_in_fp32_wherever_blocks_are(kind: str, tiny_llama: Path, tmp_path: Path) -> None:
    loader = CausalLM(path=str(tiny_llama), dtype="bfloat16")
    model = load_offloaded(loader, torch.device("cpu"), Selection(), kind, tmp_path)
    dtypes = set()

    def loss(module: Any, batch: Batch, copies: int = 1) -> Tensor:
        logits = module(**batch).logits
        dtypes.add(logits.dtype)
        return logits[:, 0, 0]

    rows = [{"input_ids": TOKENS[0, :length]} for length in (3, 5)]
    before = model.fingerprint()
    [batch] = loss_batches(replace(model, loss_function=loss), CalibrationSet("rows", tuple(rows)), 2)
    assert batch["input_ids"].shape == (2, 5)
    assert dtypes == {torch.float32}
    assert model.fingerprint() == before
