"""Checkpoints in LAVIS' format: what we write LAVIS reads, what LAVIS writes we read, and nothing may be
missing.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.lavis.blip2 import LavisBlip2
from ecoflap.models.families.lavis.nlvr import LavisNlvr
from ecoflap.storage.saved_model import LAVIS
from tests.lavis import tiny

CPU = torch.device("cpu")


def loader(family: str, folder: Path, **options: Any) -> LavisBlip2 | LavisNlvr:
    if family == "blip2":
        return LavisBlip2(
            "pretrain_flant5xl", str(tiny.t5_tokenizer(folder / "t5")), architecture=tiny.BLIP2, **options
        )
    return LavisNlvr("nlvr", str(tiny.bert_tokenizer(folder / "bert")), architecture=tiny.NLVR, **options)


def weights(model: PrunableModel) -> str:
    """A hash without the tokenizer, which the tiny models lack."""
    return PrunableModel(**{**vars(model), "processor": None, "interface": None}).fingerprint()


def load(family: str, folder: Path, state: dict[str, Tensor], **options: Any) -> PrunableModel:
    torch.save({"model": state}, folder / "given.pth")
    return loader(family, folder, checkpoint=str(folder / "given.pth"), **options).load(CPU, Selection())


@pytest.mark.parametrize("family", tiny.MODULES)
def test_lavis_reads_what_we_write(family: str, tmp_path: Path) -> None:
    model = load(family, tmp_path, tiny.module(family).state_dict())
    with torch.no_grad():
        for layer in model.layers:
            layer.weight[::2] = 0
    model.save(tmp_path)
    other: Any = tiny.module(family, seed=5)
    report = other.load_checkpoint(str(tmp_path / LAVIS))  # LAVIS' own
    assert not report.missing_keys
    assert not report.unexpected_keys
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert (
        sum(int((layer.weight == 0).sum()) for layer in model.layers)
        >= sum(layer.size for layer in model.layers) // 2
    )


@pytest.mark.parametrize("family", tiny.MODULES)
def test_we_read_what_lavis_holds(family: str, tmp_path: Path) -> None:
    module = tiny.module(family)
    model = load(family, tmp_path, module.state_dict())
    assert not model.module.training
    assert weights(model) == weights(tiny.build(family))
    batch = tiny.samples(family).batches(2)[0]
    assert torch.equal(model.loss(batch), tiny.build(family).loss(batch))
    model.save(tmp_path / "again")
    again = loader(family, tmp_path, checkpoint=str(tmp_path / "again" / LAVIS)).load(CPU, Selection())
    assert again.fingerprint() == model.fingerprint()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", tiny.MODULES)
def test_half_precision_computes(family: str, dtype: str, tmp_path: Path) -> None:
    model = load(family, tmp_path, tiny.module(family).state_dict(), dtype=dtype)
    assert model.layers[0].weight.dtype == getattr(torch, dtype)
    batch = tiny.samples(family).batches(2)[0]
    torch.testing.assert_close(model.loss(batch), tiny.build(family).loss(batch), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("family", tiny.MODULES)
def test_an_incomplete_or_foreign_checkpoint_is_refused(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tiny.module(family).state_dict()
    name = next(name for name in state if name.endswith("mlp.fc1.weight"))
    with pytest.raises(UserError, match=f"lacks 1 weights of its model, such as {name}"):
        load(family, tmp_path, {other: tensor for other, tensor in state.items() if other != name})
    with pytest.raises(UserError, match=f"does not fit model.architecture: size mismatch for {name}"):
        load(family, tmp_path, {**state, name: torch.zeros(3, 3)})
    with pytest.raises(UserError, match=r"lacks .* weights"):
        load(family, tmp_path, {f"module.{other}": tensor for other, tensor in state.items()})
    load(family, tmp_path, {**state, "visual_encoder.alpha": torch.ones(1)})
    assert "1 tensors are not part of the model, such as visual_encoder.alpha" in caplog.text


def test_tied_names_may_be_left_out(tmp_path: Path) -> None:
    state = tiny.module("blip2").state_dict()
    for name in (
        "t5_model.encoder.embed_tokens.weight",
        "t5_model.decoder.embed_tokens.weight",
        "Qformer.bert.embeddings.position_ids",
    ):
        del state[name]
    assert weights(load("blip2", tmp_path, state)) == weights(tiny.build("blip2"))


@pytest.mark.parametrize("family", tiny.MODULES)
def test_weights_that_lavis_downloads(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lavis.models import Blip2T5, BlipNLVR

    kind = {"blip2": Blip2T5, "nlvr": BlipNLVR}[family]
    monkeypatch.setattr(
        kind, "from_pretrained", classmethod(lambda cls, model_type: copy.deepcopy(tiny.module(family)))
    )
    assert weights(loader(family, tmp_path).load(CPU, Selection())) == weights(tiny.build(family))

    def offline(cls: Any, model_type: str) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr(kind, "from_pretrained", classmethod(offline))
    with pytest.raises(
        UserError, match=r"could not download model\.model_type=.*no route to host.*model\.checkpoint=FILE"
    ):
        loader(family, tmp_path).load(CPU, Selection())


def test_unknown_model_type_and_tokenizer(tmp_path: Path) -> None:
    import dataclasses

    known = loader("blip2", tmp_path)
    with pytest.raises(UserError, match=r"pretrain_opt is not known to LAVIS; it has pretrain_flant5xl"):
        dataclasses.replace(known, model_type="pretrain_opt").load(CPU, Selection())
    with pytest.raises(UserError, match=r"model\.tokenizer=some/tokenizer could not be loaded"):
        dataclasses.replace(known, tokenizer="some/tokenizer").load(CPU, Selection())
