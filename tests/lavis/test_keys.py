"""BLIP-2's weights under LAVIS' names and under transformers'."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ecoflap.errors import UserError
from ecoflap.models.families.lavis.keys import read_lavis_checkpoint, to_lavis, to_transformers
from tests import tiny

if "blip2_t5" not in tiny.FAMILIES:
    pytest.skip("the installed transformers has no BLIP-2", allow_module_level=True)


@pytest.fixture
def state() -> dict[str, Tensor]:
    """A transformers BLIP-2's, half of its weights zero, its keys without bias as in every published
    checkpoint.
    """
    state = {name: tensor.clone() for name, tensor in tiny.build("blip2_t5").module.state_dict().items()}
    for name, tensor in state.items():
        tensor[::2] = 0
        if name.endswith("qkv.bias"):
            tensor.chunk(3)[1].zero_()
    return state


def test_there_and_back_is_exact(state: dict[str, Tensor]) -> None:
    back = to_transformers(to_lavis(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    again = to_lavis(back)
    assert all(torch.equal(again[name], tensor) for name, tensor in to_lavis(state).items())


def test_lavis_names_are_those_of_lavis(state: dict[str, Tensor]) -> None:
    lavis = pytest.importorskip("tests.lavis.tiny", reason="salesforce-lavis is not installed here")
    shapes = {
        name: tensor.shape[1:]
        for name, tensor in lavis.module("blip2").state_dict().items()
        if not name.endswith("position_ids")
    }
    assert to_lavis(state).keys() == shapes.keys()


def test_a_few_names(state: dict[str, Tensor]) -> None:
    names = to_lavis(state)
    for name in (
        "query_tokens",
        "visual_encoder.blocks.1.attn.q_bias",
        "visual_encoder.blocks.0.mlp.fc2.weight",
        "ln_vision.weight",
        "Qformer.bert.embeddings.LayerNorm.bias",
        "Qformer.bert.encoder.layer.0.crossattention.self.key.weight",
        "Qformer.bert.encoder.layer.1.output_query.dense.weight",
        "t5_model.decoder.block.1.layer.1.EncDecAttention.k.weight",
        "t5_proj.bias",
    ):
        assert name in names


def test_parts_and_zeros(state: dict[str, Tensor]) -> None:
    part = {name: tensor for name, tensor in to_lavis(state).items() if name.startswith("t5_model.")}
    renamed = to_transformers({**part, "Qformer.bert.embeddings.position_ids": torch.arange(4)[None]})
    assert set(renamed) == {name for name in state if name.startswith("language_model.")}
    zeros = sum(int((tensor == 0).sum()) for tensor in part.values())
    assert zeros == sum(int((tensor == 0).sum()) for tensor in renamed.values())


def test_what_does_not_fit_is_refused(state: dict[str, Tensor]) -> None:
    name = next(name for name in state if name.endswith("qkv.bias"))
    with pytest.raises(UserError, match=f"{name} holds a bias of the keys"):
        to_lavis({name: torch.ones_like(state[name])})
    with pytest.raises(UserError, match=r"opt_model\.x is not a weight of a BLIP-2 with T5"):
        to_transformers({"opt_model.x": torch.zeros(1)})
    for one, other in (("q_bias", "v_bias"), ("v_bias", "q_bias")):
        with pytest.raises(UserError, match=rf"has visual_encoder\.blocks\.0\.attn\.{one} and no .*{other}"):
            to_transformers({f"visual_encoder.blocks.0.attn.{one}": torch.zeros(2)})


def test_files(state: dict[str, Tensor], tmp_path: Path) -> None:
    tensors = {
        name: tensor.contiguous() for name, tensor in to_lavis(state).items() if "embed_tokens" not in name
    }
    torch.save({"model": tensors, "epoch": 3}, tmp_path / "wrapped.pth")
    torch.save(tensors, tmp_path / "bare.pth")
    save_file(tensors, tmp_path / "file.safetensors")
    for name in ("wrapped.pth", "bare.pth", "file.safetensors"):
        found = read_lavis_checkpoint(tmp_path / name)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())


def test_files_that_are_none(tmp_path: Path) -> None:
    for name, content in (("list.pth", [1]), ("empty.pth", {}), ("mixed.pth", {"model": {"a": 1}})):
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=f"model.checkpoint={tmp_path / name} holds no state dict"):
            read_lavis_checkpoint(tmp_path / name)
    torch.save({"model": Path("x")}, tmp_path / "object.pth")  # never unpickled
    (tmp_path / "text.pth").write_text("no")
    (tmp_path / "text.safetensors").write_text("no")
    for name in ("object.pth", "text.pth", "text.safetensors"):
        with pytest.raises(UserError, match=f"model.checkpoint={tmp_path / name} can't be read"):
            read_lavis_checkpoint(tmp_path / name)
    with pytest.raises(UserError, match=r"teacher=nowhere\.pth: there is no such file"):
        read_lavis_checkpoint("nowhere.pth", "teacher")
