"""``ecoflap.save`` in each form, and ``ecoflap.load_pruned`` of it: the same model, to the bit."""

from __future__ import annotations

import json
import os
import threading
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import load_file, save_file
from torch import nn

import ecoflap
from ecoflap.errors import UserError
from ecoflap.models.core.units import cut_all, find_units
from ecoflap.storage.bitmask.convert import convert
from ecoflap.storage.bitmask.reader import BitmaskCheckpoint
from ecoflap.storage.masks import load_masks
from ecoflap.storage.results import Result, verify
from ecoflap.storage.saved_model import open_checkpoint
from tests import tiny
from tests.api.conftest import Given, llama, llava
from tests.experts import build
from tests.storage.bitmask.by_hand import pruned, same

SPARSE = ("bitmask", "coded")


def check_same(one: nn.Module, other: nn.Module) -> None:
    mine, others = one.state_dict(), other.state_dict()
    assert list(mine) == list(others)
    assert all(same(mine[name], others[name]) for name in mine)


def tied_llama(dtype: torch.dtype) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    config = hf.LlamaConfig(**{**tiny.LLAMA, "pad_token_id": 3}, tie_word_embeddings=True)
    module = hf.LlamaForCausalLM(config).to(dtype)
    for name, weight in module.named_parameters():
        if "proj" in name:
            weight.data = pruned(tuple(weight.shape), 0.4, torch.int16).to(dtype)
            weight.data[1, 1] = -0.0
    return module


@pytest.mark.parametrize("form", ["dense", *SPARSE])
def test_a_result_is_saved_and_loaded(given: Given, form: str, tmp_path: Path) -> None:
    result = ecoflap.prune(given.module, given.processor, data=given.data, sparsity=0.6, score="none")
    ecoflap.save(result, tmp_path / "out", form=form)
    loaded = ecoflap.load_pruned(tmp_path / "out", device="cpu")
    assert type(loaded) is type(given.module)
    assert not loaded.training
    check_same(loaded, given.module)
    assert verify(tmp_path / "out") == []
    for weight in loaded.parameters():  # those of a mapped file lie otherwise, which can change rounding
        weight.data = weight.data.clone()
    with torch.no_grad():
        one, other = (model(**given.inputs()) for model in (loaded, given.module))
    assert torch.equal(one[0], other[0])


def test_every_safetensors_file_of_a_saved_model_holds_weights(given: Given, tmp_path: Path) -> None:
    """vLLM, SGLang and TGI take all of them for weights, where there is no index."""
    result = ecoflap.prune(given.module, given.processor, data=given.data, sparsity=0.6, score="none")
    ecoflap.save(result, tmp_path)
    loaded = [item for file in sorted(tmp_path.glob("*.safetensors")) for item in load_file(file).items()]
    tensors = dict(loaded)
    assert len(tensors) == len(loaded)
    with open_checkpoint(tmp_path) as checkpoint:
        assert sorted(tensors) == checkpoint.names()
        assert all(same(tensor, checkpoint.read(name)) for name, tensor in tensors.items())
    assert load_masks(tmp_path, loaded=True).keys() == result.masks.keys()


@pytest.mark.parametrize("form", SPARSE)
def test_an_unfinished_checkpoint_says_that_it_is_one(form: str, tmp_path: Path) -> None:
    ecoflap.save(ecoflap.load(tied_llama(torch.float32), llama().processor), tmp_path, form=form)
    (tmp_path / "bitmask.index.json").unlink()
    for into in (None, tied_llama(torch.float32)):
        with pytest.raises(ecoflap.UserError, match="was not finished"):
            ecoflap.load_pruned(tmp_path, into, device="cpu")


@pytest.mark.parametrize("form", ["dense", *SPARSE])
def test_a_model_of_several_dtypes_is_loaded_to_the_bit(form: str, tmp_path: Path) -> None:
    """Transformers casts all weights to the config's dtype as it loads them."""
    module = tied_llama(torch.bfloat16)
    module.model.norm.weight.data = 1 + torch.randn(module.config.hidden_size) / 3
    up = module.model.layers[1].mlp.up_proj.weight
    up.data = torch.randn(up.shape).half()
    ecoflap.save(ecoflap.load(module, llama().processor), tmp_path / "out", form=form)
    loaded = ecoflap.load_pruned(tmp_path / "out", device="cpu")
    check_same(loaded, module)
    assert loaded.model.norm.weight.dtype == torch.float32
    assert loaded.model.layers[1].mlp.up_proj.weight.dtype == torch.float16
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_a_dtype_that_is_not_known_is_named(tmp_path: Path) -> None:
    module = tied_llama(torch.float32)
    module.save_pretrained(tmp_path)
    file, angles = tmp_path / "model.safetensors", torch.ones(3, dtype=torch.complex64)
    try:
        save_file({**load_file(file), "angles": angles}, file, metadata={"format": "pt"})
    except KeyError:
        pytest.skip("this release of safetensors has no complex numbers")
    for into in (None, module):
        with pytest.raises(
            UserError, match=r"can't be loaded.*: model\.safetensors .* dtype C64; known are F64"
        ):
            ecoflap.load_pruned(tmp_path, into, device="cpu")


def test_a_pickled_checkpoint_of_others_is_loaded(tmp_path: Path) -> None:
    module = tied_llama(torch.float32)
    module.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    check_same(ecoflap.load_pruned(tmp_path, device="cpu"), module)


def test_a_module_on_the_meta_device_and_a_device_that_is_missing(tmp_path: Path) -> None:
    module = tied_llama(torch.float32)
    ecoflap.save(ecoflap.load(module, llama().processor), tmp_path / "out")
    with torch.device("meta"):
        empty = type(module)(module.config)
    with pytest.raises(ecoflap.UserError, match="is on the meta device"):
        ecoflap.load_pruned(tmp_path / "out", empty)
    with pytest.raises(ecoflap.UserError, match="device=nonesuch is not a device"):
        ecoflap.load_pruned(tmp_path / "out", tied_llama(torch.float32), device="nonesuch")


def test_a_device_of_torch_and_a_folder_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ecoflap.load(tied_llama(torch.float32))
    ecoflap.save(model, tmp_path / "out")
    assert ecoflap.load_pruned(tmp_path / "out", device=torch.device("meta")).device.type == "meta"
    check_same(ecoflap.load_pruned(tmp_path / "out", device=torch.device("cpu"), sparse=True), model.module)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ecoflap.UserError, match="the folder has no name"):
        ecoflap.save(model, "")
    with pytest.raises(ecoflap.UserError, match="folder is empty; give a folder"):
        ecoflap.load_pruned("")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("form", SPARSE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tied_weights_negative_zeros_and_dtypes(dtype: torch.dtype, form: str, tmp_path: Path) -> None:
    module = tied_llama(dtype)
    ecoflap.save(ecoflap.load(module), tmp_path, form=form)
    with open_checkpoint(tmp_path) as checkpoint:
        assert "lm_head.weight" not in checkpoint.names()
    loaded: Any = ecoflap.load_pruned(tmp_path, device="cpu")
    check_same(loaded, module)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert loaded.generation_config.pad_token_id == 3


@pytest.mark.parametrize("form", ["dense", *SPARSE])
def test_tensors_that_transformers_keeps_in_fp32_have_the_same_values(form: str, tmp_path: Path) -> None:
    config = hf.T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    module = hf.T5ForConditionalGeneration(config).half()
    ecoflap.save(ecoflap.load(module), tmp_path, form=form)
    loaded = ecoflap.load_pruned(tmp_path, device="cpu").state_dict()
    for name, weight in module.state_dict().items():
        assert loaded[name].dtype == (torch.float32 if name.endswith("wo.weight") else torch.float16)
        assert torch.equal(loaded[name].half(), weight)


@pytest.mark.parametrize("form", ["dense", *SPARSE])
def test_wide_tensors_whose_names_in_the_file_are_others(form: str, tmp_path: Path) -> None:
    """Such as Mixtral's routers."""
    model = build("mixtral")
    module: Any = model.module.to(torch.bfloat16)
    for layer in module.model.layers:
        layer.mlp.gate.weight.data = torch.randn(layer.mlp.gate.weight.shape) / 3
    ecoflap.save(model, tmp_path / "out", form=form)
    loaded = ecoflap.load_pruned(tmp_path / "out", device="cpu")
    check_same(loaded, module)
    assert loaded.model.layers[0].mlp.gate.weight.dtype == torch.float32


@pytest.mark.parametrize("wide", [True, False])
def test_experts_that_are_rounded_are_a_warning(
    wide: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Transformers 5 merges them as it loads them, in the dtype of the config."""
    model = build("mixtral")
    module: Any = model.module.to(torch.bfloat16)
    for name, weight in module.named_parameters():
        if "experts" in name and wide:
            weight.data = torch.randn(weight.shape)
    ecoflap.save(model, tmp_path, form="coded")
    loaded = ecoflap.load_pruned(tmp_path, device="cpu")
    same_dtypes = all(
        one.dtype == other.dtype for one, other in zip(loaded.parameters(), module.parameters(), strict=True)
    )
    said = [message for message in caplog.messages if "were rounded to bfloat16" in message]
    assert bool(said) == (not same_dtypes)


@pytest.mark.parametrize("form", SPARSE)
def test_merged_experts_come_back(form: str, tmp_path: Path) -> None:
    """Their names and shapes in the checkpoint are others than in the model."""
    model = build("mixtral")
    ecoflap.save(model, tmp_path, form=form)
    check_same(ecoflap.load_pruned(tmp_path, device="cpu"), model.module)
    with pytest.raises(UserError, match=r"joins with others .*; leave the model out"):
        ecoflap.load_pruned(tmp_path, model.module)


@pytest.mark.parametrize("form", ["dense", *SPARSE])
def test_torchs_default_device_changes_nothing(form: str, tmp_path: Path) -> None:
    module, other, experts = tied_llama(torch.float32), tied_llama(torch.float32), build("mixtral")
    result = ecoflap.prune(experts, sparsity=0.5, score="none", pruner="magnitude")
    other.model.norm.weight.data.fill_(3)
    with torch.device("meta"):
        ecoflap.save(result, tmp_path / "experts", form=form)
        ecoflap.save(ecoflap.load(module), tmp_path / "out", form=form)
        ecoflap.load_pruned(tmp_path / "out", other)
    check_same(other, module)
    assert verify(tmp_path / "experts") == []
    check_same(ecoflap.load_pruned(tmp_path / "experts", device="cpu"), experts.module)


@pytest.mark.parametrize("form", ["dense", *SPARSE])
def test_a_model_whose_units_were_cut_away(form: str, tmp_path: Path) -> None:
    """As UPop leaves it; its class is narrower than the one that its config names."""
    model = ecoflap.load("blip_vqa_mini", device="cpu")
    units = find_units(model)
    cut_all(model.module, units, [torch.arange(0, one.count, 2) for one in units])
    ecoflap.save(model, tmp_path, form=form)
    check_same(ecoflap.load_pruned(tmp_path, device="cpu"), model.module)


def test_onto_the_meta_device_reads_no_weights(tmp_path: Path) -> None:
    module = tied_llama(torch.bfloat16)
    ecoflap.save(ecoflap.load(module), tmp_path, form="coded")
    for shard in tmp_path.glob("bitmask-*"):
        shard.unlink()
    found = ecoflap.load_pruned(tmp_path, device="meta")
    assert {name: (w.shape, w.dtype, w.device.type) for name, w in found.named_parameters()} == {
        name: (w.shape, w.dtype, "meta") for name, w in module.named_parameters()
    }


def test_the_weights_are_where_they_were_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no second copy of the model."""
    module = tied_llama(torch.bfloat16)
    ecoflap.save(ecoflap.load(module), tmp_path, form="bitmask")
    places = set()

    read = BitmaskCheckpoint.read

    def noting(checkpoint: BitmaskCheckpoint, name: str) -> torch.Tensor:
        tensor = read(checkpoint, name)
        places.add(tensor.data_ptr())
        return tensor

    monkeypatch.setattr(BitmaskCheckpoint, "read", noting)
    loaded = ecoflap.load_pruned(tmp_path, device="cpu")
    assert {weight.data_ptr() for weight in loaded.parameters()} == places


@pytest.mark.parametrize("form", ["dense", *SPARSE])
def test_into_a_model_that_transformers_does_not_build(form: str, tmp_path: Path) -> None:
    make = lambda: nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 64, bias=False))
    torch.manual_seed(0)
    module = make()
    module[0].weight.data *= torch.rand(64, 64) < 0.4
    (tmp_path / "dense").mkdir()
    save_file(module.half().state_dict(), tmp_path / "dense" / "model.safetensors")
    convert(tmp_path / "dense", tmp_path / "out", form)
    other = make()
    assert ecoflap.load_pruned(tmp_path / "out", other) is other
    check_same(other, module)
    with pytest.raises(ecoflap.UserError, match=r"no config\.json.*load_pruned\(folder, model\)"):
        ecoflap.load_pruned(tmp_path / "out")
    for wrong, message in (
        (nn.Sequential(nn.Linear(64, 64)), r"does not fit Sequential, which has no 1\."),
        (nn.Sequential(*make(), nn.Linear(2, 2)), r"it has no 3\.weight; give the model that was saved"),
        (nn.Sequential(nn.Linear(64, 8), *list(make())[1:]), r"0\.\w+ is \[64.* there and \[8.* here"),
    ):
        with pytest.raises(ecoflap.UserError, match=message):
            ecoflap.load_pruned(tmp_path / "out", wrong)


@pytest.mark.parametrize("form", ["dense", *SPARSE])
def test_a_module_of_ones_own_that_saves_itself(form: str, tmp_path: Path) -> None:
    class Own(nn.TransformerEncoder, PyTorchModelHubMixin):
        def __init__(self) -> None:
            layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
            super().__init__(layer, 2, enable_nested_tensor=False)
            self.config = SimpleNamespace(width=16, dtype="bfloat16")

    def loss(module: nn.Module, batch: Any, copies: int = 1) -> torch.Tensor:
        return (module(batch["inputs"]) - batch["inputs"]).square().mean(dim=(1, 2))

    torch.manual_seed(0)
    module, other = Own().to(torch.bfloat16), Own()
    result = ecoflap.prune(ecoflap.load(module, loss=loss), pruner="magnitude", score="none", sparsity=0.5)
    ecoflap.save(result, tmp_path / "out", form=form)
    assert verify(tmp_path / "out") == []
    check_same(ecoflap.load_pruned(tmp_path / "out", other), module)


@pytest.mark.parametrize("form", ["dense", *SPARSE])
def test_a_class_of_ones_own_whose_tensors_transformers_saves_under_other_names(
    form: str, tmp_path: Path
) -> None:
    class Own(hf.Dinov2PreTrainedModel):
        def __init__(self, config: hf.Dinov2Config) -> None:
            super().__init__(config)
            self.backbone, self.head = hf.Dinov2Model(config), nn.Linear(16, 2)
            self.post_init()

    config = hf.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=14)
    module, other = Own(config), Own(config)
    model = ecoflap.load(module, loss=lambda *_: torch.zeros(1))
    result = ecoflap.prune(model, pruner="magnitude", score="none", sparsity=0.5)
    ecoflap.save(result, tmp_path / "out", form=form)
    check_same(ecoflap.load_pruned(tmp_path / "out", other), module)


@pytest.mark.parametrize("form", ["dense", *SPARSE])
def test_two_weights_are_not_loaded_into_one(form: str, tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self, tied: bool) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
            if tied:
                self.second.weight = self.first.weight

    two, one = Model(tied=False), Model(tied=True)
    before = one.first.weight.clone()
    dense = tmp_path / "dense"
    dense.mkdir()
    for equal in (False, True):
        if equal:
            two.second.weight.data = two.first.weight.data.clone()
        save_file(two.state_dict(), dense / "model.safetensors")
        convert(dense, tmp_path / str(equal), form)
    with pytest.raises(
        UserError, match=r"first\.weight and second\.weight are two weights there and one here"
    ):
        ecoflap.load_pruned(tmp_path / "False", one)
    assert torch.equal(one.first.weight, before)
    ecoflap.load_pruned(tmp_path / "True", one)
    check_same(one, two)


@pytest.mark.parametrize("form", ["dense", *SPARSE])
def test_what_a_killed_save_leaves_is_no_mixture(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and index come last, as a file beside the old config.json would pass for a checkpoint."""
    old, new = tied_llama(torch.float32), tied_llama(torch.float32)
    new.config.rms_norm_eps = 0.25
    result = ecoflap.prune(ecoflap.load(new), pruner="magnitude", score="none", sparsity=0.9)
    left, replace = 0, os.replace

    def until_killed(source: Any, target: Any) -> None:
        nonlocal left
        if Path(target).parent == tmp_path:
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        replace(source, target)

    for moved in range(99):
        ecoflap.save(ecoflap.load(old), tmp_path)
        left = moved
        monkeypatch.setattr(os, "replace", until_killed)
        try:
            ecoflap.save(result, tmp_path, form=form)
            break
        except KeyboardInterrupt:
            monkeypatch.undo()
        with pytest.raises(UserError):
            ecoflap.load_pruned(tmp_path, device="cpu")
    assert moved > 3
    assert verify(tmp_path) == []


@pytest.mark.parametrize("form", ["dense", "bitmask"])
def test_two_saves_at_once_leave_one_model(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one has begun to move its files when half of the first one's are in the folder."""
    first, second = (
        ecoflap.prune(
            ecoflap.load(tied_llama(torch.float32)), pruner="magnitude", score="none", sparsity=sparsity
        )
        for sparsity in (0.5, 0.9)
    )
    other = threading.Thread(target=ecoflap.save, args=(second, tmp_path, form))
    replace, moved = os.replace, list[Any]()

    def interrupted(source: Any, target: Any) -> None:
        replace(source, target)
        if Path(target).parent == tmp_path and threading.current_thread() is not other:
            moved.append(target)
            if len(moved) == 4:
                other.start()
                other.join(timeout=3)

    monkeypatch.setattr(os, "replace", interrupted)
    ecoflap.save(first, tmp_path, form)
    other.join()
    assert len(moved) > 4
    assert verify(tmp_path) == []
    assert Result.read(tmp_path / "result.json").sparsity["target"] == 0.9
    assert not (tmp_path / ".lease").exists()


def test_a_form_replaces_the_one_before(tmp_path: Path) -> None:
    one = llama()
    model = ecoflap.load(one.module, one.processor)
    for form in ("dense", "coded", "dense", "bitmask"):
        ecoflap.save(model, tmp_path, form=form)
        kinds = {path.name.partition("-")[0].partition(".")[0] for path in tmp_path.glob("*.safetensors")}
        assert kinds == {"model" if form == "dense" else "bitmask"}
        assert (tmp_path / "bitmask.index.json").exists() == (form != "dense")
        check_same(ecoflap.load_pruned(tmp_path, device="cpu"), one.module)
        again = ecoflap.load(tmp_path, device="cpu")
        check_same(again.module, one.module)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        hf.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_model_that_was_trained_on_keeps_its_zeros_or_is_saved_without_masks(tmp_path: Path) -> None:
    one = llama()
    result = ecoflap.prune(one.module, sparsity=0.5, score="none", pruner="magnitude")
    weights = dict(one.module.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            weight.add_(result.masks[name] * 0.25 if name in result.masks else 0.25)
    ecoflap.save(result, tmp_path / "kept")
    name = list(result.masks)[-1]
    with torch.no_grad():
        weights[name].add_(0.25)
    with pytest.raises(UserError, match=rf"{name} has weights other than zero .* give result\.prunable"):
        ecoflap.save(result, tmp_path / "changed")
    assert not (tmp_path / "changed").exists()
    ecoflap.save(result.prunable, tmp_path / "changed")
    assert not (tmp_path / "changed" / "masks.bits").exists()


def test_a_result_whose_model_was_pruned_further(tmp_path: Path) -> None:
    one = llama()
    first = ecoflap.prune(one.module, sparsity=0.5, score="none", pruner="magnitude")
    last = ecoflap.prune(one.module, sparsity=0.7, score="none", pruner="magnitude")
    with pytest.raises(UserError, match=r"q_proj.weight has more zeros than this result counted"):
        ecoflap.save(first, tmp_path / "out")
    ecoflap.save(last, tmp_path / "out")
    assert verify(tmp_path / "out") == []


def test_the_record_is_of_the_model_that_is_saved(tmp_path: Path) -> None:
    """Trained until zeros that the masks keep are none any more, cast, and with rows for new tokens."""
    one = llama()
    ecoflap.prune(one.module, sparsity=0.7, score="none", pruner="magnitude")
    result = ecoflap.prune(one.module, sparsity=0.5, score="none", pruner="magnitude")
    assert result.sparsity == pytest.approx(0.7, abs=0.01)
    module: Any = one.module
    with torch.no_grad():
        for name, mask in result.masks.items():
            module.get_parameter(name).add_(0.25 * mask)
    module.resize_token_embeddings(50)
    module.to(torch.bfloat16)
    ecoflap.save(result, tmp_path)
    assert verify(tmp_path) == []
    record = Result.read(tmp_path / "result.json")
    assert record.sparsity["prunable"] == pytest.approx(0.5, abs=0.01)
    zeros = sum(int((module.get_parameter(name) == 0).sum()) for name in result.masks)
    parameters = sum(weight.numel() for weight in module.parameters())
    assert record.sparsity["model"] == zeros / parameters
    assert (record.model["dtype"], record.model["parameters"]) == ("bfloat16", parameters)
    assert f"| whole model | {parameters:,} | {zeros:,} |" in (tmp_path / "README.md").read_text()


def test_a_result_whose_layer_was_replaced(tmp_path: Path) -> None:
    module: Any = llama().module
    result = ecoflap.prune(module, sparsity=0.5, score="none", pruner="magnitude")
    pruned_layer = module.model.layers[1].mlp.up_proj
    module.model.layers[1].mlp.up_proj = deepcopy(pruned_layer)
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.weight is not in the model any more"):
        ecoflap.save(result, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    module.model.layers[1].mlp.up_proj = pruned_layer
    ecoflap.save(result, tmp_path / "out")
    assert verify(tmp_path / "out") == []


def test_a_result_whose_model_was_cast(tmp_path: Path) -> None:
    one = llama()
    result = ecoflap.prune(one.module, sparsity=0.5, score="none", pruner="magnitude")
    one.module.half()
    ecoflap.save(result, tmp_path / "out")
    name = next(iter(result.masks))
    with torch.no_grad():
        one.module.float().get_parameter(name)[result.masks[name]] = 1e-9
    one.module.half()
    cast = r"more zeros .* pruned further, or cast from float32 to float16, in which its smallest weights are"
    with pytest.raises(UserError, match=rf"{name} has {cast} zero \(cast it before"):
        ecoflap.save(result, tmp_path / "out")


def test_a_processor_that_can_not_be_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = llama().module
    inputs = [{"input_ids": torch.randint(20, (4, 12))}]
    result = ecoflap.prune(module, lambda text: {"input_ids": [1, 2]}, inputs, sparsity=0.5, score="none")
    with caplog.at_level("WARNING", logger="ecoflap"):
        ecoflap.save(result, tmp_path)
    assert "the processor (function) has no save_pretrained; the model is saved without it" in caplog.text
    assert verify(tmp_path) == []


def test_a_generation_config_that_is_not_saved(tmp_path: Path) -> None:
    one = llama()
    model = ecoflap.load(one.module, one.processor)
    one.module.generation_config.temperature = 0.3
    with pytest.raises(UserError, match=r"generation_config as it is: `temperature`: .*; change it in the"):
        ecoflap.save(model, tmp_path)
    assert not list(tmp_path.iterdir())
    one.module.generation_config.do_sample = True
    ecoflap.save(model, tmp_path)


def test_a_config_that_is_not_saved(tmp_path: Path) -> None:
    one = llama()
    model = ecoflap.load(one.module, one.processor)
    one.module.config.mine = np.float32(2)
    with pytest.raises(
        UserError, match=r"does not save LlamaForCausalLM as it is: .*; change it in the model"
    ):
        ecoflap.save(model, tmp_path)
    assert not list(tmp_path.iterdir())
    one.module.config.mine = 2.0
    ecoflap.save(model, tmp_path)


class Pickled(hf.LlamaForCausalLM):
    """Saves itself in a format of its own."""

    def save_pretrained(self, path: Path, **_: Any) -> None:
        torch.save(self.state_dict(), path / "weights.pt")


class Renamed(hf.LlamaForCausalLM):
    """Saves itself under names of its own."""

    def save_pretrained(self, path: Path, **_: Any) -> None:
        numbered = {f"tensor_{place}": one for place, one in enumerate(self.state_dict().values())}
        save_file(numbered, path / "model.safetensors")


@pytest.mark.parametrize("form", ["dense", "coded"])
@pytest.mark.parametrize(
    ("kind", "lacks"),
    [
        (Pickled, r"there is no model\.safetensors"),
        (Renamed, r"the weights of .*q_proj\.weight are not in it"),
    ],
)
def test_a_checkpoint_that_masks_do_not_fit(kind: Any, lacks: str, form: str, tmp_path: Path) -> None:
    result = ecoflap.prune(kind(llama().module.config), sparsity=0.5, score="none", pruner="magnitude")
    with pytest.raises(
        UserError, match=rf"{kind.__name__}\.save_pretrained .*: {lacks}; .* result\.prunable"
    ):
        ecoflap.save(result, tmp_path, form=form)
    assert not list(tmp_path.iterdir())
    ecoflap.save(result.prunable, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_weights_that_a_checkpoint_would_lack(tmp_path: Path) -> None:
    given = llama()
    module: Any = given.module
    first = module.model.layers[0]
    module.model.layers[1] = first
    result = ecoflap.prune(module, given.processor, sparsity=0.5, score="none", pruner="magnitude")
    for saved in (result, result.prunable):
        with pytest.raises(UserError, match=r"layers\.0\.(.+) and .*layers\.1\.\1 are the same .*deepcopy"):
            ecoflap.save(saved, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))
    module.model.layers[1] = deepcopy(first)
    module.model.layers[1].mlp.up_proj.weight = first.mlp.up_proj.weight
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.up_proj\.weight and .* are the same weights"):
        ecoflap.save(ecoflap.load(module, given.processor), tmp_path / "out")


@pytest.mark.parametrize("by", ["one parameter", "memory"])
def test_embeddings_that_were_tied_by_hand(by: str, tmp_path: Path) -> None:
    given = llama()
    module: Any = given.module
    weight = module.model.embed_tokens.weight
    module.lm_head.weight = weight if by == "one parameter" else torch.nn.Parameter(weight.data)
    with pytest.raises(UserError, match=r"output embedding .* set model\.config\.tie_word_embeddings=True"):
        ecoflap.save(ecoflap.load(module, given.processor), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    module.config.tie_word_embeddings = True
    ecoflap.save(ecoflap.load(module, given.processor), tmp_path / "out")
    check_same(ecoflap.load_pruned(tmp_path / "out", device="cpu"), module)


def test_the_config_of_the_whole_model_says_whether_embeddings_are_tied(tmp_path: Path) -> None:
    """Since transformers 5, and not the config of its language model."""
    one = llava()
    module: Any = one.module
    if not hasattr(module, "get_expanded_tied_weights_keys"):
        pytest.skip("the config of the language model says it")
    module.lm_head.weight = module.get_input_embeddings().weight
    module.config.tie_word_embeddings, module.config.text_config.tie_word_embeddings = True, False
    ecoflap.save(ecoflap.load(module, one.processor), tmp_path / "tied")
    check_same(ecoflap.load_pruned(tmp_path / "tied", device="cpu"), module)
    module.config.tie_word_embeddings, module.config.text_config.tie_word_embeddings = False, True
    with pytest.raises(UserError, match=r"output embedding .* set model\.config\.tie_word_embeddings=True"):
        ecoflap.save(ecoflap.load(module, one.processor), tmp_path / "out")


def test_refusals(tmp_path: Path) -> None:
    one = llama()
    model = ecoflap.load(one.module, one.processor)
    with pytest.raises(ecoflap.UserError, match=r"form=bitmsk is not known; did you mean bitmask\?"):
        ecoflap.save(model, tmp_path / "out", form="bitmsk")
    assert not (tmp_path / "out").exists()
    ecoflap.save(model, tmp_path / "out", form="bitmask")
    with pytest.raises(ecoflap.UserError, match=r"sub can't be made \(Not a directory\); choose another"):
        ecoflap.save(model, tmp_path / "out" / "config.json" / "sub")
    with pytest.raises(ecoflap.UserError, match="there is no such folder"):
        ecoflap.load_pruned(tmp_path / "nowhere")
    with pytest.raises(ecoflap.UserError, match=r"no/where could .*no such folder here, and from the hub: "):
        ecoflap.load_pruned("no/where")
    result: Any = ecoflap.prune(model, sparsity=0.5, score="none", pruner="magnitude")
    with pytest.raises(ecoflap.UserError, match=r"the folder is a PruneResult; .*result\.model"):
        ecoflap.load_pruned(result)
    (shard,) = (tmp_path / "out").glob("bitmask-*")
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ecoflap.UserError, match=r"is damaged.*BLAKE2b"):
        ecoflap.load_pruned(tmp_path / "out", device="cpu")
    (tmp_path / "out" / "bitmask.index.json").unlink()
    with pytest.raises(ecoflap.UserError, match=r"no file named model\.safetensors|not finished"):
        ecoflap.load_pruned(tmp_path / "out", device="cpu")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchModel"]}))
    with pytest.raises(ecoflap.UserError, match="class NoSuchModel"):
        ecoflap.load_pruned(tmp_path / "out", device="cpu")
