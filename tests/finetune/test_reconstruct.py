"""Block-wise reconstruction: each block comes closer to the dense model's, whatever the family, and zeros
stay.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError
from ecoflap.finetune.job import Job
from ecoflap.finetune.reconstruct import Reconstruct
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.driver import prune
from ecoflap.prune.magnitude import Magnitude
from tests import tiny, unchained
from tests.finetune.test_masked_parameters import pruned
from tests.prune.test_driver import data, toy
from tests.prune.test_families import uniform
from tests.tiny import FAMILIES

SLOWLY = ["t5", "blip_vqa", "blip_retrieval", "clip", "llama", "gpt2", "vit"]


def job(family: str) -> Job:
    made = unchained if family in unchained.BUILDERS else tiny
    model, masks = pruned(family, made.build)
    return Job(model, masks, None, made.samples(family), lambda: made.build(family), 2, 0, Path())


def block_outputs(model: PrunableModel, block: nn.Module, calibration: CalibrationSet) -> torch.Tensor:
    """What a block puts out in a whole forward pass, over all batches, flattened."""
    outputs: list[torch.Tensor] = []

    def keep(_: nn.Module, __: object, output: object) -> None:
        outputs.append((output if isinstance(output, torch.Tensor) else output[0]).flatten())  # type: ignore[index]

    handle = block.register_forward_hook(keep)
    with torch.no_grad():
        for batch in calibration.batches(1):
            model.loss(batch)
    handle.remove()
    return torch.cat(outputs)


@pytest.mark.parametrize("family", [family for family in SLOWLY if family in FAMILIES])
def test_every_block_comes_closer_and_zeros_stay(family: str) -> None:
    task = job(family)
    training = Reconstruct(epochs=4, learning_rate=3e-3).finetune(task)
    assert len(training.curve) == sum(len(tower.blocks) for tower in task.model.towers if tower.layers)
    assert all(point["error"] <= point["error_before"] for point in training.curve)
    assert sum(point["error"] < point["error_before"] for point in training.curve) > len(training.curve) / 2
    for layer in task.model.layers:
        assert not layer.weight[~task.masks[layer.name]].any()
    assert all(parameter.requires_grad for parameter in task.model.module.parameters())


@pytest.mark.parametrize("family", ["llama", "qwen3_vl", "gemma3n"])
def test_the_errors_are_those_of_a_whole_forward_pass(family: str) -> None:
    task = job(family)
    dense, calibration = task.dense(), task.calibration
    training = Reconstruct(epochs=3, learning_rate=3e-3).finetune(task)
    blocks = [[block for tower in model.towers for block in tower.blocks] for model in (task.model, dense)]
    for point, ours, theirs in zip(training.curve, *blocks, strict=True):
        output, target = (
            block_outputs(task.model, ours.module, calibration),
            block_outputs(dense, theirs.module, calibration),
        )
        # The mean over batches of two lengths is not quite the mean over all tokens.
        assert float((output - target).square().sum() / target.square().sum()) == pytest.approx(
            point["error"], rel=0.1
        )


def train_by_hand(model: PrunableModel, masks: dict[str, Tensor], given: list[Tensor], rate: float) -> None:
    """Three epochs of Adam on the relative squared error, at a rate that falls as a half cosine to zero."""
    wanted, steps = given, 3 * len(given)
    for number, dense in enumerate(toy().module.blocks):
        block = model.module.blocks[number]
        wanted = [dense(one).detach() for one in wanted]
        optimizer = torch.optim.Adam(block.parameters())
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
            target = wanted[step % len(given)]
            loss = (block(given[step % len(given)]) - target).square().sum() / target.square().sum()
            optimizer.zero_grad()
            loss.backward()
            for name in ("up", "down"):
                getattr(block, name).weight.grad *= masks[f"blocks.{number}.{name}.weight"]
            optimizer.step()
        given = [block(one).detach() for one in given]


@pytest.mark.any_release
def test_blocks_are_trained_by_adam_at_a_rate_that_falls_along_a_cosine() -> None:
    models, calibration = (toy(), toy()), data()
    masks = [prune(model, None, Magnitude(), uniform(model), 1).masks for model in models]
    task = Job(models[0], masks[0], None, calibration, toy, 2, 0, Path())
    training = Reconstruct(epochs=3, learning_rate=1e-2).finetune(task)
    train_by_hand(models[1], dict(masks[1]), [batch["x"] for batch in calibration.batches(2)], 1e-2)
    for one, other in zip(*(model.module.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert all(point["error"] < point["error_before"] for point in training.curve)


@pytest.mark.any_release
def test_the_first_samples_alone_are_used() -> None:
    models = (toy(), toy())
    for model, drawn, samples in zip(models, (data(), data().take(2)), (2, None), strict=True):
        masks = prune(model, None, Magnitude(), uniform(model), 1).masks
        task = Job(model, masks, None, drawn, toy, 1, 0, Path())
        training = Reconstruct(samples=samples, epochs=1, learning_rate=1e-2).finetune(task)
        assert training.data["samples"] == 2
    for one, other in zip(*(model.module.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


def with_shared_norms(family: str) -> PrunableModel:
    model = tiny.build(family)
    first, second = model.module.model.layers  # type: ignore[union-attr, misc]
    second.input_layernorm, second.post_attention_layernorm = (
        first.input_layernorm,
        first.post_attention_layernorm,
    )
    return model


def test_what_blocks_share_stays_as_it_is() -> None:
    """As in Zamba: trained in the second block, a norm would change the first one as well."""
    model, masks = pruned("llama", with_shared_norms)
    dense, calibration = with_shared_norms("llama"), tiny.samples("llama", lengths=(5, 5, 5, 5))
    task = Job(model, masks, None, calibration, lambda: with_shared_norms("llama"), 4, 0, Path())
    curve = Reconstruct(epochs=3, learning_rate=3e-3).finetune(task).curve
    for point, ours, theirs in zip(curve, model.blocks, dense.blocks, strict=True):
        output, target = (
            block_outputs(one, block.module, calibration) for one, block in ((model, ours), (dense, theirs))
        )
        error = float((output - target).square().sum() / target.square().sum())
        assert error == pytest.approx(point["error"], rel=1e-4)
        assert point["error"] < point["error_before"]


def test_padding_counts_in_no_error() -> None:
    short = tiny.samples("clip", lengths=(7, 7, 7))
    padded = CalibrationSet("padded", tuple(tiny._padded(sample, 11) for sample in short.samples))
    found = []
    for calibration in (short, padded):
        model, masks = pruned("clip")
        task = Job(model, masks, None, calibration, lambda: tiny.build("clip"), 3, 0, Path())
        curve = Reconstruct(epochs=1, learning_rate=1e-9).finetune(task).curve
        found.append([point["error_before"] for point in curve])
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_steps_that_make_it_worse_are_undone() -> None:
    task = job("llama")
    fingerprint = task.model.fingerprint()
    training = Reconstruct(epochs=1, learning_rate=10.0).finetune(task)
    assert task.model.fingerprint() == fingerprint
    assert all(point["error"] == point["error_before"] for point in training.curve)


def test_it_needs_calibration_samples() -> None:
    model, masks = pruned("llama")
    with pytest.raises(UserError, match="calibrate"):
        Reconstruct().finetune(Job(model, masks, None, None, lambda: model, 2, 0, Path()))
