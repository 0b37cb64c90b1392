import re

import pytest
import torch
from torch import Tensor, nn

from ecoflap.blocks.layer_calls import require_calls
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.loading.loader import prunable
from tests import hybrids, tiny


class Mixture(nn.Module):
    """A layer that every sample is sent to, two experts by the sign of their sum, and a layer that is never
    called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.idle = nn.Linear(16, 16), nn.Linear(16, 16)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, hidden: Tensor) -> Tensor:
        dtype, shape = self.idle.weight.dtype, self.idle.weight.shape  # a look at a weight is no use of it
        sent = self.shared(hidden).to(dtype).view(-1, 3, shape[0])
        chosen = (hidden.sum(dim=(1, 2)) > 0).long()
        return torch.stack(
            [self.experts[expert](one) for expert, one in zip(chosen.tolist(), sent, strict=True)]
        )


class OneBlock(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block])

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.blocks[0](inputs)
        return hidden


def mixture(skip_layers: list[str]) -> PrunableModel:
    return prunable(
        "mixture", OneBlock(Mixture()), None, tiny.first_output_loss, Selection(None, skip_layers)
    )


def batch(*signs: float) -> dict[str, Tensor]:
    return {
        "inputs": torch.stack([sign * torch.ones(3, 16) for sign in signs]),
        "target": torch.zeros(len(signs)),
    }


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_families_call_their_layers(family: str) -> None:
    model, calibration = tiny.build(family), tiny.samples(family)
    require_calls(model, calibration.batches(2), every_layer=True)
    assert not any(layer.module._forward_hooks or layer.module._forward_pre_hooks for layer in model.layers)


@pytest.mark.parametrize("name", hybrids.EVERY)
def test_hybrids_do_beside_those_that_are_known(name: str) -> None:
    require_calls(
        hybrids.build(name, hybrids.UNCALLED.get(name)), tiny.samples("llama").batches(2), every_layer=True
    )


@pytest.mark.parametrize("name", [*hybrids.UNCALLED, *hybrids.TIED])
def test_the_error_names_the_patterns_that_help(name: str) -> None:
    batches = tiny.samples("llama").batches(2)
    with pytest.raises(
        UserError, match=r"outside the call of their module, or shares them between modules"
    ) as error:
        require_calls(hybrids.build(name), batches)
    found = re.search(r"skip_layers=\[(.*)\]", str(error.value))
    assert found is not None
    skip = found[1].split(",")
    assert skip == hybrids.UNCALLED.get(name, skip)
    require_calls(hybrids.build(name, skip), batches, every_layer=True)


def test_cross_attention_with_packed_weights_is_one_call_that_shows_no_inputs() -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.TransformerDecoderLayer(16, 2, 24, batch_first=True)])

        def forward(self, inputs: Tensor) -> Tensor:
            hidden: Tensor = self.blocks[0](inputs, inputs + 1)
            return hidden

    model = prunable("cross", Cross(), None, tiny.first_output_loss, Selection())
    with pytest.raises(
        UserError,
        match=(
            r"blocks\.0\.multihead_attn\..* and 1 more layers outside .* add skip_layers=\[multihead_attn\]"
        ),
    ):
        require_calls(model, [batch(1, 1)])


@pytest.mark.parametrize("first", ["called", "read"])
def test_a_weight_that_is_read_beside_its_call_is_refused(first: str) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, hidden: Tensor) -> Tensor:
            if first == "called":
                hidden = self.linear(hidden)
            hidden = nn.functional.linear(hidden, weight=self.linear.weight)
            return hidden if first == "called" else self.linear(hidden)

    model = prunable("tied", OneBlock(Tied()), None, tiny.first_output_loss, Selection())
    with pytest.raises(UserError, match=r"uses the weights of blocks\.0\.linear\.weight outside the call"):
        require_calls(model, [batch(1, 1)])


def test_later_samples_may_reach_what_the_first_do_not() -> None:
    model = mixture(["idle"])
    require_calls(model, [batch(1, 1), batch(1, -1)], every_layer=True)
    require_calls(model, [batch(1, 1, -1)], every_layer=True)
    require_calls(model, [batch(1, 1)])
    with pytest.raises(
        UserError, match=r"never reach blocks\.0\.experts\.0\.weight, .* add skip_layers=\[experts\.0\]"
    ):
        require_calls(model, [batch(1, 1)], every_layer=True)


def test_a_layer_that_is_never_used() -> None:
    require_calls(mixture([]), [batch(1, -1)])
    with pytest.raises(UserError, match=r"never reach blocks\.0\.idle\.weight, .* add skip_layers=\[idle\]"):
        require_calls(mixture([]), [batch(1, -1)], every_layer=True)


def test_a_tower_that_is_never_reached() -> None:
    model = tiny.build("blip2_opt", towers=["vision", "language"])
    model.module.forward = lambda *_, **__: None
    object.__setattr__(
        model, "loss_function", lambda module, batch, copies: torch.zeros(len(batch["labels"]))
    )
    with pytest.raises(
        UserError, match=r"never reach tower vision \(vision_model\.encoder\.layers\); leave it out of towers"
    ):
        require_calls(model, tiny.samples("blip2_opt").batches(2), every_layer=True)
