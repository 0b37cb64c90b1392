"""Quantised checkpoints are dequantised where transformers does it by itself, and refused in one line before anything is loaded elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from ecoflap.errors import UserError
from ecoflap.models.blip import BlipVqa
from ecoflap.models.causal_lm import CausalLM
from ecoflap.models.clip import Clip
from ecoflap.models.image_classifier import ImageClassifier
from ecoflap.models.loading import Selection
from ecoflap.models.offload import load_offloaded
from ecoflap.models.quantised import _dequantises
from ecoflap.models.seq2seq import Seq2Seq
from ecoflap.models.vlm import VisionLanguage
from tests import tiny
from tests.cli.conftest import tiny_llama  # noqa: F401 - a fixture

CPU = torch.device("cpu")
METHODS = {
    "gptq": {"quant_method": "gptq", "bits": 4},
    "awq": {"quant_method": "awq", "bits": 4},
    "bitsandbytes, 8 bits": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "bitsandbytes, 4 bits": {"load_in_4bit": True},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "hqq": {"quant_method": "hqq"},
    "fbgemm_fp8": {"quant_method": "fbgemm_fp8"},
    "modelopt": {"quant_method": "modelopt"},
    "a method without a name": {"bits": 4},
}


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:  # noqa: F811
    copy = tmp_path / "model"
    copy.mkdir()
    for file in tiny_llama.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


@pytest.fixture
def no_weights_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where weights would be read."""

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(hf.PreTrainedModel, "from_pretrained", read)


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("offload", ["none", "cpu", "disk"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("no_weights_read")
def test_a_method_is_named(folder: Path, tmp_path: Path, method: str, offload: str) -> None:
    change_config(folder, quantization_config=METHODS[method])
    with pytest.raises(UserError, match=rf"model\.path=\S+ is quantised with {method}.*give the checkpoint that it was made from"):
        load_offloaded(CausalLM(path=str(folder)), CPU, Selection(), offload, tmp_path)


@pytest.mark.usefixtures("no_weights_read")
def test_a_part_of_a_model(tmp_path: Path) -> None:
    tiny.VLM["llava"]().config.save_pretrained(tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())["text_config"]
    change_config(tmp_path, text_config={**text, "quantization_config": METHODS["awq"]})
    with pytest.raises(UserError, match="is quantised with awq"):
        VisionLanguage(path=str(tmp_path)).load(CPU, Selection())


@pytest.mark.parametrize(
    ("loader", "build"),
    [
        (Seq2Seq, tiny.SEQ2SEQ["t5"]),
        (Clip, tiny.DUAL["clip"]),
        (BlipVqa, tiny.BLIP["blip_vqa"][0]),
        (ImageClassifier, tiny.CLASSIFIER["vit"]),
        (VisionLanguage, tiny.VLM["llava"]),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
@pytest.mark.usefixtures("no_weights_read")
def test_every_loader(tmp_path: Path, loader: Any, build: Callable[[], Any]) -> None:
    build().config.save_pretrained(tmp_path)
    change_config(tmp_path, quantization_config=METHODS["gptq"])
    with pytest.raises(UserError, match="is quantised with gptq"):
        loader(path=str(tmp_path)).load(CPU, Selection())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int32], ids=str)
@pytest.mark.parametrize("offload", ["none", "disk"])
@pytest.mark.usefixtures("no_weights_read")
def test_weights_without_a_config(folder: Path, tmp_path: Path, dtype: torch.dtype, offload: str) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    change_weights(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(UserError, match=rf"is quantised: {name} in model\.safetensors has the dtype [IUF]\S+, and only weights in float32"):
        load_offloaded(CausalLM(path=str(folder)), CPU, Selection(), offload, tmp_path)


def quantise(tensors: dict[str, Tensor], block: int) -> dict[str, Tensor]:
    """Put every projection into 8-bit floats with a scale per block, and return what they stand for."""
    exact = {}
    for name in [name for name in tensors if "_proj" in name]:
        blocks = tensors[name].unflatten(0, (-1, block)).unflatten(2, (-1, block))  # [blocks, rows, blocks, columns]
        scale = blocks.abs().amax(dim=(1, 3)) / 448
        narrow = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        exact[name] = (narrow.float() * scale[:, None, :, None]).reshape(tensors[name].shape)
        tensors[name] = narrow.reshape(tensors[name].shape)
        tensors[f"{name}_scale_inv"] = scale
    return exact


needs_fp8 = pytest.mark.skipif(not _dequantises("fp8"), reason="this release of transformers does not dequantise FP8")


@needs_fp8
@pytest.mark.parametrize("offload", ["none", "cpu"])
def test_fp8_becomes_numbers(folder: Path, tmp_path: Path, offload: str) -> None:
    exact: dict[str, Tensor] = {}
    change_weights(folder, lambda tensors: exact.update(quantise(tensors, 8)))
    change_config(folder, quantization_config={"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [8, 8]})
    model = load_offloaded(CausalLM(path=str(folder)), CPU, Selection(), offload, tmp_path)
    assert {layer.name for layer in model.layers} == set(exact)
    with model.residence.at_home():
        for layer in model.layers:
            assert torch.allclose(layer.weight.float(), exact[layer.name], rtol=1e-2), "to the digits of the model's dtype"
        model.residence.save(model, tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    with model.residence.at_home():
        assert all(torch.equal(again.get_parameter(layer.name), layer.weight) for layer in model.layers)


@needs_fp8
@pytest.mark.usefixtures("no_weights_read")
def test_fp8_on_the_disk(folder: Path, tmp_path: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "fp8"})
    with pytest.raises(UserError, match=r"is quantised with fp8.*use runtime\.offload=cpu"):
        load_offloaded(CausalLM(path=str(folder)), CPU, Selection(), "disk", tmp_path)
