"""A masked LM behind the head of a decoder reads the tokens that it should predict; it is refused."""

from __future__ import annotations

from functools import partial
from inspect import signature
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import ecoflap
from ecoflap.data.text.perplexity import PerplexityEvaluation, TokenPerplexity
from ecoflap.errors import UserError
from ecoflap.models.core.causal import refuse_reading_ahead, require_causal
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
    if "use_cache" not in signature(decoder.forward).parameters:
        pytest.skip(f"transformers {transformers.__version__} lets {name} write without a cache only")
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
    row = torch.tensor([3, 4, 5, 6])
    refuse_reading_ahead(decoder, row)
    with pytest.raises(UserError, match="reads the tokens that it should predict"):
        refuse_reading_ahead(masked, row)


@pytest.mark.parametrize("name", ["CpmAnt", "XLNet"])
def test_models_that_always_read_ahead(name: str) -> None:
    if not hasattr(transformers, f"{name}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    config = small_config(getattr(transformers, f"{name}Config"))
    model = "CpmAntForCausalLM" if name == "CpmAnt" else "XLNetLMHeadModel"
    module = getattr(transformers, model)(config).eval()
    for refuse in (require_causal, partial(refuse_reading_ahead, row=torch.tensor([3, 3, 3]))):
        with pytest.raises(UserError, match=r"choose a decoder LM$"):
            refuse(module)


class Copying(nn.Module):
    """Code from elsewhere, such as a diffusion LM: each place sees the whole row."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 10)

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        seen = self.embedding(input_ids)
        return SimpleNamespace(logits=seen + seen.mean(dim=1, keepdim=True))


def test_perplexity_of_a_model_that_no_list_has() -> None:
    evaluation = PerplexityEvaluation(torch.arange(10)[None], batch_size=1)
    model: Any = SimpleNamespace(module=Copying(), device=torch.device("cpu"), name="copying")
    with pytest.raises(UserError, match="Copying reads the tokens that it should predict"):
        evaluation(model)


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
