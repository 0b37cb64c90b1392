"""The architecture and the tokenizer of ``t5_mini``: transformers' T5 in Flan-T5's shape (gated GELU, a head
of its own), shrunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from tools.train_mini.layout import correct

PAD, EOS, UNKNOWN = 0, 1, 2
SPECIAL_TOKENS = ["<pad>", "</s>", "<unk>"]


@dataclass(frozen=True)
class Recipe:
    """Every number that the trained weights depend on."""

    width: int = 64
    mlp: int = 128
    heads: int = 4
    encoder_blocks: int = 3
    decoder_blocks: int = 2
    first_steps: int = 1500
    steps: int = 1500
    batch: int = 32
    shots: int = 3
    learning_rate: float = 3e-3
    warmup: int = 150
    weight_decay: float = 0.01
    seed: int = 0


def build(recipe: Recipe, vocabulary: int) -> T5ForConditionalGeneration:
    """A randomly initialised T5 with the recipe's sizes.

    64 buckets instead of 32 tell distances of up to 15 words apart, and the encoder's attention starts with a
    strong taste for some of them, or it takes the model very long to see which letter an option has.
    transformers 5 ties the head of every new T5 to its embeddings, so the head is put in afterwards.
    """
    config = T5Config(
        vocab_size=vocabulary,
        d_model=recipe.width,
        d_kv=recipe.width // recipe.heads,
        d_ff=recipe.mlp,
        num_layers=recipe.encoder_blocks,
        num_decoder_layers=recipe.decoder_blocks,
        num_heads=recipe.heads,
        relative_attention_num_buckets=64,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.0,
        decoder_start_token_id=PAD,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    model = T5ForConditionalGeneration(config)
    torch.nn.init.normal_(
        model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight, std=1.5
    )
    model.lm_head = torch.nn.Linear(recipe.width, vocabulary, bias=False)
    torch.nn.init.normal_(model.lm_head.weight, std=recipe.width**-0.5)
    return model


def make_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """One token per word or run of signs, capitals kept ("A" the letter is not "a" the article), line ends
    dropped, ``</s>`` at the end.
    """
    index = {word: i for i, word in enumerate(SPECIAL_TOKENS + words)}
    tokenizer = Tokenizer(models.WordLevel(index, unk_token=SPECIAL_TOKENS[UNKNOWN]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


def save(model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write both in the layout that transformers 4 and 5 read; 5 by itself writes that the head is tied, and
    4 believes it.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    correct(folder / "config.json", tie_word_embeddings=False)
    correct(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
