import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ecoflap.models.core.layers import PLAIN, Layer, is_layer


@pytest.mark.parametrize("module", [nn.Linear(3, 5), Conv1D(5, 3)])
def test_both_orientations_look_the_same(module: nn.Module) -> None:
    layer = Layer("layer", module)
    inputs = torch.randn(4, 3)
    assert layer.shape == (5, 3)
    assert layer.size == 15
    torch.testing.assert_close(module(inputs), inputs @ layer.matrix().t() + module.bias)


@pytest.mark.parametrize("module", [nn.Linear(3, 5), Conv1D(5, 3)])
def test_written_matrix_is_read_back_and_takes_effect(module: nn.Module) -> None:
    layer, matrix, inputs = Layer("layer", module), torch.randn(5, 3), torch.randn(4, 3)
    parameter = layer.weight
    layer.write(matrix)
    assert layer.weight is parameter
    assert torch.equal(layer.matrix(), matrix)
    assert torch.equal(layer.oriented(layer.oriented(matrix)), matrix)
    assert layer.oriented(matrix).shape == parameter.shape
    torch.testing.assert_close(module(inputs), inputs @ matrix.t() + module.bias)


@pytest.mark.parametrize(
    ("name", "routed"),
    [
        ("blocks.0.moe.experts.1.w1.weight", True),
        ("blocks.0.mlp.experts.expert_1.wi.weight", True),
        ("blocks.0.mlp.shared_experts.1.up.weight", False),
        ("blocks.0.mlp.shared_expert.up.weight", False),
        ("experts.blocks.0.mlp.up.weight", False),
    ],
)
def test_experts_that_are_modules_are_known_by_their_names(name: str, routed: bool) -> None:
    assert Layer(name, nn.Linear(2, 2)).is_routed == routed


def test_matrix_is_a_view_without_gradient() -> None:
    layer = Layer("layer", Conv1D(5, 3))
    assert not layer.matrix().requires_grad
    assert layer.matrix().data_ptr() == layer.weight.data_ptr()


def test_write_casts_to_the_stored_dtype() -> None:
    layer = Layer("layer", nn.Linear(2, 1).bfloat16())
    layer.write(torch.tensor([[1.0, 1 / 3]]))
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.weight.detach(), torch.tensor([[1.0, 1 / 3]]).bfloat16())


def test_what_is_a_layer() -> None:
    assert is_layer(nn.Linear(2, 2))
    assert is_layer(Conv1D(2, 2))
    assert not any(
        map(
            is_layer,
            [nn.Embedding(2, 2), nn.LayerNorm(2), nn.Conv2d(1, 1, 1), nn.Sequential(nn.Linear(2, 2))],
        )
    )


class Scored(nn.Linear):
    """A router as some models write it: a linear class that gives more than a product."""

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return super().forward(inputs).topk(1)


class Started(nn.Linear):
    """A linear class that only begins with other weights."""

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)


def test_a_linear_class_with_a_product_of_its_own_is_no_layer() -> None:
    assert not is_layer(Scored(2, 2))
    assert is_layer(Started(2, 2))
    assert is_layer(nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2))


def test_a_hook_on_one_module_changes_nothing_about_its_product() -> None:
    hooked = nn.Linear(2, 2)
    hooked.forward = lambda inputs: nn.Linear.forward(hooked, inputs)  # type: ignore[method-assign]  # as an offloader does
    assert is_layer(hooked)


@pytest.mark.parametrize("name", PLAIN)
def test_classes_that_write_the_plain_product_themselves(name: str) -> None:
    module, _, kind = name.rpartition(".")
    if not hasattr(found := pytest.importorskip(module), kind):
        pytest.skip(f"this release has no {name}")
    linear = getattr(found, kind)(3, 5)
    assert is_layer(linear)
    inputs = torch.randn(2, 4, 3)
    torch.testing.assert_close(linear(inputs), inputs @ linear.weight.t() + linear.bias)
