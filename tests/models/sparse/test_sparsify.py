"""Which layers of a model become sparse, and what happens where none can."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

import ecoflap
from ecoflap.errors import UserError
from ecoflap.models.sparse import library, sparsify
from ecoflap.models.sparse.linear import SparseLinear
from ecoflap.storage.results.sparsity import LEAST_WEIGHTS
from tests import tiny

pytestmark = pytest.mark.long

if not hasattr(hf, "LlamaConfig"):
    pytest.skip("this release of transformers has no LLaMA", allow_module_level=True)


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsify, "LEAST_WEIGHTS", 1)


@pytest.fixture
def compiled_anew(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile at each call, after what ``dtype`` has found."""
    monkeypatch.setattr(library, "compiled", library.compiled.__wrapped__)


@torch.no_grad()
def half_empty(module: nn.Module) -> nn.Module:
    """Half of the weights of every linear layer but the head set to zero."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and "lm_head" not in name:
            layer.weight[:, ::2] = 0
    return module.eval()


def llama(dtype: torch.dtype = torch.float32) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    config = hf.LlamaConfig(**{**tiny.LLAMA, "pad_token_id": 3}, tie_word_embeddings=True)
    return half_empty(hf.LlamaForCausalLM(config).to(dtype))  # type: ignore[return-value]


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("form", ["dense", "bitmask", "coded"])
def test_a_loaded_model_is_sparse_and_writes_the_same(form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    dense: Any = llama(dtype)
    ecoflap.save(ecoflap.load(dense), tmp_path, form=form)
    loaded: Any = ecoflap.load_pruned(tmp_path, sparse=True)
    kinds = {
        name: type(layer) for name, layer in loaded.named_modules() if name.endswith(("proj", "lm_head"))
    }
    assert not any(module.training for module in loaded.modules())
    assert kinds.pop("lm_head") is nn.Linear
    assert set(kinds.values()) == {SparseLinear}
    assert len(kinds) == sum(name.endswith("proj") for name, _ in dense.named_modules())
    assert loaded.state_dict().keys() == dense.state_dict().keys()
    ids = torch.arange(5, 11)[None]
    room = 1e-5 if dtype == torch.float32 else 0.02
    for tokens in (ids, ids.repeat(4, 1)):  # few, and as many as a prompt has
        found, expected = (model(input_ids=tokens).logits.detach() for model in (loaded, dense))
        assert torch.allclose(found, expected, atol=room, rtol=room)
    if dtype == torch.float32:
        texts = [model.generate(ids, max_new_tokens=6, do_sample=False) for model in (loaded, dense)]
        assert torch.equal(*texts)


@pytest.mark.usefixtures("any_size")
def test_a_layer_whose_weight_is_read_elsewhere_stays_dense(dtype: torch.dtype) -> None:
    """T5 asks for the dtype of ``wo.weight`` at every call."""
    module = half_empty(hf.T5ForConditionalGeneration(hf.T5Config(**tiny.T5)).to(dtype))
    assert sparsify.sparsify(module)
    kinds = {type(layer) for name, layer in module.named_modules() if name.endswith(".wo")}
    assert kinds == {nn.Linear}


def test_small_and_full_layers_and_other_classes_stay_dense(dtype: torch.dtype) -> None:
    class Own(nn.Linear):
        """A layer that may compute something else."""

    rows = LEAST_WEIGHTS // 64
    fitting, small, full = nn.Linear(64, rows), nn.Linear(64, rows - 1), nn.Linear(64, rows)
    own = Own(64, rows)
    module = nn.ModuleDict({"fitting": fitting, "small": small, "full": full, "own": own}).to(dtype)
    with torch.no_grad():
        for layer in (fitting, small, own):
            layer.weight[:, :20] = 0  # 31 %
        full.weight[:, :19] = 0  # 29.7 %
    assert sparsify.sparsify(module) == 1
    assert [name for name, one in module.items() if isinstance(one, SparseLinear)] == ["fitting"]
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    assert frozen == ["fitting.bias"]


@pytest.mark.usefixtures("any_size")
def test_layers_with_hooks_or_a_forward_of_their_own_stay_dense(dtype: torch.dtype) -> None:
    """Another layer would be without them."""
    module = nn.ModuleList(nn.Linear(8, 8) for _ in range(5)).to(dtype)
    half_empty(module)
    module[0].register_forward_hook(lambda layer, inputs, output: output + 1)
    module[1].register_forward_pre_hook(lambda layer, inputs: None)
    module[2].register_full_backward_hook(lambda layer, inputs, output: None)
    module[3].forward = lambda input: input
    assert sparsify.sparsify(module) == 1
    assert [type(layer) for layer in module] == [*4 * [nn.Linear], SparseLinear]


@pytest.mark.usefixtures("any_size", "compiled_anew")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("CC", "no-such-compiler"), "need gcc"),
        (("CC", "false"), "can't compile"),
        (("COMPILE", "-D__builtin_cpu_supports(name)=0"), "lacks the instructions"),
    ],
)
@pytest.mark.any_release
def test_without_a_compiler_or_the_instructions_it_stays_dense(
    change: tuple[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    dtype: torch.dtype,
) -> None:
    name, value = change
    if name == "CC":
        monkeypatch.setenv(name, value)
    else:
        monkeypatch.setattr(library, name, (*library.COMPILE, value))
    library.products.cache_clear()
    module = llama(dtype)
    with pytest.raises(UserError, match=message):
        sparsify.sparsify(module)
    ecoflap.save(ecoflap.load(module), tmp_path, form="bitmask")
    with caplog.at_level(logging.WARNING):
        loaded = ecoflap.load_pruned(tmp_path, sparse=True)
    assert message in caplog.text
    assert "stay dense" in caplog.text
    assert not any(isinstance(layer, SparseLinear) for layer in loaded.modules())


def test_what_can_not_be_sparse_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = llama(torch.float16)
    ecoflap.save(ecoflap.load(module), tmp_path)
    with pytest.raises(UserError, match="is for the CPU"):
        ecoflap.load_pruned(tmp_path, device="meta", sparse=True)
    with caplog.at_level(logging.WARNING):
        ecoflap.load_pruned(tmp_path, sparse=True)
    assert "no linear layer has 32,768 weights" in caplog.text, "all of the layers are small"


@pytest.mark.usefixtures("any_size")
def test_half_precision_of_ieee_has_no_product() -> None:
    with pytest.raises(UserError, match=r"no sparse product for torch\.float16"):
        sparsify.sparsify(llama(torch.float16))


@pytest.mark.usefixtures("any_size")
def test_into_a_model_of_ones_own(dtype: torch.dtype, tmp_path: Path) -> None:
    module: Any = llama(dtype)
    ecoflap.save(ecoflap.load(module), tmp_path, form="coded")
    own: Any = hf.LlamaForCausalLM(module.config)
    assert ecoflap.load_pruned(tmp_path, own, sparse=True) is own
    assert isinstance(own.model.layers[0].mlp.up_proj, SparseLinear)


@pytest.mark.usefixtures("any_size")
def test_a_sparse_model_is_not_pruned(dtype: torch.dtype, tmp_path: Path) -> None:
    """A pruner would find the weights of its other layers alone."""
    ecoflap.save(ecoflap.load(llama(dtype)), tmp_path, form="bitmask")
    with pytest.raises(UserError, match=r"loaded with sparse=True.*load_pruned\(folder\)"):
        ecoflap.load(ecoflap.load_pruned(tmp_path, sparse=True))
