"""The files of a saved model: shards that are named otherwise than save_pretrained names them now."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model

import ecoflap
from ecoflap.cli.command import main
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language.causal_lm import CausalLM
from ecoflap.models.loading.pretrained_weights import load_weights
from ecoflap.models.offload.load import load_offloaded
from ecoflap.storage.bitmask.forms import FORMS
from ecoflap.storage.saved_model import usual_dtype, weight_bytes, weight_files
from ecoflap.storage.tensor_files import LavisFile
from tests.api.conftest import llama
from tests.api.test_forms_of_checkpoints import check_same


@pytest.fixture(params=["model.safetensors-", "shards/model-"])
def renamed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model whose shards are named as those of some models on the hub, or lie in a subfolder."""
    folder, index = tmp_path / "model", tmp_path / "model" / "model.safetensors.index.json"
    llama().module.save_pretrained(folder, max_shard_size="10KB")
    content = json.loads(index.read_text())
    assert len(set(content["weight_map"].values())) > 1
    for name, file in content["weight_map"].items():
        other = file.removesuffix(".safetensors").replace("model-", request.param) + ".safetensors"
        (folder / other).parent.mkdir(exist_ok=True)
        content["weight_map"][name] = other
        if (folder / file).exists():
            (folder / file).rename(folder / other)
    index.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("form", ["dense", "coded"])
def test_shards_of_other_names_are_not_copied_beside_what_they_become(
    renamed: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["convert", str(renamed), str(out), "--to", form]) == 0
    assert not list(out.glob("model.safetensors-*"))
    assert not list(out.glob("shards/*"))
    shards = sum(path.stat().st_size for path in renamed.rglob("*.safetensors"))
    listed = (renamed / "model.safetensors.index.json").stat().st_size
    assert f"of the {shards + listed:,} before" in capsys.readouterr().out
    original = hf.AutoModelForCausalLM.from_pretrained(renamed)
    check_same(ecoflap.load_pruned(out, device="cpu"), original)


def test_shards_of_other_names_are_replaced_by_a_save(renamed: Path) -> None:
    one = llama()
    ecoflap.save(ecoflap.load(one.module, one.processor), renamed)
    assert [path.name for path in renamed.rglob("*.safetensors*")] == ["model.safetensors"]
    check_same(hf.AutoModelForCausalLM.from_pretrained(renamed), one.module)


PICKLED = ("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json")
MISTRAL = ("consolidated.safetensors", "consolidated.safetensors.index.json")
NOTHING_WRONG = {"mismatched_keys": [], "missing_keys": [], "unexpected_keys": []}
FOREIGN = (*PICKLED, "tf_model.h5", "flax_model.msgpack", *MISTRAL)
OTHERS = ("training_args.bin", "tokenizer.bin", "sub/pytorch_model.bin")


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """A model in safetensors, and another one in the formats of other libraries and releases."""
    folder = tmp_path / "pickled"
    llama().module.save_pretrained(folder)
    (folder / "sub").mkdir()
    for name in (*FOREIGN, *OTHERS):
        (folder / name).write_text("of another model")
    (folder / "pytorch_model-cache.bin").mkdir()  # a folder is not weights
    torch.save(llama().module.state_dict(), folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("by", ["save", "convert"])
def test_weights_in_other_formats_do_not_stay_beside_another_model(
    pickled: Path, tmp_path: Path, form: str, by: str
) -> None:
    if by == "save":
        one = llama()
        out = ecoflap.save(ecoflap.load(one.module, one.processor), pickled, form=form)
    else:
        out = tmp_path / "out"
        assert main(["convert", str(pickled), str(out), "--to", form]) == 0
        assert all((pickled / name).is_file() for name in FOREIGN)
    assert not any((out / name).exists() for name in FOREIGN)
    assert all((out / name).read_text() == "of another model" for name in OTHERS)
    if form != "dense":
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            hf.AutoModelForCausalLM.from_pretrained(out)


@pytest.fixture
def adapted(tmp_path: Path) -> Path:
    """A model with an adapter beside it, as a training with LoRA leaves them."""
    folder = tmp_path / "adapted"
    options = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(llama().module, options).save_pretrained(folder)
    for part in (llama().module, llama().processor):
        part.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_does_not_stay_beside_another_model(adapted: Path, form: str) -> None:
    one = llama()
    ecoflap.save(ecoflap.load(one.module, one.processor), adapted, form=form)
    assert not list(adapted.glob("adapter*"))
    check_same(ecoflap.load_pruned(adapted, device="cpu"), one.module)


def test_a_model_with_an_adapter_beside_it_is_refused(
    adapted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ``from_pretrained`` would load another model than the saved one."""
    refused = pytest.raises(ecoflap.UserError, match=r"has a peft adapter \(adapter_config\.json\) beside")
    for load in (
        ecoflap.load,
        ecoflap.load_pruned,
        lambda at: ecoflap.load_pruned(at, llama().module),
        lambda at: load_offloaded(CausalLM(str(at)), torch.device("cpu"), Selection(), "disk", at / "work"),
    ):
        with refused:
            load(adapted)
    assert main(["convert", str(adapted), str(adapted.with_name("out")), "--to", "coded"]) == 2
    assert "has a peft adapter" in capsys.readouterr().err
    assert not adapted.with_name("out").exists()

    class OfTheHub:
        from_pretrained = staticmethod(
            lambda *_, **__: (hf.AutoModel.from_pretrained(adapted), NOTHING_WRONG)
        )

    with refused:
        load_weights(OfTheHub, "me/adapted", None, {})


@pytest.mark.parametrize("name", ["../other.safetensors", "sub/../../other.safetensors", "{}", "config.json"])
def test_an_index_names_no_weights_outside_its_folder(tmp_path: Path, name: str) -> None:
    """Nor other files in it: what it names is deleted when a model is saved there."""
    folder, outside = tmp_path / "model", tmp_path / "other.safetensors"
    (folder / "sub").mkdir(parents=True)
    outside.write_text("of others")
    (folder / "config.json").write_text("{}")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name.format(outside)}}))
    assert weight_files(folder) == [index]
    one = llama()
    ecoflap.save(ecoflap.load(one.module, one.processor), folder)
    assert outside.read_text() == "of others"


def test_the_dtype_of_a_model_is_that_of_most_of_its_numbers() -> None:
    wide, narrow = torch.zeros(3), torch.zeros(2, dtype=torch.float16)
    assert usual_dtype([narrow, wide]) == "float32"
    assert usual_dtype([narrow, wide, narrow]) == "float16"
    assert usual_dtype([]) == ""


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 5}}'])
def test_a_damaged_index_names_nothing_and_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert weight_bytes(tmp_path) == len(text)
    said = r"index\.json does not say which file has which tensor \(weight_map\); copy it anew"
    assert main(["convert", str(tmp_path), str(tmp_path.parent / "out"), "--to", "coded"]) == 2
    assert re.search(said, capsys.readouterr().err)
    with pytest.raises(ecoflap.UserError, match=said):
        ecoflap.load_pruned(tmp_path, llama().module)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5])
def test_a_cut_file_of_lavis_is_named(tmp_path: Path, share: float) -> None:
    file = tmp_path / "model.pth"
    torch.save({"model": {"w": torch.ones(64, 64)}}, file)
    os.truncate(file, int(share * file.stat().st_size))
    with pytest.raises(OSError, match=r"model\.pth cannot be read \(.+\); copy or save it again"):
        LavisFile(file)
    with pytest.raises(FileNotFoundError):
        LavisFile(tmp_path / "missing.pth")
