"""Questions reach current vision-language models as their own chat templates put them."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from ecoflap.data.conversation import Conversation, Picture, Turn
from ecoflap.data.easy_vqa.reading import read_questions
from ecoflap.data.example import Example, Generation
from ecoflap.data.image_in_memory import ImageInMemory
from ecoflap.errors import UserError
from ecoflap.models.core.encoding import encode_rows
from ecoflap.models.core.pictures import load_image
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.vlm.interface import VlmInterface
from ecoflap.models.families.vlm.vlm import VisionLanguage
from tests.vlms.folders import MODELS

QUESTION = read_questions("train")[0]
THINKING = ("qwen3_5_vl", "qwen3_5_vl_moe")  # whose templates leave thoughts out of a whole conversation
QUIET = {"enable_thinking": False}
BRIEF = "\nAnswer the question using a single word or phrase."


@cache
def built(name: str) -> tuple[Any, Any]:
    return MODELS[name].build()


def options(name: str) -> dict[str, bool]:
    return QUIET if "enable_thinking" in built(name)[1].chat_template else {}


def interface(name: str, **more: Any) -> VlmInterface:
    return VlmInterface(*built(name), None, **{"chat": options(name), **more})


def asked(answer: str | None = None) -> list[Turn]:
    """The question, and an answer."""
    turns = [Turn("user", (Picture(QUESTION.image or ""), QUESTION.text))]
    return turns if answer is None else [*turns, Turn("assistant", (answer,))]


def by_the_template(name: str, turns: list[Turn]) -> Any:
    """What the processor makes of turns by itself."""

    def part(one: str | Picture) -> dict[str, Any]:
        if isinstance(one, str):
            return {"type": "text", "text": one}
        return {"type": "image", "image": load_image(one.image)}

    return built(name)[1].apply_chat_template(
        [{"role": turn.role, "content": [part(one) for one in turn.parts]} for turn in turns],
        add_generation_prompt=turns[-1].role == "user",
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **options(name),
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_question_is_what_the_processor_makes_of_it(name: str) -> None:
    sample, expected = interface(name).encode(QUESTION), by_the_template(name, asked())
    tokens = int((sample["labels"] == -100).sum())
    assert sample["input_ids"][:, :tokens].equal(expected["input_ids"])
    assert set(sample) == {*expected, "labels"}
    assert sample["pixel_values"].equal(expected["pixel_values"])


@pytest.mark.parametrize("name", MODELS)
def test_an_answer_ends_as_in_a_conversation(name: str) -> None:
    sample = interface(name).encode(QUESTION)
    answer = sample["labels"][sample["labels"] != -100]
    expected = by_the_template(name, asked(QUESTION.target))["input_ids"][0]
    ends = [
        end
        for end in range(len(answer), len(expected) + 1)
        if expected[end - len(answer) : end].equal(answer)
    ]
    assert ends
    behind = built(name)[1].tokenizer.decode(expected[ends[-1] :])
    assert not behind.strip()


WIDE = Picture(ImageInMemory(Image.new("RGB", (64, 32), "red")))
TALKS = {
    "question": asked(QUESTION.target),
    "two pictures": [
        *asked("no"),
        Turn("user", (WIDE, QUESTION.text)),
        Turn("assistant", (QUESTION.target,)),
    ],
    "no picture": [Turn("user", (QUESTION.text,)), Turn("assistant", (QUESTION.target,))],
}


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", [name for name in MODELS if name not in THINKING])
def test_a_conversation_is_what_the_processor_makes_of_it(name: str, talk: str) -> None:
    """With all that it says of each token: its kind, or which pictures it may look at."""
    module, processor = built(name)
    sample = interface(name).encode_conversation(Conversation(tuple(TALKS[talk])))
    whole = by_the_template(name, TALKS[talk])
    tokens = sample["input_ids"].shape[1]
    of_tokens = [one for one in whole if whole[one].shape[:2] == whole["input_ids"].shape]
    assert sample.keys() == {*whole, "labels"}
    for one in whole:
        assert sample[one].equal(whole[one][:, :tokens] if one in of_tokens else whole[one]), one
    model = VisionLanguage("anything").from_module(module, processor, Selection())
    found = model.loss({one: tensor[None] for one, tensor in sample.items()})
    with torch.no_grad():
        logits = module(**{one: tensor for one, tensor in sample.items() if one != "labels"}).logits
    answer = sample["labels"][0] != -100
    wanted = logits[0, :-1][answer[1:]].float().log_softmax(dim=-1)
    expected = -wanted.gather(1, sample["labels"][0, answer][:, None]).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_chat_of_one_turn_keeps_its_words_and_the_place_of_its_picture(name: str) -> None:
    """And gets no ``brief``, which asks the package's own questions for a word."""
    model = VisionLanguage("anything", brief=BRIEF, chat=options(name)).from_module(*built(name), Selection())
    turns = [Turn("user", ("is", WIDE, "red ?"))]
    row = Conversation((*turns, Turn("assistant", (QUESTION.target,))))
    (sample,), expected = encode_rows(model, [row], "calibration=chat"), by_the_template(name, turns)
    tokens = int((sample["labels"] == -100).sum())
    assert sample["input_ids"][:, :tokens].equal(expected["input_ids"])
    assert sample["pixel_values"].equal(expected["pixel_values"])
    (brief,) = encode_rows(model, [QUESTION], "calibration=easy_vqa")
    assert "using a single word" in built(name)[1].tokenizer.decode(brief["input_ids"][0])


@pytest.mark.parametrize("name", MODELS)
def test_answers_in_a_batch_are_those_of_questions_alone(name: str) -> None:
    """Questions of several lengths are padded, which a gated delta net would read as well."""
    module, processor = built(name)
    model = VisionLanguage("anything", chat=options(name)).from_module(module, processor, Selection())
    questions = sorted(read_questions("test")[:60], key=lambda question: len(question.text))[::20]
    ask = lambda some: model.interface.answer(model, some, Generation(max_new_tokens=3))
    assert ask(questions) == [ask([question])[0] for question in questions]


def test_options_of_the_template_reach_it() -> None:
    quiet, thinking = interface("qwen3_5_vl"), interface("qwen3_5_vl", chat={})
    assert quiet.prompt.startswith(thinking.prompt)
    assert quiet.prompt.endswith("</think>\n\n")
    with pytest.raises(UserError, match=r"model\.chat\.enable_thinking is an option of a chat template"):
        interface("gemma3", chat=QUIET)


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("qwen3_vl", {"size": {"shortest_edge": 64, "longest_edge": 256}}),
        ("internvl3_5", {"crop_to_patches": False}),
        ("smolvlm2", {"do_image_splitting": False}),
        ("minicpm_v", {"max_slice_nums": 1}),
    ],
)
def test_options_of_the_image_processor_reach_it(name: str, images: dict[str, Any]) -> None:
    whole, small = interface(name), interface(name, images=images)
    assert small.encode(QUESTION)["pixel_values"].numel() < whole.encode(QUESTION)["pixel_values"].numel()
    assert small.encode(QUESTION)["input_ids"].numel() < whole.encode(QUESTION)["input_ids"].numel()


def test_unknown_options_of_the_image_processor_are_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"model\.images\.crop_to_patch is not known .*GotOcr2.*did you mean crop_to_patches",
    ):
        interface("internvl3_5", images={"crop_to_patch": False})


def test_a_template_without_answers_leaves_the_end_of_text() -> None:
    words = built("qwen3_vl")[1].tokenizer
    processor = SimpleNamespace(
        tokenizer=words, chat_template="asked", apply_chat_template=lambda *_, **__: "asked @QUESTION@"
    )
    assert VlmInterface(None, processor, None).end is None


@pytest.mark.parametrize(("spaces", "opening"), [("", ""), (" ", " "), ("\n", "\n"), ("so: ", None)])
def test_the_spaces_before_an_answer_are_those_of_the_template(spaces: str, opening: str | None) -> None:
    words = built("qwen3_vl")[1].tokenizer

    def put(messages: list[dict[str, Any]], **_: Any) -> str:
        return "@QUESTION@<|bot|>" + (f"{spaces}@ANSWER@" if len(messages) > 1 else "")

    processor = SimpleNamespace(tokenizer=words, chat_template="asked", apply_chat_template=put)
    found = VlmInterface(SimpleNamespace(config=SimpleNamespace(model_type="")), processor, None)
    assert found.opening == opening
    question = {"input_ids": torch.tensor([[1]])}
    sample = found._answered(question, "what ?<|bot|>", "it waits", found.opening)
    expected = (" " if opening is None else opening) + "it waits"
    labels = words(expected, add_special_tokens=False)["input_ids"]
    last = [] if words.eos_token_id is None else [words.eos_token_id]
    assert sample["labels"][0, 1:].tolist() == labels + last


def test_a_caption_goes_on_behind_its_first_words() -> None:
    name = "qwen3_vl"
    sample = interface(name).encode(Example("a bus", "waits", QUESTION.image, bare=True))
    assert built(name)[1].tokenizer.decode(sample["input_ids"][0]).rpartition("a bus")[2].startswith(" waits")
