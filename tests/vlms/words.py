"""A tokenizer of Easy-VQA's words with a model's own special tokens, and chat templates."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import transformers as hf

from ecoflap.data.easy_vqa.reading import read_questions

PLAIN = ("<pad>", "<s>", "</s>")


@cache
def merged() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and the merges of a byte-level BPE that knows the words of the questions and answers."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator((f"{one.text} {one.target}" for one in read_questions("train")[:500]), trainer)
    model = json.loads(made.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def tokenizer(special: list[str], named: dict[str, str] | None = None, **more: str) -> Any:
    """A byte-level BPE tokenizer.

    Args:
        special: the model's own special tokens, which come first.
        named: names by which its processor asks for some of them.
        more: which of the tokens end, begin or pad a text, where others do than usual.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    words, merges = merged()
    tokens = {token: index for index, token in enumerate(dict.fromkeys([*PLAIN, *special, *words]))}
    made = Tokenizer(models.BPE(tokens, merges))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in [*PLAIN, *special]]
    )
    usual = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_input_names=["input_ids", "attention_mask"],
        extra_special_tokens=named or {},
        **{**usual, **more},
    )


def chat(start: str, image: str, end: str, asks: str, before: str = "") -> str:
    """A chat template.

    Args:
        start: what opens a turn.
        image: what stands for a picture.
        end: what ends a turn.
        asks: what opens the answer.
        before: what opens the conversation.
    """
    return (
        f"{before}{{% for message in messages %}}{start}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + image + "{% else %}"
        "{{ part['text'] }}{% endif %}{% endfor %}" + end + "{% endfor %}"
        "{% if add_generation_prompt %}" + asks + "{% endif %}"
    )


IM = ["<|im_start|>", "<|im_end|>"]


def chatml(image: str, asks: str = "") -> str:
    """The template of the Qwen line, with something behind the opening of the answer."""
    return chat(
        "<|im_start|>{{ message['role'] }}\n", image, "<|im_end|>\n", "<|im_start|>assistant\n" + asks
    )
