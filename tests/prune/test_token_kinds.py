"""``tokens`` where a model's kinds of tokens are unknown, or aren't those of what its towers read."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ecoflap.blocks import token_choice
from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError
from ecoflap.models.core.losses import IGNORED, next_token_loss
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.token_kinds import TokenKinds, declaring, placeholder_kinds, prepended_kinds
from ecoflap.models.families.vlm.joining import join_samples
from ecoflap.prune.driver import prune
from ecoflap.prune.wanda import Wanda
from tests import tiny

from .test_families import uniform


@pytest.mark.parametrize("family", ["llama", "clip", "blip_vqa"])
def test_a_model_without_visual_tokens_is_refused(family: str) -> None:
    model = tiny.build(family)
    with pytest.raises(UserError, match="tokens=text needs a pruned tower that reads text and visual"):
        prune(model, tiny.samples(family), Wanda(), uniform(model), 2, tokens="text")


def test_samples_without_pictures_are_refused() -> None:
    model = tiny.build("llava", towers=["language"])
    texts = [{"input_ids": torch.full((1, 5), 7), "labels": torch.full((1, 5), 7)}]
    with pytest.raises(UserError, match="tokens=atv: the calibration samples have no visual tokens"):
        prune(model, CalibrationSet("texts", tuple(texts)), Wanda(), uniform(model), 2, tokens="atv")


def misdeclared(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """A loss that knows the language tower's tokens, and takes the vision tower to read the text."""
    inputs = join_samples(module, batch)
    labels = inputs.pop("labels")
    kinds = placeholder_kinds(module, inputs["input_ids"], labels)
    with declaring(vision=kinds, language=kinds):
        return next_token_loss(module(**inputs).logits, labels)


def pruned(model: PrunableModel, tokens: str) -> dict[str, Tensor]:
    return dict(prune(model, tiny.samples("llava"), Wanda(), uniform(model), 2, tokens=tokens).masks)


def test_towers_that_count_all_tokens_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    token_choice._say_once.cache_clear()
    model = replace(tiny.build("llava"), loss_function=misdeclared)
    with caplog.at_level(logging.INFO, token_choice.__name__):
        found = pruned(model, "text")
        pruned(replace(tiny.build("llava"), loss_function=misdeclared), "text")
    said = [(one.levelname, one.getMessage()) for one in caplog.records if one.name == token_choice.__name__]
    ((level, message),) = said
    assert level == "WARNING"
    assert message.startswith("tokens=text: all tokens of tower vision (")
    assert "declares the kinds of [2, " in message
    every = pruned(tiny.build("llava"), "all")
    differ = {name for name, mask in found.items() if not torch.equal(mask, every[name])}
    assert differ
    assert differ <= {
        layer.name for tower in model.towers for layer in tower.layers if tower.name != "vision"
    }


def test_towers_of_which_the_loss_says_nothing_are_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    token_choice._say_once.cache_clear()
    with caplog.at_level(logging.INFO, token_choice.__name__):
        pruned(tiny.build("llava"), "text")
    assert [one.levelname for one in caplog.records if "all tokens of tower vision" in one.message] == [
        "INFO"
    ]


def test_a_model_of_which_no_tower_fits_is_refused_with_the_reason() -> None:
    def packed(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
        inputs = join_samples(module, batch)
        labels = inputs.pop("labels")
        none = torch.zeros(1, labels.numel(), dtype=torch.bool)
        with declaring(language=TokenKinds(none, none)):
            return next_token_loss(module(**inputs).logits, labels)

    model = replace(tiny.build("llava"), loss_function=packed)
    with pytest.raises(
        UserError, match=r"has none .*; in tower language, the loss declares the kinds of \[1, "
    ):
        pruned(model, "answer")


def test_features_before_the_text_are_visual_and_no_answer() -> None:
    ids, labels = torch.tensor([[5, 6, 7]]), torch.tensor([[IGNORED, 6, 7]])
    kinds = prepended_kinds(2, ids, labels)
    assert kinds.visual.tolist() == [[True, True, False, False, False]]
    assert kinds.answer.tolist() == [[False, False, False, True, True]]
    assert prepended_kinds(2, ids, None).answer.tolist() == [[False] * 5]


def test_a_text_that_attends_to_pictures_has_no_visual_tokens() -> None:
    """Mllama's picture token is a token of the text like others: layers of their own read the picture."""
    module, ids = nn.Module(), torch.tensor([[9, 1]])
    for layers, known in (([], True), ([3], False)):
        text = SimpleNamespace(cross_attention_layers=layers)
        module.config = SimpleNamespace(image_token_index=9, text_config=text)
        assert (placeholder_kinds(module, ids, None) is not None) == known


def test_padding_is_none_of_the_chosen_tokens() -> None:
    real = torch.tensor([[True, True, False]])
    chosen = torch.tensor([[True, False, True]])
    counted = (torch.ones(1, 5, dtype=torch.bool), real)  # of a part that some layers read alone, and of all
    assert token_choice.without_padding(chosen, counted).tolist() == [[True, False, False]]
