"""Chats in rows: the loss is that of the last answer, and what a model does not read is left out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import ecoflap
from ecoflap.data.calibration_set import CalibrationSet, draw
from ecoflap.data.conversation import Conversation, Picture
from ecoflap.data.example import Example
from ecoflap.data.files.calibration import Chat
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from tests.api.conftest import clip, llama, llava
from tests.data.files import rows as given

pytestmark = pytest.mark.long

if not hasattr(transformers, "LlavaForConditionalGeneration"):
    pytest.skip(f"transformers {transformers.__version__} has no LLaVA", allow_module_level=True)

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} | {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


def first_loss(model: PrunableModel, found: CalibrationSet) -> torch.Tensor:
    return model.loss({name: tensor[None] for name, tensor in found.samples[0].items()})


def long_chat(images: int = 1) -> dict[str, Any]:
    shown = "<image>\n" * images
    return {
        "image": [f"{number}.png" for number in range(images)],
        "conversations": [
            {"from": "human", "value": f"{shown}what shape is there ?"},
            {"from": "gpt", "value": "circle"},
            {"from": "human", "value": "is there a circle ?"},
            {"from": "gpt", "value": "no"},
            {"from": "human", "value": "is it red ?"},
        ],
    }


@pytest.mark.parametrize("images", [1, 2])
def test_the_loss_of_several_turns_is_that_of_the_last_answer(
    vlm: PrunableModel, folder: Path, images: int
) -> None:
    file = given.write_lines(folder / "a.jsonl", [long_chat(images)])
    found = Chat(str(file)).load(vlm, 0)
    processor: Any = vlm.processor
    shown = "<image>" * images
    turns = (f"{shown}what shape is there ?", "circle", "is there a circle ?")
    text = "".join(f"USER: {turn} ASSISTANT:" for turn in turns)
    pictures = [given.picture(number) for number in range(images)]
    asked = processor(images=pictures, text=text, return_tensors="pt")
    # This template writes ASSISTANT: behind every turn, so that ends an answer, too.
    answer = processor.tokenizer("no ASSISTANT:", add_special_tokens=False, return_tensors="pt")["input_ids"]
    sample = found.samples[0]
    assert torch.equal(sample["input_ids"], torch.cat([asked["input_ids"], answer], dim=1))
    assert torch.equal(sample["pixel_values"], asked["pixel_values"])
    module: Any = vlm.module
    with torch.no_grad():
        inputs = {name: sample[name] for name in ("input_ids", "pixel_values", "attention_mask")}
        logits = module(**inputs).logits[0, -3:-1].log_softmax(dim=-1)
        wanted = -logits.gather(1, answer.T).mean()
        torch.testing.assert_close(first_loss(vlm, found)[0], wanted)


def test_line_ends_of_windows_around_a_picture_go(folder: Path) -> None:
    chat = [{"from": "human", "value": "<image>\r\nwhat ?"}, {"from": "gpt", "value": "circle"}]
    plain = {"question": "<image>\r\nwhat ?", "answer": "circle"}
    file = given.write_lines(folder / "a.jsonl", [{"image": "0.png", "conversations": chat}])
    found = Chat(str(file)).first(Chat(str(file)).rows())
    assert isinstance(found, Conversation)
    assert found.turns[0].parts == (Picture(str(folder / "0.png")), "what ?")
    given.write_lines(folder / "a.jsonl", [{"image": "0.png", **plain}])
    question = Chat(str(file)).first(Chat(str(file)).rows())
    assert isinstance(question, Example)
    assert question.text == "what ?"


def test_the_first_turns_alone(vlm: PrunableModel, folder: Path) -> None:
    chats = given.write_lines(folder / "a.jsonl", [long_chat()])
    single = given.write_lines(folder / "b.jsonl", given.columns(1))
    found = Chat(str(chats), turns="first").load(vlm, 0)
    assert found.fingerprint() == Chat(str(single)).load(vlm, 0).fingerprint()


def test_what_the_assistant_says_first_answers_no_question(vlm: PrunableModel, folder: Path) -> None:
    chat = long_chat()
    greeting = {"from": "gpt", "value": "a dog"}
    greeted = {**chat, "conversations": [greeting, *chat["conversations"]]}
    wanted, found = (
        Chat(str(given.write_lines(folder / "a.jsonl", [row])), turns="first").load(vlm, 0)
        for row in (chat, greeted)
    )
    assert found.fingerprint() == wanted.fingerprint()
    alone = {"conversations": [greeting]}
    with pytest.raises(UserError, match="none of its questions is answered"):
        Chat(str(given.write_lines(folder / "a.jsonl", [alone])), turns="first").load(vlm, 0)


def test_a_system_turn_stands_before_the_question_where_there_are_no_roles(folder: Path) -> None:
    """Beside the turns, as LLaMA-Factory has it, or as one of them."""
    chat = long_chat()
    beside = {**chat, "system": "the house is red"}
    among = {
        **chat,
        "conversations": [{"from": "system", "value": "the house is red"}, *chat["conversations"]],
    }
    column = {"image": "0.png", "question": "the house is red\nwhat shape is there ?", "answer": "circle"}
    one, pair = llava(), clip()
    prompted = ecoflap.load(one.module, one.processor, prompt="USER: <image> {} ASSISTANT:")
    for model in (prompted, ecoflap.load(pair.module, pair.processor)):
        wanted, *found = (
            Chat(str(given.write_lines(folder / "a.jsonl", [row])), turns="first").load(model, 0)
            for row in (column, beside, among, {**among, "system": "a dog"})
        )
        assert [one.fingerprint() for one in found] == [wanted.fingerprint()] * 3


def test_pruning_with_several_pictures_in_a_row(folder: Path) -> None:
    rows = [long_chat(2), long_chat(1), *given.llava_chats(2)]
    file = given.write_lines(folder / "a.jsonl", rows)
    for score in ("first_order", "zeroth_order"):
        one = llava()
        model = ecoflap.load(one.module, one.processor)
        data = ecoflap.calibrate(model, "chat", path=str(file))
        assert len(data) == 4
        result = ecoflap.prune(model, data=data, sparsity=0.5, score=score, batch_size=2)
        zeros = sum(int((~mask).sum()) for mask in result.masks.values())
        assert zeros / sum(mask.numel() for mask in result.masks.values()) == pytest.approx(0.5, abs=0.01)


def test_rows_without_a_picture_are_left_out_where_the_model_sees(
    vlm: PrunableModel, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blind = {"conversations": given.llava_chats(1)[0]["conversations"][1:]}
    blind["conversations"].insert(0, {"from": "human", "value": "what is red ?"})
    file = given.write_lines(folder / "a.jsonl", [*given.llava_chats(2), blind, blind])
    with caplog.at_level(logging.INFO, logger="ecoflap"):
        assert len(Chat(str(file)).load(vlm, 0)) == 2
    assert "2 rows without a picture" in caplog.text
    only = given.write_lines(folder / "b.jsonl", [blind])
    with pytest.raises(UserError, match="none of the 1 rows has one"):
        Chat(str(only)).load(vlm, 0)


def text_chat() -> dict[str, Any]:
    said = ["the cat sees", "a dog", "a house and a tree", "red not green"]
    roles = ["user", "assistant"] * 2
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]}


def test_a_system_text_and_an_input_reach_a_language_model(tmp_path: Path) -> None:
    one = llama()
    one.processor.chat_template = TEMPLATE
    model = ecoflap.load(one.module, one.processor)

    def read(row: dict[str, Any], **options: Any) -> str:
        file = given.write_lines(tmp_path / "a.jsonl", [row])
        sample = Chat(str(file), **options).load(model, 0).samples[0]
        return str(one.processor.decode(sample["input_ids"]))

    def expected(text: str) -> str:
        return str(one.processor.decode(one.processor(text)["input_ids"]))

    said = [{"from": "human", "value": "the cat"}, {"from": "gpt", "value": "a dog"}]
    wanted = expected("system red not green | user the cat | assistant a dog")
    assert read({"system": "red not green", "conversations": said}) == wanted
    for nothing in (None, " ", {"a": 1}):
        row = {"system": nothing, "conversations": said}
        assert read(row) == expected("user the cat | assistant a dog")
    alpaca = {"text_column": "instruction", "target_column": "output"}
    row = {"instruction": "the cat", "input": "red not green", "output": "a dog"}
    assert read(row, **alpaca) == expected("user the cat\n\nred not green | assistant a dog")
    assert read({**row, "input": ""}, **alpaca) == expected("user the cat | assistant a dog")


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_chats_of_a_language_model(tmp_path: Path, template: str | None) -> None:
    one = llama()
    one.processor.chat_template = template
    model = ecoflap.load(one.module, one.processor)
    file = given.write_lines(tmp_path / "a.jsonl", [text_chat()])
    sample = Chat(str(file)).load(model, 0).samples[0]
    text = "the cat sees\na dog\na house and a tree\n"
    if template:
        text = "user the cat sees | assistant a dog | user a house and a tree | assistant"
    asked, answer = (one.processor(part)["input_ids"] for part in (text, "red not green"))
    assert sample["input_ids"].tolist() == asked + answer
    assert sample["labels"].tolist() == [-100] * len(asked) + answer
    same = ecoflap.calibrate(model, [text_chat()]).samples[0]
    assert all(torch.equal(sample[name], same[name]) for name in sample)


def test_chats_that_are_too_long_are_left_out(
    language_model: PrunableModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = {"question": "the cat", "answer": "a dog"}
    file = given.write_lines(tmp_path / "a.jsonl", [text_chat(), short])
    with caplog.at_level(logging.INFO, logger="ecoflap"):
        found = Chat(str(file), sequence_length=8).load(language_model, 0)
    assert [sample["input_ids"].tolist() for sample in found.samples] == [
        language_model.processor("the cat a dog")["input_ids"]
    ]
    assert "1 of 2 chats have more than 8 tokens" in caplog.text
    assert "1 remain, and samples=128 asks for more" in caplog.text
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with pytest.raises(UserError, match=r"more than 3 tokens, the shortest 4; set a larger sequence_length"):
        Chat(str(file), sequence_length=3).load(language_model, 0)


def test_others_are_drawn_for_chats_that_are_too_long(
    language_model: PrunableModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fits = [place % 5 == 0 for place in range(50)]
    rows = [{"question": "the cat", "answer": "a dog"} if short else text_chat() for short in fits]
    file = str(given.write_lines(tmp_path / "a.jsonl", [*rows, {"question": "the cat"}]))
    seed = next(seed for seed in range(400) if draw(51, 51, seed)[-1] == 50)  # the bad row is the last one
    for samples in (3, 10):
        calibration = Chat(file, samples=samples, sequence_length=8)
        assert len(calibration.load(language_model, seed)) == samples
        calibration.check_rows(language_model, seed)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    with pytest.raises(UserError, match="line 51 says nothing"):  # before weights are read
        Chat(file, samples=11, sequence_length=8).check_rows(language_model, seed)
    chats = [text_chat(), *[{"messages": text_chat()["messages"][:2]}] * 3]
    assert len(ecoflap.calibrate(language_model, chats, samples=2, sequence_length=8)) == 2


def test_chats_from_python(vlm: PrunableModel, folder: Path) -> None:
    from datasets import Dataset

    rows = [{**row, "image": given.picture(number)} for number, row in enumerate(given.llava_chats())]
    wanted = ecoflap.calibrate(vlm, llava().data)
    assert ecoflap.calibrate(vlm, rows).fingerprint() == wanted.fingerprint()
    by_path = [{**row, "image": str(folder / row["image"])} for row in given.llava_chats()]
    assert ecoflap.calibrate(vlm, Dataset.from_list(by_path)).fingerprint() == wanted.fingerprint()
