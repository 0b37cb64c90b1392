"""Weights that blocks share are pruned and saved where the blocks are offloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.prune.driver import prune
from ecoflap.prune.magnitude import Magnitude
from ecoflap.storage.checkpoint import write_checkpoint
from ecoflap.storage.file_names import MASKS
from ecoflap.storage.masks import load_masks
from ecoflap.storage.saved_model import open_checkpoint
from tests import hybrids, tiny
from tests.cli.conftest import tiny_llama  # noqa: F401 - a fixture
from tests.models.deep import offloaded


@pytest.mark.skipif(not hasattr(hf, "Zamba2ForCausalLM"), reason="a newer model")
@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_shared_weights_are_saved_pruned(offload: str, tiny_llama: Path, tmp_path: Path) -> None:
    """As those of Zamba 2's shared block; the hash of the weights changes with them."""
    module: Any = hybrids.build("zamba2").module
    module.save_pretrained(tmp_path / "dense")
    hf.AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "dense")
    model = offloaded(tmp_path / "dense", offload, tmp_path / "work")
    before = model.fingerprint()
    shared = [layer.name for layer in model.layers if "shared_transformer" in layer.name]
    report = prune(model, None, Magnitude(), WaterFilling()(model, None, 0.5), 2)
    write_checkpoint(model, report.masks, tmp_path / "saved")
    masks = load_masks(tmp_path / "saved" / MASKS, loaded=True)
    assert set(shared) <= set(masks)
    with open_checkpoint(tmp_path / "saved") as checkpoint:
        for name in shared:
            assert torch.equal(checkpoint.tensor(name) != 0, masks[name])
    pruned = model.fingerprint()
    with torch.no_grad():
        next(layer for layer in model.layers if layer.name == shared[0]).weight.zero_()
    assert len({before, pruned, model.fingerprint()}) == 3


@pytest.mark.skipif(not hasattr(hf.PreTrainedModel, "_tied_weights_keys"), reason="saves no tied weights")
def test_tied_embeddings_have_the_name_that_their_class_reads(tiny_llama: Path, tmp_path: Path) -> None:
    """Its head comes before the embeddings in XLM-RoBERTa, whose encoder alone reads only the latter."""
    size = {**tiny.SIZE, "intermediate_size": 24, "max_position_embeddings": 32}
    tokenizer = hf.AutoTokenizer.from_pretrained(tiny_llama)
    config = hf.XLMRobertaConfig(vocab_size=len(tokenizer), is_decoder=True, **size)
    hf.XLMRobertaForCausalLM(config).save_pretrained(tmp_path / "dense", safe_serialization=True)
    tokenizer.save_pretrained(tmp_path / "dense")
    model = offloaded(tmp_path / "dense", "disk", tmp_path / "work")
    write_checkpoint(model, None, tmp_path / "saved")
    with open_checkpoint(tmp_path / "dense") as dense, open_checkpoint(tmp_path / "saved") as saved:
        assert saved.names() == dense.names()
    encoder: Any = hf.XLMRobertaModel.from_pretrained(tmp_path / "saved", add_pooling_layer=False)
    module: Any = model.module
    assert torch.equal(encoder.get_input_embeddings().weight, module.get_input_embeddings().weight)
