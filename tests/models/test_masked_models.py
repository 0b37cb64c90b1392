"""A masked LM behind the head of a decoder reads the tokens that it should predict; it is refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import ecoflap
from ecoflap.data.text.perplexity import TokenPerplexity
from ecoflap.errors import UserError
from ecoflap.models.core.losses import require_causal
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language.causal_lm import CausalLM
from tests.zoo.small import small_config

# transformers' classes that have a masked and a causal form, and the option of the config that tells.
FORMS = {
    "Bert": ("BertLMHeadModel", "is_decoder"),
    "Roberta": ("RobertaForCausalLM", "is_decoder"),
    "RoFormer": ("RoFormerForCausalLM", "is_decoder"),
    "XLM": ("XLMWithLMHeadModel", "causal"),
}


def build(name: str, causal: bool) -> Any:
    model, option = FORMS[name]
    config = small_config(getattr(transformers, f"{name}Config"), {"is_decoder": False})
    setattr(config, option, causal)
    torch.manual_seed(0)
    return getattr(transformers, model)(config).eval()


@torch.no_grad()
def reads_ahead(module: Any) -> bool:
    """Whether the first logits depend on the last token."""
    first, other = (module(torch.tensor([[3, 4, last]])).logits[0, 0] for last in (5, 6))
    return not torch.allclose(first, other, atol=1e-6)


@pytest.mark.parametrize("name", FORMS)
def test_a_model_is_refused_that_reads_ahead(name: str) -> None:
    masked, decoder = build(name, causal=False), build(name, causal=True)
    assert reads_ahead(masked)
    assert not reads_ahead(decoder)
    batch = {"input_ids": torch.tensor([[3, 4, 5]])}
    load = partial(CausalLM("folder").from_module, processor=None, selection=Selection(None, []))
    assert load(decoder).loss(batch).isfinite().all()
    model = load(masked)
    with pytest.raises(UserError, match="reads the tokens that it should predict"):
        model.loss(batch)
    with pytest.raises(UserError, match="reads the tokens that it should predict"):
        TokenPerplexity("tokens.safetensors", "test").check_model(model)


def test_a_loss_of_ones_own_is_free() -> None:
    def loss(module: Any, batch: Any, copies: int = 1) -> Tensor:
        return module(**batch).logits.float().logsumexp(dim=-1).mean(dim=-1)  # type: ignore[no-any-return]

    model = ecoflap.load(build("Bert", causal=False), kind="causal_lm", loss=loss)
    assert model.loss({"input_ids": torch.tensor([[3, 4, 5]])}).isfinite().all()


@pytest.mark.parametrize("name", ["Bart", "MBart", "OPT", "GPT2"])
def test_decoders_of_other_families(name: str) -> None:
    model = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    config = small_config(getattr(transformers, f"{name}Config"))
    module = getattr(transformers, model)(config).eval()
    assert not reads_ahead(module)
    require_causal(module)
