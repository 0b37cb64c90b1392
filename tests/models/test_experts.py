"""Opened experts compute what transformers' do, and each of their matrices is a layer like any other."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from ecoflap.blocks.layer_calls import require_calls
from ecoflap.errors import UserError
from ecoflap.models.core.expert_slices import OPENED, ExpertSlice, all_slices, slices_of
from ecoflap.models.core.experts import open_experts
from ecoflap.models.core.forward_modes import in_float32, quiet_forward
from ecoflap.models.core.towers import Selection
from ecoflap.models.loading.loader import prunable
from tests import experts as experts_of
from tests.experts import as_published, noting_inputs

EXPERTS, TOKENS, FEATURES = 4, 11, 16
SETTINGS = {
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "moe_num_experts": EXPERTS,
    "hidden_size": FEATURES,
    "moe_hidden_size": FEATURES,
    "moe_latent_size": None,
    "intermediate_size": 8,
    "moe_intermediate_size": 8,
    "ffn_hidden_size": 8,
    "expert_ffn_hidden_size": 8,
    "zero_expert_num": 2,
    "ffn_act_fn": {},
    "hidden_act": "silu",
    "hidden_activation": "gelu",
    "mlp_hidden_act": "relu2",
    "swiglu_limit": 1.0,
    "swiglu_limits": [1.0],
    "limit_after_act": True,
    "swiglu_alpha": 1.7,
    "mlp_gate_softcap": 2.0,
    "mlp_up_softcap": 2.0,
    "post_norm_eps": 1e-5,
    "rms_norm_eps": 1e-5,
    "_experts_implementation": "eager",
}
DECORATED = re.compile(
    r"@use_experts_implementation[^\n]*\nclass (\w+)\(.*?(?=\n(?:class |def |@|\Z))", re.DOTALL
)


def kinds() -> list[str]:
    """One class of transformers per way to write experts that compute through its interface."""
    found: dict[str, str] = {}
    for file in sorted((Path(hf.__file__).parent / "models").glob("*/modeling_*.py")):
        for match in DECORATED.finditer(file.read_text(encoding="utf-8")):
            body = re.sub(
                r'""".*?"""|#[^\n]*|: \w+Config|\s+', "", match[0].split("__init__", 1)[1], flags=re.DOTALL
            )
            found.setdefault(body, f"{file.parent.name}.{file.stem}.{match[1]}")
    found = {body: kind for body, kind in found.items() if not kind.endswith("ErgoExpertProjections")}
    others = (
        "dbrx.modeling_dbrx.DbrxExperts",
        "llama4.modeling_llama4.Llama4TextExperts",
        "longcat_flash.modeling_longcat_flash.LongcatFlashExperts",
        "step3p7.modeling_step3p7.Step3p7Experts",
    )
    others += ("ergo.modeling_ergo.ErgoExperts",) if hasattr(hf, "ErgoConfig") else ()
    return [*found.values(), *others] if found else []


def build(kind: str) -> Any:
    file, _, name = kind.rpartition(".")
    made = getattr(importlib.import_module(f"transformers.models.{file}"), name)
    numbered = "layer_idx" in inspect.signature(made.__init__).parameters
    experts = made(SimpleNamespace(**SETTINGS), **({"layer_idx": 0} if numbered else {}))
    torch.manual_seed(0)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.5)
    return experts.eval().requires_grad_(False)


def arguments(kind: str) -> tuple[Tensor, ...]:
    """What a router gives experts: the last one sees no token."""
    hidden, scores = torch.randn(TOKENS, FEATURES), torch.rand(TOKENS, EXPERTS - 1)
    weights, index = scores.topk(2)
    weights[1, 0] = 0  # which leaves the token out
    if "Longcat" in kind:
        index[0, 0] = EXPERTS  # which returns what it reads
    if "Llama4" in kind:
        routed = torch.zeros(TOKENS, EXPERTS).scatter(1, index, weights).t().reshape(-1, 1)
        return (hidden.repeat(EXPERTS, 1) * routed,)
    return (hidden[None] if "Dbrx" in kind else hidden), index, weights


def gram(inputs: Tensor) -> Tensor:
    """The sum of x x^T, whatever the order of the tokens."""
    return inputs.t() @ inputs


@pytest.mark.parametrize("kind", kinds())
def test_same_output_as_published_and_inputs_of_routed_tokens_alone(kind: str) -> None:
    experts = build(kind)
    given, seen = arguments(kind), {}
    expected = experts(*given)
    open_experts(experts)
    for one in all_slices(experts):
        one.register_forward_pre_hook(lambda one, inputs: seen.setdefault(one, inputs[0]))
    torch.testing.assert_close(experts(*given), expected, rtol=1e-5, atol=1e-6)
    read: dict[ExpertSlice, Tensor] = {}
    with noting_inputs(experts, lambda one, inputs: read.setdefault(one, inputs)):
        experts(*given)
    assert read.keys() == seen.keys()
    assert {one.index for one in seen} == set(range(EXPERTS - 1))
    for one, inputs in read.items():
        torch.testing.assert_close(gram(seen[one].double()), gram(inputs), rtol=1e-5, atol=1e-5)


def test_a_forward_around_the_interface_is_not_replaced() -> None:
    file = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    kind = getattr(file, "MixtralExperts", None)
    if kind is None:
        pytest.skip("each expert is a module of its own")

    class Doubled(kind):  # type: ignore[misc]
        def forward(self, *given: Tensor) -> Tensor:
            return 2 * super().forward(*given)  # type: ignore[no-any-return]

    experts = Doubled(SimpleNamespace(**SETTINGS))
    open_experts(experts)
    assert not list(all_slices(experts))


FAMILIES = pytest.mark.parametrize("family", experts_of.FAMILIES)


@FAMILIES
def test_layers_cover_all_weights_of_experts_under_names_of_the_parameters(family: str) -> None:
    model = experts_of.build(family)
    parameters = dict(model.module.named_parameters())
    covered: dict[str, int] = {}
    for layer in model.layers:
        assert layer.parameter is parameters[layer.parameter_name]
        covered[layer.parameter_name] = covered.get(layer.parameter_name, 0) + layer.size
    shared = {layer.parameter_name for layer in model.layers if layer.is_expert}
    assert all(covered[name] == parameters[name].numel() for name in covered)
    assert len(shared) == len({name for name in shared if re.search(r"experts\.(mlp\.)?\w+$", name)})
    assert set(model.dense_in_blocks()) <= {"router", "biases of experts"}
    assert not any("expert" in name and "_slices" in name for name in model.module.state_dict())


def test_skipped_experts_stay_dense_and_are_counted() -> None:
    model = experts_of.build("mixtral")
    size = next(layer.size for layer in model.layers if layer.name.endswith("gate_up_proj.1"))
    selection = Selection(None, [r"gate_up_proj\.[12]$"])
    chosen = prunable("mixtral", model.module, None, model.loss_function, selection)
    skipped = {one.name: one for one in chosen.skipped if one.reason == "matches skip_layers"}
    assert {one.size for one in skipped.values()} == {2 * size}
    assert all(name.endswith("experts.gate_up_proj") for name in skipped)


@FAMILIES
def test_slices_follow_their_parameters(family: str) -> None:
    model = experts_of.build(family)
    layers = [layer for layer in model.layers if layer.is_expert]
    views = [layer.weight for layer in layers]

    def check() -> None:
        for layer, view in zip(layers, views, strict=True):
            assert layer.weight is view
            assert torch.equal(view, layer.part(layer.parameter.data))
            assert view.data_ptr() == layer.part(layer.parameter.data).data_ptr()

    check()
    model.module.bfloat16()
    check()
    with in_float32(model.module):
        assert all(view.dtype == torch.float32 for view in views)
        check()
        layers[0].write(torch.full(layers[0].shape, 2.0))
    assert all(view.dtype == torch.bfloat16 for view in views)
    check()
    assert bool((layers[0].part(layers[0].parameter) == 2).all())
    check_copy = copy.deepcopy(model)
    layers[0].write(torch.zeros(layers[0].shape))
    other = next(layer for layer in check_copy.layers if layer.name == layers[0].name)
    assert bool((other.weight == 2).all()), "a copy has weights of its own"


@FAMILIES
def test_an_opened_model_can_be_pickled(family: str) -> None:
    module = experts_of.build(family).module
    if not experts_of.can_be_pickled(module):
        pytest.skip("the package kernels adds functions to the model that can't be pickled")
    copied = pickle.loads(pickle.dumps(module))
    for one, other in zip(all_slices(module), all_slices(copied), strict=True):
        assert torch.equal(one.weight, other.weight)
        assert one.weight.data_ptr() != other.weight.data_ptr()
        assert other.weight.data_ptr() == other.part(other.whole.data).data_ptr()


@FAMILIES
def test_gradients_of_slices_are_slices_of_the_gradient(family: str) -> None:
    model, other = experts_of.build(family), experts_of.build(family)
    batch = experts_of.samples(9).batches(1)[0]
    with as_published(other.module):
        other.loss(batch).mean().backward()
    with quiet_forward(model.module):
        for layer in model.layers:
            layer.weight.requires_grad_(True)
        model.loss(batch).mean().backward()
    for layer, expected in zip(model.layers, other.layers, strict=True):
        whole = expected.parameter.grad
        found = torch.zeros_like(layer.weight) if layer.weight.grad is None else layer.weight.grad
        if whole is not None:
            torch.testing.assert_close(found, expected.part(whole), rtol=1e-3, atol=1e-5)
    assert not any(layer.weight.requires_grad for layer in model.layers if layer.is_expert)


@FAMILIES
def test_training_reaches_the_parameters(family: str) -> None:
    model = experts_of.build(family)
    model.loss(experts_of.samples(9).batches(1)[0]).mean().backward()
    experts = [layer for layer in model.layers if layer.is_expert]
    assert all(layer.parameter.grad is not None and layer.weight.grad is None for layer in experts)


def test_an_expert_that_no_token_reaches_is_accepted_and_all_of_them_are_not() -> None:
    model = experts_of.build("mixtral")
    experts: Any = model.module.get_submodule("model.layers.1.mlp.experts")
    forward = experts.forward
    experts.forward = lambda hidden, index, weights: forward(hidden, index * 0, weights)
    require_calls(model, experts_of.samples(9).batches(1), every_layer=True)
    experts.forward = lambda hidden, index, weights: hidden
    with pytest.raises(UserError, match=r"never reach model\.layers\.1\.mlp\.experts\.gate_up_proj\.0"):
        require_calls(model, experts_of.samples(9).batches(1), every_layer=True)


def test_experts_that_are_modules_already_stay_as_they_are() -> None:
    experts = nn.ModuleList([nn.Linear(2, 2)])
    open_experts(experts)
    assert OPENED not in vars(experts)
    assert slices_of(experts) == {}
