"""LoRA under the mask: what is trained is what is merged, and the rest of the model stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraModel

from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError
from ecoflap.finetune.job import Job
from ecoflap.finetune.lora import ADAPTER, Lora
from ecoflap.prune.driver import prune
from ecoflap.prune.magnitude import Magnitude
from tests.finetune.test_masked_parameters import pruned
from tests.tiny import FAMILIES, samples
from tests.zoo.architectures import ARCHITECTURES


def job(family: str, folder: Path) -> Job:
    model, masks = pruned(family)
    return Job(model, masks, None, samples(family), lambda: model, 2, 0, folder)


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
            if f"lora_B.{ADAPTER}" in name:
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


@pytest.mark.parametrize("shared", ["up_proj", "up_proj.weight"])
def test_a_weight_in_two_places_is_refused(shared: str, tmp_path: Path) -> None:
    task = job("llama", tmp_path)
    module: Any = task.model.module
    first, second = module.model.layers[0].mlp, module.model.layers[1].mlp
    if shared == "up_proj":
        second.up_proj = first.up_proj
    else:
        second.up_proj.weight = first.up_proj.weight
    with pytest.raises(UserError, match=r"can't update .*0\.mlp\.up_proj\.weight, which no .* owns alone"):
        LORA.finetune(task)


def test_a_layer_that_peft_refuses_leaves_the_model_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """peft takes the layers one by one, and has replaced some when it refuses another."""
    task = job("llama", tmp_path)
    module, replace = task.model.module, LoraModel._create_and_replace

    def refusing(
        self: LoraModel, config: Any, adapter: str, target: Any, name: str, *more: Any, **keys: Any
    ) -> None:
        if name == "o_proj":
            raise ValueError(f"no update of {name}. Choose another")
        replace(self, config, adapter, target, name, *more, **keys)

    monkeypatch.setattr(LoraModel, "_create_and_replace", refusing)
    modules, attributes = list(module.modules()), set(vars(module))
    for attempt in (lambda: LORA.check_model(task.model), lambda: LORA.finetune(task)):
        with pytest.raises(
            UserError, match=r"a layer of Llama.*: peft says 'no update of o_proj'; .*skip_layers"
        ):
            attempt()
        assert list(module.modules()) == modules
        assert set(vars(module)) == attributes
        assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("name", ["mamba", "falcon_h1", "bamba"])
def test_a_weight_that_kernels_read_is_refused(name: str) -> None:
    """On GPUs these would train without the update."""
    if (reason := ARCHITECTURES[name].missing()) is not None:
        pytest.skip(reason)
    model = ARCHITECTURES[name].prunable()
    with pytest.raises(
        UserError, match=r"can't update \S+\.out_proj\.weight, which kernels of .* skip_layers$"
    ):
        LORA.check_model(model)


@pytest.mark.parametrize("name", ["beam", "deepseek_v3"])
def test_layers_beside_experts_are_trained(name: str, tmp_path: Path) -> None:
    """Some have the names that experts had before transformers merged them."""
    if (reason := ARCHITECTURES[name].missing()) is not None:
        pytest.skip(reason)
    model = ARCHITECTURES[name].prunable(skip_layers=() if name == "beam" else [r"\.experts\."])
    report = prune(model, None, Magnitude(), WaterFilling()(model, None, 0.5), batch_size=2)
    before = {layer.name: layer.matrix().clone() for layer in model.layers}
    data = ARCHITECTURES[name].samples()
    LORA.finetune(Job(model, report.masks, None, data, lambda: model, 2, 0, tmp_path))
    assert any(layer.name.endswith("gate_proj.weight") for layer in model.layers)
    assert not [layer.name for layer in model.layers if torch.equal(layer.matrix(), before[layer.name])]


def test_a_check_changes_neither_the_model_nor_what_is_drawn() -> None:
    model, _ = pruned("llama")
    modules, fingerprint, state = list(model.module.modules()), model.fingerprint(), torch.get_rng_state()
    LORA.check_model(model)
    assert list(model.module.modules()) == modules
    assert model.fingerprint() == fingerprint
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif("open_clip" not in FAMILIES, reason="no open_clip")
def test_packed_projections_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="in_proj_weight"):
        LORA.finetune(job("open_clip", tmp_path))
