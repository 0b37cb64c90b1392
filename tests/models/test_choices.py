"""Choices are compared at the first token that tells them apart, whatever stands around it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

import ecoflap
from ecoflap.data.example import Example
from ecoflap.errors import UserError
from ecoflap.models.families.language.choices import common_prefix

needs_llama = pytest.mark.skipif(not hasattr(hf, "LlamaConfig"), reason="a newer model")
LETTERS = ("A", "B", "C", "D")
TEXTS = ["Q one\nAnswer:", "Another question\nAnswer:"]
SPACE = "\u0120"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def tokenizer(
    around: str = "$A", letters: tuple[str, ...] = LETTERS, alphabet: list[str] | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, and of these letters behind a space."""
    alphabet = pre_tokenizers.ByteLevel.alphabet() if alphabet is None else alphabet
    words = [*SPECIAL, *alphabet, *(f"{SPACE}{letter}" for letter in letters)]
    ids = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.BPE(ids, [(SPACE, letter) for letter in letters], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = [(token, ids[token]) for token in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(single=around, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def llama(words: PreTrainedTokenizerFast) -> Any:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return ecoflap.load(hf.LlamaForCausalLM(config), words)


@torch.no_grad()
@needs_llama
@pytest.mark.parametrize(
    ("around", "letters", "behind"),
    [("$A", LETTERS, ""), ("<s> $A", LETTERS, ""), ("$A </s>", LETTERS, ""), ("$A", (), " ")],
    ids=["usual", "begins", "appends", "bytes"],
)
def test_a_decoder_compares_the_letters(around: str, letters: tuple[str, ...], behind: str) -> None:
    words = tokenizer(around, letters)
    model = llama(words)
    ids = words.convert_tokens_to_ids([f"{SPACE * (not behind)}{letter}" for letter in LETTERS])
    for text, row in zip(TEXTS, model.interface.choose(model, TEXTS, LETTERS), strict=True):
        read = [token for token in words(text + behind)["input_ids"] if token != words.eos_token_id]
        alone = model.module(input_ids=torch.tensor([read])).logits[0, -1].log_softmax(dim=-1)
        torch.testing.assert_close(row, alone[ids], rtol=1e-4, atol=1e-5)
        assert len(set(row.tolist())) == 4


@torch.no_grad()
@pytest.mark.parametrize(("around", "start"), [("<s> $A </s>", [2, 0]), ("$A </s>", [2])])
def test_an_encoder_decoder_compares_the_letters(around: str, start: list[int]) -> None:
    words = tokenizer(around)
    torch.manual_seed(0)
    sizes = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    feed = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "init_std": 0.5}
    module = BartForConditionalGeneration(BartConfig(vocab_size=len(words), d_model=16, **sizes, **feed))
    model: Any = ecoflap.load(module.eval(), words)
    ids = words.convert_tokens_to_ids(list(LETTERS))
    for text, row in zip(TEXTS, model.interface.choose(model, TEXTS, LETTERS), strict=True):
        read, written = torch.tensor([words(text)["input_ids"]]), torch.tensor([start])
        logits = model.module(input_ids=read, decoder_input_ids=written).logits
        torch.testing.assert_close(row, logits[0, -1].log_softmax(dim=-1)[ids], rtol=1e-4, atol=1e-5)
        assert len(set(row.tolist())) == 4


@torch.no_grad()
@pytest.mark.skipif(not hasattr(hf, "T5GemmaConfig"), reason="a newer model")
@pytest.mark.parametrize("around", ["<s> $A", "<s> $A </s>"])
def test_an_encoder_decoder_made_of_decoders_writes_behind_its_start_token(around: str) -> None:
    """Its tokenizer begins each text with the token that the decoder starts with, and may not end it."""
    words = tokenizer(around)
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    tokens = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": 1}
    half = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 24, **sizes, **tokens}
    config = hf.T5GemmaConfig(encoder=dict(half), decoder=dict(half))
    model: Any = ecoflap.load(hf.T5GemmaForConditionalGeneration(config).eval(), words)
    ids = words.convert_tokens_to_ids(list(LETTERS))
    for text, row in zip(TEXTS, model.interface.choose(model, TEXTS, LETTERS), strict=True):
        read, written = torch.tensor([words(text)["input_ids"]]), torch.tensor([[words.bos_token_id]])
        logits = model.module(input_ids=read, decoder_input_ids=written).logits
        torch.testing.assert_close(row, logits[0, -1].log_softmax(dim=-1)[ids], rtol=1e-4, atol=1e-5)
    sample = model.interface.encode(Example("Why?", "Yes."))
    said = words("Yes.", add_special_tokens=False)["input_ids"]
    assert sample["input_ids"].tolist() == words("Why?")["input_ids"]
    assert sample["labels"].tolist() == [*said, words.eos_token_id]


@needs_llama
def test_letters_that_a_tokenizer_does_not_know_are_refused() -> None:
    words = tokenizer("$A </s>", (), sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {"C", "D"}))
    model = llama(words)
    with pytest.raises(
        UserError, match=r"does not tell the choices apart .*C as \[3, 2\], D as \[3, 2\]; use"
    ):
        model.interface.choose(model, TEXTS, LETTERS)


def test_a_choice_that_begins_another_is_refused() -> None:
    words = tokenizer(letters=())
    with pytest.raises(UserError, match="does not tell the choices apart"):
        common_prefix(words, [[5, 6], [5, 6, 7], [5, 6, 8]], ["one", "onex", "oney"])
