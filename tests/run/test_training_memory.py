"""What the plan says of the memory of a training is what it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.models import llama, tokens
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.finetune.full import Full
from ecoflap.finetune.job import Job, Training
from ecoflap.finetune.lora import Lora
from ecoflap.finetune.protocol import Finetuner
from ecoflap.finetune.reconstruct import Reconstruct
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.offload.placement import Placement
from ecoflap.prune.driver import prune
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.upop import UPop
from ecoflap.run.steps.memory import memory_needs, weights_in_use
from ecoflap.run.steps.memory_table import what_helps
from ecoflap.run.steps.sample_cost import sample_cost
from ecoflap.run.steps.workload import Need, Workload
from tests import tiny
from tests.run.test_memory import alive

pytestmark = pytest.mark.long

SAMPLES, BATCH, LENGTH, SPARSITY = 8, 4, 64, 0.5


def work(finetuner: Finetuner) -> Workload:
    return Workload(Magnitude(), SAMPLES, BATCH, steps=(), finetuner=finetuner, sparsity=SPARSITY)


def needed(model: PrunableModel, finetuner: Finetuner, length: int = LENGTH) -> Need:
    cost = sample_cost(model, tokens(SAMPLES, length, 256), stores=True)
    (need,) = memory_needs(model, cost, work(finetuner))
    return need


def taken(model: PrunableModel, finetuner: Finetuner, folder: Path, length: int = LENGTH) -> int:
    allocation = WaterFilling()(model, None, SPARSITY)
    masks = prune(model, None, Magnitude(), allocation, BATCH).masks
    data, dense = tokens(SAMPLES, length, 256), llama(128, 4)
    job = Job(model, masks, lambda _: data, data, lambda: dense, BATCH, 0, folder)
    return alive(lambda: finetuner.finetune(job))


@pytest.mark.parametrize("length", [16, 256])
@pytest.mark.parametrize(
    "finetuner",
    [
        Full(batch_size=BATCH, steps=2),
        Full(batch_size=BATCH, steps=2, recompute=True),
        Lora(batch_size=BATCH, steps=2),
        Reconstruct(epochs=1),
    ],
    ids=["full", "recompute", "lora", "reconstruct"],
)
@pytest.mark.every_run("256")
def test_training(finetuner: Finetuner, length: int, tmp_path: Path) -> None:
    model = llama(128, 4)
    need = needed(model, finetuner, length)
    loaded = weights_in_use(model) * (2 if isinstance(finetuner, Reconstruct) else 1)
    found = taken(model, finetuner, tmp_path, length)
    assert found / 1.5 < need.total - loaded < 1.5 * found


@pytest.mark.parametrize("devices", [2, 64])
def test_sharded_weights_are_shared_out_but_the_model_fits_whole(devices: int) -> None:
    model, cost = llama(128, 4), sample_cost(llama(128, 4), tokens(SAMPLES, LENGTH, 256), stores=True)
    whole, part = (
        memory_needs(model, cost, replace(work(Full(shard=shard)), devices=devices))[0]
        for shard in (False, True)
    )
    assert part.weights == max(whole.weights // devices, weights_in_use(model))
    assert whole.work == part.work


def test_every_process_reconstructs_from_all_samples() -> None:
    model, cost = llama(128, 4), sample_cost(llama(128, 4), tokens(SAMPLES, LENGTH, 256))
    one, four = (
        memory_needs(model, cost, replace(work(Reconstruct()), devices=devices))[0] for devices in (1, 4)
    )
    assert one.states == 2 * SAMPLES * cost.states, "of the dense and of the pruned model"
    assert four == one


def test_half_precision_is_trained_in_fp32() -> None:
    half = llama(128, 4)
    half.module.bfloat16()
    whole, found = needed(llama(128, 4), Full(precision="float32")), needed(half, Full(precision="float32"))
    assert found.weights == whole.weights
    assert whole.work <= found.work < 1.2 * whole.work, "logits are in fp32 anyway"
    assert needed(half, Full(precision="bfloat16")).work == found.work // 2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("batch", [1, 8])
def test_a_search_trains_all_weights_where_the_model_is(device: str, batch: int) -> None:
    model, data = tiny.build("blip_vqa"), tiny.samples("blip_vqa", (6,) * SAMPLES)
    cost, placement = sample_cost(model, data, stores=True), Placement()
    placement.device = torch.device(device)
    pruner = UPop(steps=2, interval=2, batch_size=batch)
    (need,) = memory_needs(replace(model, placement=placement), cost, Workload(pruner, 1, 1))
    weights = weights_in_use(model)
    assert need.weights == weights
    found = alive(lambda: pruner.prune(model, data, 0.3)) - weights  # new ones in the place of old ones
    assert found / 1.5 < need.total - need.weights < 1.5 * found


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_is_counted(family: str) -> None:
    model = tiny.build(family)
    gradients = [parameter.requires_grad for parameter in model.module.parameters()]
    cost = sample_cost(model, tiny.samples(family), stores=True)
    assert cost.training > cost.forward
    assert [parameter.requires_grad for parameter in model.module.parameters()] == gradients


@pytest.mark.parametrize(
    ("finetuner", "batch", "option"),
    [
        (Full(batch_size=1), BATCH, "use finetune=lora, or finetune.shard=true in several processes"),
        (Full(batch_size=1, shard=True), BATCH, "use finetune=lora"),
        (Lora(batch_size=1), BATCH, "use finetune.shard=true in several processes"),
        (Reconstruct(), BATCH, "use finetune=lora"),
        (Full(batch_size=64), BATCH, "use a smaller finetune.batch_size, or finetune.recompute=true"),
        (Full(batch_size=64, recompute=True), BATCH, "use a smaller finetune.batch_size"),
        (Reconstruct(), SAMPLES * 16, "use a smaller batch_size"),
    ],
)
def test_what_helps(finetuner: Finetuner, batch: int, option: str) -> None:
    model = llama(128, 4)
    cost = sample_cost(model, tokens(SAMPLES, LENGTH, 256), stores=True)
    samples = max(SAMPLES, batch)
    (need,) = memory_needs(model, cost, replace(work(finetuner), batch_size=batch, samples=samples))
    assert what_helps(replace(need, together=True), "none") == option


def test_a_finetuner_of_ones_own_says_nothing_of_its_memory() -> None:
    class Own(Finetuner):
        name = "own"

        def finetune(self, job: Job) -> Training:
            raise NotImplementedError

    cost = sample_cost(llama(128, 4), tokens(SAMPLES, LENGTH, 256), stores=True)
    assert memory_needs(llama(128, 4), cost, work(Own())) == []
