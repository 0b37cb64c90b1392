"""What ``inspect`` counts of current models, against arithmetic with the dimensions of their configs."""

from __future__ import annotations

import pytest

from tests.models.test_published_sizes import TOTALS, counts, inspected

pytestmark = pytest.mark.long


def attention(width: int, heads: int, groups: int, head: int) -> int:
    """Weights of queries, keys and values, and outputs."""
    return 2 * width * heads * head + 2 * width * groups * head


def gated(width: int, inner: int) -> int:
    """Weights of an MLP with a gate."""
    return 3 * width * inner


def vision(blocks: int, width: int, inner: int) -> int:
    """Weights of the blocks of a vision transformer."""
    return blocks * (4 * width**2 + 2 * width * inner)


QWEN_VISION = vision(27, 1152, 4304)
DENSE = {  # {model: {tower: (blocks, layers, weights)}}
    "gemma3_4b": {
        "vision": (27, 27 * 6, vision(27, 1152, 4304)),
        "language": (34, 34 * 7, 34 * (attention(2560, 8, 4, 256) + gated(2560, 10240))),
    },
    "internvl3_5_8b": {
        "vision": (24, 24 * 6, vision(24, 1024, 4096)),
        "language": (36, 36 * 7, 36 * (attention(4096, 32, 8, 128) + gated(4096, 12288))),
    },
    "qwen3_vl_8b": {
        "vision": (27, 27 * 4, QWEN_VISION),  # queries, keys and values in one matrix
        "language": (36, 36 * 7, 36 * (attention(4096, 32, 8, 128) + gated(4096, 12288))),
    },
}
LATENT = (  # DeepSeek's attention: queries and keys through a narrow middle, 64 of 192 numbers of a key turn
    7168 * 1536 + 1536 * 128 * 192 + 7168 * (512 + 64) + 512 * 128 * (128 + 128) + 128 * 128 * 7168
)
QWEN_EXPERTS = 48 * (attention(2048, 32, 4, 128) + 128 * gated(2048, 768))
ROUTED = {  # {model: {tower: (blocks, weights)}}
    "mixtral_8x7b": {"language": (32, 32 * (attention(4096, 32, 8, 128) + 8 * gated(4096, 14336)))},
    "qwen3_30b_a3b": {"language": (48, QWEN_EXPERTS)},
    "qwen3_vl_30b_a3b": {"vision": (27, QWEN_VISION), "language": (48, QWEN_EXPERTS)},
    "deepseek_v3": {
        "language": (61, 61 * LATENT + 3 * gated(7168, 18432) + 58 * (256 + 1) * gated(7168, 2048))
    },
}
SHARES = {  # of all weights, in percent
    "gemma3_4b": 84.2,
    "internvl3_5_8b": 85.0,
    "qwen3_vl_8b": 83.9,
    "mixtral_8x7b": 99.4,
    "qwen3_30b_a3b": 97.9,
    "qwen3_vl_30b_a3b": 97.5,
    "deepseek_v3": 99.7,
}


@pytest.mark.parametrize("name", DENSE)
def test_dense_models(name: str) -> None:
    assert counts(name) == DENSE[name]
    prunable = sum(weights for _, _, weights in DENSE[name].values())
    assert 100 * prunable / TOTALS[name][0] == pytest.approx(SHARES[name], abs=0.05)


@pytest.mark.parametrize("name", ROUTED)
@pytest.mark.every_run("mixtral_8x7b", "qwen3_vl_30b_a3b")
def test_blocks_of_models_with_routed_experts(name: str) -> None:
    assert {tower: blocks for tower, (blocks, _, _) in counts(name).items()} == {
        tower: blocks for tower, (blocks, _) in ROUTED[name].items()
    }


@pytest.mark.parametrize("name", ROUTED)
@pytest.mark.every_run("mixtral_8x7b", "qwen3_vl_30b_a3b")
def test_experts_are_prunable_slice_by_slice(name: str) -> None:
    found = counts(name)
    assert {tower: (blocks, weights) for tower, (blocks, _, weights) in found.items()} == ROUTED[name]
    prunable = sum(weights for _, weights in ROUTED[name].values())
    assert 100 * prunable / TOTALS[name][0] == pytest.approx(SHARES[name], abs=0.05)


@pytest.mark.parametrize("name", [*DENSE, *ROUTED])
@pytest.mark.every_run("mixtral_8x7b", "qwen3_vl_30b_a3b", "gemma3_4b", "qwen3_vl_8b", "internvl3_5_8b")
def test_nothing_is_lost_between_layers_and_what_is_left_dense(name: str) -> None:
    model = inspected(name)
    of_matrices = sum(parameter.numel() for parameter in model.module.parameters() if parameter.ndim > 1)
    counted = sum(layer.size for layer in model.layers) + sum(skipped.size for skipped in model.skipped)
    assert counted == of_matrices
