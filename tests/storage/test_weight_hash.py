"""The hash of a saved model's weights: each changed bit is found, in every form of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import ecoflap
from ecoflap.cli.verify import main
from ecoflap.errors import UserError
from ecoflap.storage.bitmask.convert import convert
from ecoflap.storage.results import Result, verify
from ecoflap.storage.saved_model import hash_weights
from ecoflap.storage.sharing.push import prepare
from tests.api.conftest import llama

LAYER = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A pruned model, as ``ecoflap.save`` leaves it."""
    given = llama()
    result = ecoflap.prune(given.module, given.processor, data=given.data, sparsity=0.6, score="none")
    return ecoflap.save(result, tmp_path / "saved")


def change(folder: Path, name: str, by: Callable[[Tensor], Tensor]) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[name] = by(weights[name])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def last_bit_of_largest(weight: Tensor) -> Tensor:
    flat = weight.flatten().clone()
    flat.view(torch.int32)[flat.abs().argmax()] ^= 1
    return flat.view_as(weight)


@pytest.mark.parametrize(
    ("name", "by"),
    [
        (LAYER, last_bit_of_largest),
        (LAYER, lambda weight: torch.where(weight == 0, -0.0, weight)),
        ("model.embed_tokens.weight", last_bit_of_largest),
        ("model.norm.weight", lambda weight: weight.double()),
        ("model.norm.weight", lambda weight: weight[None]),
    ],
    ids=["kept", "sign of zeros", "not pruned", "dtype", "shape"],
)
def test_one_changed_bit_is_found(
    saved: Path, name: str, by: Callable[[Tensor], Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(saved)]) == 0
    assert "no bit of a weight, config, tokenizer or processor has changed" in capsys.readouterr().out
    change(saved, name, by)
    (difference,) = verify(saved)
    assert "the weights have changed" in difference
    assert main([str(saved)]) == 1
    with pytest.raises(UserError, match="the weights have changed"):
        prepare(saved)


def test_swapped_and_renamed_weights_are_found(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    one, other = (f"model.layers.{number}.input_layernorm.weight" for number in (0, 1))
    weights[one] = weights[one] + 1
    save_file(weights, saved / "model.safetensors")
    expected = hash_weights(saved)
    weights[one], weights[other] = weights[other], weights[one]
    save_file(weights, saved / "model.safetensors")
    assert hash_weights(saved) != expected
    weights["other"] = weights.pop("model.norm.weight")
    save_file(weights, saved / "model.safetensors")
    (difference,) = verify(saved)
    assert "the weights have changed" in difference


def test_a_shard_that_holds_tensors_of_another_is_found(saved: Path) -> None:
    """``from_pretrained`` loads all that is in a shard, whatever the index says."""
    weights = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    embedding = "model.embed_tokens.weight"
    file_of = {name: f"model-0000{1 + (name != embedding)}-of-00002.safetensors" for name in weights}
    for file in set(file_of.values()):
        inside = {name: weight for name, weight in weights.items() if file_of[name] == file}
        save_file(inside, saved / file, {"format": "pt"})
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": file_of}))
    assert verify(saved) == []
    both = {name: weights[name] for name in (embedding, LAYER)}
    save_file({**both, LAYER: both[LAYER] + 1}, saved / file_of[embedding], {"format": "pt"})
    (difference,) = verify(saved)
    assert difference == f"{LAYER}: is in {file_of[embedding]}, where the index does not have it"


@pytest.mark.parametrize("file", ["other.safetensors", "model-00001-of-00002.safetensors"])
def test_a_file_that_servers_load_beside_the_weights_is_found(saved: Path, file: str) -> None:
    """vLLM, SGLang and TGI take every ``*.safetensors`` of a folder without an index for weights."""
    assert verify(saved) == []
    save_file({LAYER: torch.ones(16, 16)}, saved / file)
    difference = f"{file} is not of this checkpoint, but may be loaded with it; remove it"
    assert verify(saved) == [difference]
    with pytest.raises(UserError, match="is not of this checkpoint"):
        prepare(saved)
    (saved / "sub").mkdir()
    (saved / file).rename(saved / "sub" / file)
    save_file({"lora": torch.ones(1)}, saved / "adapter_model.safetensors")  # push leaves it out
    assert verify(saved) == []


def test_all_forms_have_one_hash(saved: Path, tmp_path: Path) -> None:
    recorded = Result.read(saved / "result.json").weights
    assert recorded == hash_weights(saved)
    source = saved
    for form in ("bitmask", "coded", "dense"):
        convert(source, tmp_path / form, form)
        source = tmp_path / form
        assert hash_weights(source) == recorded
        assert verify(source) == []


def test_a_record_without_a_hash_is_verified_by_counts(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((saved / "result.json").read_text())
    del record["weights"]
    (saved / "result.json").write_text(json.dumps(record))
    change(saved, LAYER, last_bit_of_largest)
    assert verify(saved) == []
    assert main([str(saved)]) == 0
    assert "it has no hash of the weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    "key", ["prunable", "parameters", "target", "towers", "layers", "kept", "checkpoint"]
)
def test_a_record_that_lacks_a_part_is_named(
    key: str, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (saved / "result.json").read_text()
    (saved / "result.json").write_text(content.replace(f'"{key}": ', f'"{key[:-1]}?": '))
    assert main([str(saved)]) == 2
    assert "cannot verify" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"can't be shared: .*record"):
        prepare(saved)


@pytest.mark.parametrize(
    ("before", "after"), [(b'"shapes"', b'"shaper"'), (b'"names": "{', b'"names": "]'), (b'": "{', b'": "3')]
)
def test_a_damaged_header_of_the_masks_is_named(before: bytes, after: bytes, saved: Path) -> None:
    content = (saved / "masks.bits").read_bytes()
    assert before in content
    (saved / "masks.bits").write_bytes(content.replace(before, after))
    with pytest.raises(ValueError, match=r"masks\.bits is damaged: "):
        verify(saved)
