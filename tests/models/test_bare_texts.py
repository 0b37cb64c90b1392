"""Beginnings of captions reach a model as they stand, questions in its prompt; read off the tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from ecoflap.data.captions.calibration import Captions
from ecoflap.data.captions.task import CaptioningEvaluation
from ecoflap.data.conversation import Conversation, Picture, Turn
from ecoflap.data.easy_vqa.calibration import EasyVqa
from ecoflap.data.example import Example
from ecoflap.evaluate.inputs import interface_settings
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.blip2.generation import Blip2
from ecoflap.models.families.vlm.interface import VlmInterface
from ecoflap.run.config import package_file
from tests.data import caption_folders as folders
from tests.data.captions.test_task import nocaps

if not hasattr(transformers, "Blip2Config"):
    pytest.skip(f"transformers {transformers.__version__} has no BLIP-2", allow_module_level=True)


@pytest.fixture
def model() -> PrunableModel:
    """The embedded BLIP-2, asked as the published ones are."""
    return Blip2(package_file("mini/blip2"), prompt="Question: {} Short answer:").load(
        torch.device("cpu"), Selection()
    )


def words(model: PrunableModel, input_ids: torch.Tensor) -> list[int]:
    """The tokens beside those that stand for the picture and for padding."""
    marks = (model.module.config.image_token_index, model.processor.tokenizer.pad_token_id)  # type: ignore[union-attr]
    return [token for token in input_ids.tolist() if token not in marks]


def read(model: PrunableModel, text: str) -> list[int]:
    tokens: list[int] = model.processor.tokenizer(text)["input_ids"]
    return tokens


def test_calibration_reads_the_beginning_of_a_caption_alone(
    model: PrunableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders.cc3m(tmp_path)
    cut: list[Example] = []
    encode = type(model.interface).encode
    monkeypatch.setattr(
        type(model.interface), "encode", lambda self, example: cut.append(example) or encode(self, example)
    )  # type: ignore[func-returns-value]
    calibration = Captions(str(tmp_path), "cc3m", samples=6, prefix=True, name="cc3m").load(model, 0)
    assert len(cut) == 6
    for example, sample in zip(cut, calibration.samples, strict=True):
        assert example.text
        assert example.target
        assert words(model, sample["input_ids"]) == read(model, example.text)


def test_questions_are_still_put_into_the_prompt(model: PrunableModel) -> None:
    sample = EasyVqa(samples=1).load(model, 0).samples[0]
    begin, end = read(model, "Question:")[:-1], read(model, "Short answer:")
    assert words(model, sample["input_ids"])[: len(begin)] == begin
    assert words(model, sample["input_ids"])[-len(end) :] == end


def test_a_caption_is_asked_for_by_its_beginning_alone(
    model: PrunableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders.nocaps(tmp_path)
    asked: list[torch.Tensor] = []
    generate = model.module.generate

    def seen(**inputs: Any) -> Any:
        asked.append(inputs["input_ids"])
        return generate(**inputs)  # type: ignore[operator]

    monkeypatch.setattr(model.module, "generate", seen)
    task = nocaps(tmp_path, limit=2, beams=1, max_new_tokens=2)
    evaluation = CaptioningEvaluation(task, task.pictures("task")[:2], None, model.interface)  # type: ignore[arg-type]
    model.interface.answer(
        model, evaluation._examples(), SimpleNamespace(options=lambda: {"max_new_tokens": 2})
    )
    assert [words(model, row) for row in asked[0]] == [read(model, "a photo of")] * 2


@pytest.mark.parametrize(
    ("prompt", "mark", "text", "expected"),
    [
        ("USER: <image>\n{} ASSISTANT:", "<image>", "a photo of", "USER: <image>\n ASSISTANT: a photo of"),
        (
            "<|im_start|>user\n<|image_pad|>{}<|im_end|>\n",
            "<|image_pad|>",
            "a",
            "<|im_start|>user\n<|image_pad|><|im_end|>\na",
        ),
        ("USER: <image>\n{} ASSISTANT:", "<image>", "", "USER: <image>\n ASSISTANT:"),
        (
            "Question: {} Short answer:",
            "<image>",
            "a photo of",
            "a photo of",
        ),  # the processor itself puts InstructBLIP's picture before the text
    ],
)
def test_other_models_keep_the_place_of_the_picture(prompt: str, mark: str, text: str, expected: str) -> None:
    interface = VlmInterface(None, SimpleNamespace(image_token=mark), prompt)
    ask: Callable[[Example], str] = interface._question_prompt
    assert ask(Example(text, bare=True)) == expected
    assert ask(Example("is it red?")) == prompt.format("is it red?")


def test_a_talkative_model_is_asked_for_a_word() -> None:
    interface = VlmInterface(
        None, SimpleNamespace(image_token="<image>"), "USER: <image>\n{} ASSISTANT:", "\nAnswer briefly."
    )
    ask = interface._question_prompt
    assert ask(Example("is it red?")) == "USER: <image>\nis it red?\nAnswer briefly. ASSISTANT:"
    assert ask(Example("a photo of", bare=True)) == "USER: <image>\n ASSISTANT: a photo of"
    plain = VlmInterface(None, SimpleNamespace(image_token="<image>"), "USER: <image>\n{} ASSISTANT:")
    assert interface_settings(plain) != interface_settings(interface)
    chat = Conversation((Turn("user", (Picture("a.png"), "is it red?")), Turn("assistant", ("yes",))))
    assert interface._conversation_prompt(chat) == "USER: <image>\nis it red? ASSISTANT:"
    assert interface_settings(plain, brief=False) == interface_settings(interface, brief=False)


def test_options_of_the_image_processor_are_settings_of_the_interface() -> None:
    kwargs = SimpleNamespace(__annotations__={"size": int})
    processor = SimpleNamespace(image_token="<image>", image_processor=SimpleNamespace(valid_kwargs=kwargs))
    one, other = (VlmInterface(None, processor, "{}", images={"size": size}) for size in (8, 16))
    assert interface_settings(one) != interface_settings(other)
