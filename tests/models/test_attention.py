"""The opened attention computes what PyTorch's does, and its packed weights are layers like any other."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ecoflap.models.core.attention import OpenAttention, open_attention
from ecoflap.models.core.layers import weights_of
from ecoflap.models.core.towers import Selection, find_towers
from ecoflap.models.loading.loader import prunable
from tests import tiny  # noqa: F401 - one thread


def pair(**options: object) -> tuple[nn.MultiheadAttention, OpenAttention]:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, **options)  # type: ignore[arg-type]
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.5)
    opened = copy.deepcopy(plain)
    open_attention(opened)
    assert isinstance(opened, OpenAttention)
    return plain.eval(), opened.eval()


MASKS: dict[str, dict[str, Tensor | bool]] = {
    "none": {},
    "boolean": {"attn_mask": torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)},
    "additive": {"attn_mask": torch.triu(torch.full((4, 4), -1e4), 1)},
    "per head": {"attn_mask": torch.randn(6, 4, 4)},
    "padding": {
        "key_padding_mask": torch.tensor([[False] * 4, [False, False, True, True], [False] * 3 + [True]])
    },
    "both": {
        "attn_mask": torch.triu(torch.full((4, 4), -1e4), 1),
        "key_padding_mask": torch.tensor([[0.0] * 4, [0, 0, -1e4, -1e4], [0] * 4]),
    },
    "causal": {"attn_mask": torch.triu(torch.full((4, 4), float("-inf")), 1), "is_causal": True},
}


@torch.no_grad()
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masks", MASKS)
def test_same_output_and_attention_weights(batch_first: bool, bias: bool, masks: str) -> None:
    plain, opened = pair(batch_first=batch_first, bias=bias)
    inputs = torch.randn(3, 4, 8) if batch_first else torch.randn(4, 3, 8)
    for expected, found in zip(
        plain(inputs, inputs, inputs, **MASKS[masks]),
        opened(inputs, inputs, inputs, **MASKS[masks]),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert opened(inputs, inputs, inputs, need_weights=False, **MASKS[masks])[1] is None


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{"kdim": 5, "vdim": 6}, {"add_bias_kv": True}, {"add_zero_attn": True}, {}]
)
def test_cross_attention_and_rare_options(options: dict) -> None:
    plain, opened = pair(batch_first=True, **options)
    query, key, value = (
        torch.randn(3, 4, 8),
        torch.randn(3, 7, options.get("kdim", 8)),
        torch.randn(3, 7, options.get("vdim", 8)),
    )
    for expected, found in zip(plain(query, key, value), opened(query, key, value), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_parameters_keep_their_names_and_every_projection_sees_its_input() -> None:
    plain, opened = pair(batch_first=True)
    assert list(plain.state_dict()) == list(opened.state_dict())
    assert {name: tuple(reader.weight.shape) for name, reader in weights_of(opened).items()} == {
        "in_proj_weight": (24, 8)
    }
    seen = []
    weights_of(opened)["in_proj_weight"].register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[0])
    )
    opened.out_proj.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    inputs = torch.randn(2, 4, 8)
    output, _ = opened(inputs, inputs, inputs)
    assert seen[0] is inputs
    torch.testing.assert_close(output, seen[1] @ opened.out_proj.weight.t() + opened.out_proj.bias)
    separate = weights_of(pair(kdim=5, vdim=6)[1])
    assert list(separate) == ["q_proj_weight", "k_proj_weight", "v_proj_weight"]


def test_gradients_reach_the_packed_weight() -> None:
    plain, opened = pair(batch_first=True)
    inputs = torch.randn(2, 4, 8)
    for attention in (plain, opened):
        attention(inputs, inputs, inputs)[0].square().sum().backward()
    torch.testing.assert_close(opened.in_proj_weight.grad, plain.in_proj_weight.grad, rtol=1e-4, atol=1e-4)


def test_an_encoder_of_pytorch_is_a_tower() -> None:
    """PyTorch's fused encoder layer would read the weights where no hook sees it."""
    module = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
    )
    model = prunable(
        "encoder", module, None, lambda module, batch, _: module(batch["x"]).mean(dim=(1, 2)), Selection()
    )
    names = [layer.name.removeprefix("layers.0.") for layer in find_towers(model.module)[0].blocks[0].layers]
    assert names == [
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    ]
