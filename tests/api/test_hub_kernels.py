"""A model whose operations the Hub's kernels compute is pruned as one without them, and gets them back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import ecoflap
from ecoflap.models.core.hub_kernels import remove_kernels
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.families.language.causal_lm import CausalLM
from ecoflap.models.loading.pretrained_weights import load_weights
from ecoflap.storage.results import Result
from tests import tiny
from tests.cli.conftest import run, text_run, tiny_llama, token_file  # noqa: F401  (fixtures)

TRAINED = "steps=[calibrate,score,allocate,prune,finetune,evaluate]"
by_default = pytest.mark.skipif(
    not hasattr(hf.PreTrainedModel, "reset_kernels"), reason="this transformers uses kernels only when asked"
)


class Kernel(nn.Module):
    """An activation for inference, where gradients end, and that tests tell from the model's own."""

    has_backward = False

    def forward(self, inputs: Tensor) -> Tensor:
        return 0.9 * nn.functional.silu(inputs.detach())


def llama() -> Any:
    torch.manual_seed(0)
    return tiny.LANGUAGE["llama"]().eval()


def activation(module: Any) -> Any:
    return module.model.layers[0].mlp.act_fn


def check(module: Any) -> None:
    """Prune a model with kernels by gradients, as one without, and find its kernels where they were."""
    plain = llama()
    plain.load_state_dict(module.state_dict())
    kernels = {name: vars(child).get("forward") for name, child in module.named_modules()}
    assert vars(activation(module))["forward"].__func__ is Kernel.forward
    data = [{"input_ids": torch.randint(3, 30, (6, 9), generator=torch.Generator().manual_seed(1))}]
    method: dict[str, Any] = {"sparsity": 0.5, "score": "first_order", "allocation": "water_filling"}
    wanted, found = (ecoflap.prune(one, data=data, **method) for one in (plain, module))
    assert wanted.allocation.sparsity == found.allocation.sparsity
    assert found.masks.keys() == wanted.masks.keys()
    assert all(torch.equal(found.masks[name], mask) for name, mask in wanted.masks.items())
    assert {name: vars(child).get("forward") for name, child in module.named_modules()} == kernels
    assert vars(module)["_use_kernels"]


def test_they_are_removed_while_a_model_is_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    module = llama()
    module._use_kernels = True
    monkeypatch.setattr(type(activation(module)), "kernel_layer_name", "SiLU", raising=False)
    for layer in module.model.layers:
        layer.mlp.act_fn.forward = MethodType(Kernel.forward, layer.mlp.act_fn)
    check(module)


def test_those_of_functions_are_removed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    module, rotary = llama(), nn.Identity()
    monkeypatch.setattr(nn.Identity, "kernel_layer_name", "rotary_pos_emb", raising=False)
    rotary.forward = MethodType(Kernel.forward, rotary)  # type: ignore[method-assign]
    module.model.layers[0].self_attn._kernel_funcs = {"rotary_fn": rotary}
    seen: list[bool] = []
    ecoflap.evaluate(ecoflap.load(module), lambda _: seen.append("forward" in vars(rotary)) or 0.0)
    assert seen == [False]
    assert "forward" in vars(rotary)


def test_another_forward_is_left() -> None:
    module = llama()
    own = module.model.layers[0].mlp.forward
    module.model.layers[0].mlp.forward = own
    remove_kernels(module)
    assert vars(module.model.layers[0].mlp)["forward"] is own


@pytest.mark.parametrize("method", [["score=first_order"], ["score=none", TRAINED, "finetune=reconstruct"]])
def test_those_of_a_loader_of_ones_own(
    run: Callable[..., Result],
    text_run: list[str],
    method: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    loaded = CausalLM.load

    def load(*given: Any) -> PrunableModel:
        model = loaded(*given)
        function = activation(model.module)
        monkeypatch.setattr(type(function), "kernel_layer_name", "SiLU", raising=False)
        function.forward = MethodType(Kernel.forward, function)
        return model

    plain = run([*text_run, *method])
    monkeypatch.setattr(CausalLM, "load", load)
    found = run([*text_run, *method, f"cache={tmp_path / 'other'}"], "kernels")
    assert found.scores == plain.scores
    assert found.metrics == plain.metrics


@by_default
def test_real_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernels = pytest.importorskip("kernels")
    from transformers.integrations import hub_kernels

    class Repository:
        """A source of the kernel, as those of the Hub are."""

        def load(self) -> type[nn.Module]:
            return Kernel

    mapping = copy.copy(hub_kernels.get_kernel_mapping_transformers())
    mapping["SiLU"] = {"cpu": {kernels.Mode.INFERENCE: Repository()}}
    monkeypatch.setattr(hub_kernels, "get_kernel_mapping_transformers", lambda: mapping)
    llama().save_pretrained(tmp_path)
    with kernels.use_kernel_mapping({}):  # what transformers registers ends here, not with the process
        module = hf.LlamaForCausalLM.from_pretrained(tmp_path)
    check(module)


@by_default
def test_a_loaded_model_has_none(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    module: Any = load_weights(hf.LlamaForCausalLM, str(tmp_path), None, {})
    assert not module.use_kernels
    assert "forward" not in vars(activation(module))
