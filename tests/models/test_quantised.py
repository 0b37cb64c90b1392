"""Quantised checkpoints are dequantised where transformers does it by itself, and refused in one line before
anything is loaded elsewhere.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from ecoflap.errors import UserError
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.blip.text import BlipVqa
from ecoflap.models.families.clip.clip import Clip
from ecoflap.models.families.language.causal_lm import CausalLM
from ecoflap.models.families.language.seq2seq import Seq2Seq
from ecoflap.models.families.vision.image_classifier import ImageClassifier
from ecoflap.models.families.vlm.vlm import VisionLanguage
from ecoflap.models.loading.quantised import _dequantises
from ecoflap.models.offload.load import load_offloaded
from tests import tiny
from tests.cli.conftest import tiny_llama  # noqa: F401 - a fixture
from tests.models.test_conversion import make

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
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the tiny LLaMA, to be spoilt."""
    return shutil.copytree(request.getfixturevalue("tiny_llama"), tmp_path / "model")


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
    with pytest.raises(
        UserError,
        match=rf"model\.path=\S+ is quantised with {method}.*give the checkpoint that it was made from",
    ):
        load_offloaded(CausalLM(path=str(folder)), CPU, Selection(), offload, tmp_path)


@pytest.mark.usefixtures("no_weights_read")
def test_a_part_of_a_model(tmp_path: Path) -> None:
    make(tiny.VLM["llava"]).config.save_pretrained(tmp_path)
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
    make(build).config.save_pretrained(tmp_path)
    change_config(tmp_path, quantization_config=METHODS["gptq"])
    with pytest.raises(UserError, match="is quantised with gptq"):
        loader(path=str(tmp_path)).load(CPU, Selection())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int32], ids=str)
@pytest.mark.parametrize("offload", ["none", "disk"])
@pytest.mark.usefixtures("no_weights_read")
def test_weights_without_a_config(folder: Path, tmp_path: Path, dtype: torch.dtype, offload: str) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    change_weights(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(
        UserError,
        match=(
            rf"is quantised: {name} in model\.safetensors has the dtype [IUF]\S+, and only weights in float32"
        ),
    ):
        load_offloaded(CausalLM(path=str(folder)), CPU, Selection(), offload, tmp_path)


def quantise(tensors: dict[str, Tensor], block: int) -> dict[str, Tensor]:
    """Put every projection into 8-bit floats with a scale per block, and return what they stand for."""
    exact = {}
    for name in [name for name in tensors if "_proj" in name]:
        rows, columns = tensors[name].shape
        whole = torch.nn.functional.pad(tensors[name], (0, -columns % block, 0, -rows % block))
        blocks = whole.unflatten(0, (-1, block)).unflatten(2, (-1, block))  # [blocks, rows, blocks, columns]
        scale = blocks.abs().amax(dim=(1, 3)) / 448
        narrow = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        exact[name] = (narrow.float() * scale[:, None, :, None]).reshape(whole.shape)[:rows, :columns]
        tensors[name] = narrow.reshape(whole.shape)[:rows, :columns].contiguous()
        tensors[f"{name}_scale_inv"] = scale
    return exact


needs_fp8 = pytest.mark.skipif(
    not _dequantises("fp8"), reason="this release of transformers does not dequantise FP8"
)


@needs_fp8
@pytest.mark.parametrize("offload", ["none", "cpu"])
def test_fp8_becomes_numbers(folder: Path, tmp_path: Path, offload: str) -> None:
    exact: dict[str, Tensor] = {}
    change_weights(folder, lambda tensors: exact.update(quantise(tensors, 8)))
    change_config(
        folder,
        quantization_config={
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [8, 8],
        },
    )
    model = load_offloaded(CausalLM(path=str(folder)), CPU, Selection(), offload, tmp_path)
    assert {layer.name for layer in model.layers} == set(exact)
    with model.placement.all_in_place():
        for layer in model.layers:
            assert torch.allclose(layer.weight.float(), exact[layer.name], rtol=1e-2), (
                "to the digits of the model's dtype"
            )
        model.placement.save(model, tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    with model.placement.all_in_place():
        assert all(torch.equal(again.get_parameter(layer.name), layer.weight) for layer in model.layers)


@needs_fp8
@pytest.mark.parametrize(
    ("block", "lost", "what"),
    [
        (24, "", r"in blocks of 24 that model\.layers\.0\.mlp\.down_proj\.weight \(16 x 32\) does not fill"),
        (
            8,
            "model.layers.1.mlp.up_proj.weight_scale_inv",
            r"without scales of model\.layers\.1\.mlp\.up_proj",
        ),
    ],
    ids=["blocks", "scales"],
)
@pytest.mark.usefixtures("no_weights_read")
def test_fp8_that_transformers_would_take_for_other_numbers(
    folder: Path, block: int, lost: str, what: str
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        quantise(tensors, block)
        tensors.pop(lost, None)

    change_weights(folder, change)
    change_config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [block, block]})
    with pytest.raises(UserError, match=rf"is quantised with fp8,? {what}"):
        CausalLM(path=str(folder)).load(CPU, Selection())


FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def number(blocks: Tensor, scales: Tensor, expert: int, row: int, column: int) -> float:
    """One weight of MXFP4: 32 numbers share an exponent, two are in a byte, the first in its lower half."""
    group, place = divmod(column, 32)
    byte = int(blocks[expert, row, group, place // 2])
    return FP4[byte >> 4 if place % 2 else byte & 15] * 2.0 ** (int(scales[expert, row, group]) - 127)


@pytest.mark.skipif(
    not _dequantises("mxfp4"), reason="this release of transformers does not dequantise MXFP4"
)
def test_mxfp4_becomes_numbers(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {**tiny.LLAMA, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = hf.GptOssConfig(
        num_local_experts=2,
        num_experts_per_tok=1,
        head_dim=16,
        num_key_value_heads=1,
        sliding_window=4,
        **sizes,
    )
    hf.GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "oss")
    hf.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "oss")
    packed: dict[str, tuple[Tensor, Tensor]] = {}

    def pack(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
            experts, columns, rows = tensors.pop(name).shape  # the model keeps the transpose
            draw = lambda low, high, *shape: torch.randint(low, high, shape, dtype=torch.uint8)
            packed[name] = (
                draw(0, 256, experts, rows, columns // 32, 16),
                draw(120, 128, experts, rows, columns // 32),
            )
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = packed[name]

    change_weights(tmp_path / "oss", pack)
    change_config(tmp_path / "oss", quantization_config={"quant_method": "mxfp4"})
    module: Any = CausalLM(path=str(tmp_path / "oss")).load(CPU, Selection()).module
    assert len(packed) == 2
    for name, (blocks, scales) in packed.items():
        found = module.get_parameter(name)
        assert found.dtype == torch.bfloat16
        for expert, column, row in torch.cartesian_prod(*map(torch.arange, found.shape)).tolist():
            assert found[expert, column, row] == number(blocks, scales, expert, row, column)


@needs_fp8
@pytest.mark.usefixtures("no_weights_read")
def test_fp8_on_the_disk(folder: Path, tmp_path: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "fp8"})
    with pytest.raises(UserError, match=r"is quantised with fp8.*use runtime\.offload=cpu"):
        load_offloaded(CausalLM(path=str(folder)), CPU, Selection(), "disk", tmp_path)
