"""Answers are what a model writes, not what it was asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from ecoflap.data.conversation import Conversation, Turn
from ecoflap.data.easy_vqa.reading import read_questions
from ecoflap.data.example import Example, Generation
from ecoflap.models.core.chats import continuation
from ecoflap.models.core.prompts import generated_tokens
from ecoflap.models.families.blip2.generation import Blip2Interface
from ecoflap.models.families.language.interface import LanguageInterface
from tests import tiny

if not hasattr(transformers, "Blip2Config"):
    pytest.skip(f"transformers {transformers.__version__} has no BLIP-2", allow_module_level=True)


def test_a_prompt_that_is_given_back_is_cut_off() -> None:
    prompt = torch.tensor([[0, 7], [8, 9]])
    new = torch.tensor([[5, 6, 1], [7, 9, 1]])
    assert generated_tokens(torch.cat([prompt, new], dim=1), prompt).equal(new)
    assert generated_tokens(new, prompt).equal(new)
    assert generated_tokens(new[:, :1], prompt).equal(new[:, :1])


class Inputs(dict[str, Tensor]):
    """What a processor gives."""

    def to(self, _: torch.device) -> Inputs:
        return self


@torch.no_grad()
def test_blip2_with_an_opt_answers_without_its_question() -> None:
    model = tiny.build("blip2_opt")
    batch = tiny.samples("blip2_opt", (5, 5)).batches(2)[0]
    decoded: list[Tensor] = []

    def decode(tokens: Tensor, skip_special_tokens: bool) -> list[str]:
        decoded.append(tokens)
        return [" ".join(map(str, row.tolist())) for row in tokens]

    interface: Any = Blip2Interface.__new__(Blip2Interface)
    interface.module, interface.prompt, interface.pixels = model.module, "{}", lambda _: batch["pixel_values"]
    inputs = Inputs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    interface.processor = lambda **_: inputs
    interface.processor.tokenizer = SimpleNamespace(padding_side="right", batch_decode=decode)
    picture = read_questions("test")[0].image
    module: Any = model.module
    expected = (
        module(**{name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")})
        .logits[:, -1]
        .argmax(dim=-1)
    )
    answers = interface.answer(
        model, [Example("one", image=picture), Example("two", image=picture)], Generation(max_new_tokens=3)
    )
    assert len(answers) == 2
    assert decoded[0].shape[1] <= 3
    assert decoded[0][:, 0].equal(expected)


class Prepending:
    """As LLaMA's first tokenizers: a space before each text, and every space a mark."""

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [ord(letter) for letter in "_" + text.replace(" ", "_")]}


def test_an_answer_has_the_tokens_that_it_has_behind_its_prompt() -> None:
    assert continuation(Prepending(), ":", " yes") == [ord(letter) for letter in "_yes"]
    assert continuation(Prepending(), "\n", "yes") == [ord(letter) for letter in "yes"]
    assert continuation(Prepending(), "", " yes") == [ord(letter) for letter in "_yes"]


TURN = "{% for m in messages %}"
TEMPLATES = {
    "gemma": (
        TURN + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
        "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        "<end_of_turn>",
    ),
    "phi": (
        TURN + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        "<|end|>",
    ),
    "deepseek": (
        TURN + "{% if m.role == 'user' %}<|User|>{{ m.content }}{% else %}<|Assistant|>{{ m.content }}<eos>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|Assistant|>{% endif %}",
        "<eos>",
    ),
    "llama 2": (
        TURN
        + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content | trim }} <eos>"
        "{% endif %}{% endfor %}",
        "<eos>",
    ),
    "no beginning of an answer": (TURN + "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}", "<|end|>"),
    "thoughts": (
        TURN + "<|{{ m.role }}|>{% if m.role == 'assistant' and 'think' not in m.content %}<think></think>\n"
        "{% endif %}{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "<|end|>",
    ),
}
SPECIAL = ["<start_of_turn>", "<end_of_turn>", "<|end|>", "<|user|>", "<|assistant|>", "<|User|>"]


def talker(template: str) -> Any:
    """A tokenizer of bytes with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL, "<|Assistant|>"]})
    tokenizer.chat_template = template
    return tokenizer


def chat(*said: str) -> Conversation:
    return Conversation(
        tuple(Turn(("user", "assistant")[place % 2], (text,)) for place, text in enumerate(said))
    )


def both(tokenizer: Any, conversation: Conversation) -> tuple[str, str]:
    """All tokens of a conversation, and its labels, as texts."""
    sample = LanguageInterface(tokenizer).encode_conversation(conversation)
    labels = sample["labels"][sample["labels"] != -100]
    assert sample["input_ids"][-len(labels) :].equal(labels)
    return tokenizer.decode(sample["input_ids"]), tokenizer.decode(labels)


@pytest.mark.parametrize("answer", ["it waits", "<think>a bus</think>it waits", " it waits\n"])
@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_conversation_is_what_the_chat_template_makes_of_it(kind: str, answer: str) -> None:
    template, end = TEMPLATES[kind]
    tokenizer = talker(template)
    said = ("what does the bus do ?", "wait", "and now ?", answer)
    messages = [{"role": turn.role, "content": turn.text} for turn in chat(*said).turns]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    text, labels = both(tokenizer, chat(*said))
    assert text == whole[: whole.rindex(end)] + end
    assert "assistant" not in labels
    assert labels.strip().startswith(answer.strip())
    assert labels.endswith(end)


def test_a_template_that_cannot_be_asked_leaves_a_space_and_the_end_of_text() -> None:
    silent = "{% for m in messages if m.role == 'user' %}{{ m.content }}:{% endfor %}"
    assert both(talker(silent), chat("what ?", "it waits")) == ("what ?: it waits<eos>", " it waits<eos>")
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert both(talker(plain), chat("what ?", "it waits")) == (
        "user: what ?\nassistant: it waits<eos>",
        " it waits<eos>",
    )
    strict = TEMPLATES["gemma"][0].replace(
        TURN, "{% if messages[-1].role == 'assistant' %}{{ raise_exception('no') }}{% endif %}" + TURN
    )
    assert both(talker(strict), chat("what ?", "it waits"))[1] == "it waits<eos>"
