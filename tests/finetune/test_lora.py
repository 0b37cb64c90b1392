"""LoRA under the mask: what is trained is what is merged, and the rest of the model stays as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.finetune.job import Job
from ecoflap.finetune.lora import Lora, LowRankUpdate
from ecoflap.models.core.layers import by_parameter
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language import causal_lm
from ecoflap.models.loading.loader import prunable
from ecoflap.prune.driver import prune
from ecoflap.prune.magnitude import Magnitude
from tests import tiny
from tests.finetune.test_masked_parameters import pruned
from tests.tiny import FAMILIES, samples
from tests.zoo.architectures import ARCHITECTURES


def job(family: str, folder: Path) -> Job:
    model, masks = pruned(family)
    return Job(model, masks, None, samples(family), lambda: model, 2, 0, folder)


def train(model: PrunableModel, data: CalibrationSet, folder: Path) -> dict[str, torch.Tensor]:
    """Train what magnitude pruning keeps of half of each layer; the masks."""
    masks = prune(model, None, Magnitude(), WaterFilling()(model, None, 0.5), batch_size=2).masks
    LORA.finetune(Job(model, masks, None, data, lambda: model, 2, 0, folder))
    return masks


LORA = Lora(data="calibration", epochs=4, batch_size=3, learning_rate=0.02, rank=2, log_every=1)


@pytest.mark.parametrize(
    "family", [family for family in ("llama", "gpt2", "t5", "blip_vqa") if family in FAMILIES]
)
def test_the_loss_falls_and_only_kept_weights_change(family: str, tmp_path: Path) -> None:
    task = job(family, tmp_path)
    names, before = (
        list(task.model.module.state_dict()),
        {name: value.clone() for name, value in task.model.module.state_dict().items()},
    )
    batch = task.calibration.take(1).batches(1)[0] if task.calibration else {}
    with torch.no_grad():
        loss = float(task.model.loss(batch).mean())
    training = LORA.finetune(task)
    assert list(task.model.module.state_dict()) == names
    assert all(parameter.requires_grad for parameter in task.model.module.parameters())
    layers = {layer.name: layer for layer in task.model.layers}
    assert training.trained == sum(2 * sum(layer.shape) for layer in layers.values())
    changed = {
        name for name, value in task.model.module.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed <= layers.keys()
    assert changed
    for name, layer in layers.items():
        assert not layer.weight[~task.masks[name]].any()
    assert float(task.model.loss(batch).mean()) < loss
    assert len(training.curve) > 4


def test_the_merged_model_is_the_trained_one(tmp_path: Path) -> None:
    task = job("llama", tmp_path)
    assert isinstance(task.calibration, CalibrationSet)
    batch = task.calibration.batches(4)[0]
    with LORA.trainable(task), torch.no_grad():
        for name, parameter in task.model.module.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
        trained = task.model.loss(batch)
    torch.testing.assert_close(task.model.loss(batch), trained)


def test_a_failed_training_leaves_the_pruned_model(tmp_path: Path) -> None:
    task = job("llama", tmp_path)
    fingerprint, attributes = task.model.fingerprint(), set(vars(task.model.module))
    with pytest.raises(RuntimeError), LORA.trainable(task):
        raise RuntimeError
    assert task.model.fingerprint() == fingerprint
    assert set(vars(task.model.module)) == attributes


def test_updates_begin_as_published(tmp_path: Path) -> None:
    """A is drawn by the seed as a linear layer's weight is, B is zero, and their product counts alpha / r."""
    drawn = []
    for seed in (0, 0, 1):
        task = replace(job("llama", tmp_path), seed=seed)
        with replace(LORA, rank=4, alpha=6).trainable(task):
            updates = [one for one in task.model.module.modules() if isinstance(one, LowRankUpdate)]
            for update in updates:
                assert update.scale == 1.5
                assert not update.up.any()
                bound = update.down.shape[2] ** -0.5
                assert 0.9 * bound < float(update.down.detach().abs().max()) <= bound
            drawn.append(torch.cat([update.down.detach().flatten() for update in updates]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("shared", ["up_proj", "up_proj.weight"])
def test_a_weight_in_two_places_has_one_update(shared: str, tmp_path: Path) -> None:
    module: Any = tiny.build("llama").module
    first, second = module.model.layers[0].mlp, module.model.layers[1].mlp
    if shared == "up_proj":
        second.up_proj = first.up_proj
    else:
        second.up_proj.weight = first.up_proj.weight
    model = prunable("shared", module, None, causal_lm.language_loss, Selection())
    before = first.up_proj.weight.detach().clone()
    train(model, samples("llama"), tmp_path)
    assert second.up_proj.weight is first.up_proj.weight
    assert not torch.equal(first.up_proj.weight, before)


@pytest.mark.skipif("open_clip" not in FAMILIES, reason="no open_clip")
def test_packed_projections_are_trained(tmp_path: Path) -> None:
    model = tiny.build("open_clip")
    before = {layer.name: layer.matrix().clone() for layer in model.layers}
    train(model, samples("open_clip"), tmp_path)
    changed = [layer.name for layer in model.layers if not torch.equal(layer.matrix(), before[layer.name])]
    assert any(name.endswith("in_proj_weight") for name in changed)


@pytest.mark.parametrize("name", ["beam", "deepseek_v3", "mamba"])
def test_every_layer_is_trained(name: str, tmp_path: Path) -> None:
    """Experts and those beside them, and what kernels of Mamba read without its module."""
    if (reason := ARCHITECTURES[name].missing()) is not None:
        pytest.skip(reason)
    model = ARCHITECTURES[name].prunable()
    before = {layer.name: layer.matrix().clone() for layer in model.layers}
    others = {
        key: value.detach().clone()
        for key, value in model.module.named_parameters()
        if key not in {layer.parameter_name for layer in model.layers}
    }
    masks = train(model, ARCHITECTURES[name].samples(), tmp_path)
    assert not [layer.name for layer in model.layers if torch.equal(layer.matrix(), before[layer.name])]
    assert not [layer.name for layer in model.layers if layer.weight[~masks[layer.name]].any()]
    assert all(torch.equal(value, model.module.get_parameter(key)) for key, value in others.items())


@pytest.mark.parametrize(("name", "every"), [("mixtral", True), ("mixtral", False), ("gpt2", True)])
def test_the_updates_of_a_parameter_are_those_of_its_layers(name: str, every: bool) -> None:
    model, draw = ARCHITECTURES[name].prunable(), torch.Generator().manual_seed(0)
    for _, parts in by_parameter(model.layers):
        some = parts if every else parts[1::2] or parts
        rows, cols = some[0].shape
        down, up = (
            nn.Parameter(torch.randn(len(some), *shape, generator=draw)) for shape in ((2, cols), (rows, 2))
        )
        weight = some[0].parameter.detach()
        mask = torch.rand(weight.shape, generator=draw) > 0.5
        expected = weight.clone()
        for layer, a, b in zip(some, down.detach(), up.detach(), strict=True):
            part = layer.part(expected)
            part += layer.part(mask) * layer.oriented(3.0 * b @ a)
        found = LowRankUpdate(some, mask, down, up, 3.0)(weight)
        torch.testing.assert_close(found.detach(), expected)


def test_an_update_is_that_of_peft() -> None:
    model = tiny.build("llama")
    layer = model.layers[0]
    weight, shape = layer.weight.detach().clone(), layer.shape
    config = LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=["q_proj"])
    inject_adapter_in_model(config, model.module)
    peft: Any = model.module.get_submodule(layer.name.removesuffix(".weight"))
    with torch.no_grad():
        peft.lora_B["default"].weight.normal_()
    factors = (nn.Parameter(one["default"].weight[None].detach()) for one in (peft.lora_A, peft.lora_B))
    scale = LORA.alpha / LORA.rank
    ours = LowRankUpdate([layer], torch.ones(shape, dtype=torch.bool), *factors, scale)
    torch.testing.assert_close(ours(weight), weight + peft.get_delta_weight("default"))
