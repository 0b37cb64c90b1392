"""Data in memory that are not understood, or not readable for a language model, are refused in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf
from datasets import Dataset
from safetensors.torch import save_file
from torch.utils.data import TensorDataset

import ecoflap
from ecoflap.api.forms import read, texts_of
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from tests import tiny
from tests.api.conftest import llama, llava, picture, refused, talk, texts, word_tokenizer
from tests.api.test_data_forms import ROWS

TEXTS = texts()


class Frame(dict[str, list[str]]):
    """Like a data frame of pandas: what it iterates over is the names of its columns."""

    def iterrows(self) -> None:
        """Its rows."""


def test_what_is_not_understood_is_refused(language_model: PrunableModel) -> None:
    ids = torch.ones(1, 5).long()
    refused(language_model, [], "empty")
    refused(language_model, 3, "int", "texts")
    rows = TensorDataset(torch.ones(2, 5).long())
    refused(language_model, rows, "TensorDataset", "can't be iterated over", "[data[place] for place in")
    refused(language_model, [3], "int", "texts")
    refused(language_model, torch.ones(2, 4, 3).long(), "shape [2, 4, 3]", "[batch, tokens]")
    refused(language_model, "hello", "calibration=hello is not known; give texts as a list; the choices are")
    refused(language_model, 50 * "a", f"calibration={40 * 'a'}... is not known")
    refused(language_model, "wikitext", "wikitext2")
    refused(language_model, "wikitext2", "pathh", "path", pathh="x")
    refused(language_model, TEXTS, "path", "in-memory", path="x")
    refused(language_model, ["the cat", {"text": "dog"}], "item 1", "one form")
    chatted = talk("a", "b")
    pair = {"text": "the cat", "target": "dog"}
    refused(language_model, [chatted, pair], "item 1", "one of examples", "are chats", "one form")
    refused(
        language_model, [{"text": "the cat"}, chatted], "item 1", "one of chats", "are examples", "one form"
    )
    refused(language_model, [{"text": "the cat"}, {"sentence": "dog"}], "item 1", "sentence", "rename")
    refused(language_model, [{"text": "the cat"}, {}], "item 1", "no columns")
    refused(language_model, [{"messages": None}], "messages", "rename")
    refused(language_model, [{"text": "the cat"}, {"input_ids": ids}], "item 1", "one of inputs")
    batch = {"image": ["a.png"] * 3, "question": ["what ?"] * 2}
    refused(language_model, batch, "item 0", "3 in image", "2 in question", "as many of each")
    refused(language_model, [{"sentence": "the cat"}], "sentence", "text", "rename")
    for label in (-1, 99):
        labelled = [{"input_ids": ids, "labels": torch.where(ids == 1, label, -100)}]
        refused(language_model, labelled, f"from {label} to {label}", "22 tokens", "-100")
    refused(language_model, {"train": Dataset.from_dict({"text": TEXTS})}, "data['train']")
    asked = [{"question": "the cat", "answer": "dog"}]
    refused(language_model, asked, "item 0 of the data has question, answer", '{"messages": [', "labels")
    refused(language_model, [{"text": "the cat", "target": "dog"}], "labels")
    refused(
        language_model, [{"question": "the cat", "response": "dog"}], "question, response", '{"messages": ['
    )
    refused(language_model, Frame(), "Frame", "to_dict")
    refused(language_model, [{"image": picture(0)}], "reads texts", "image")
    refused(language_model, [{"input_ids": torch.tensor([[5, 999]])}], "999", "22", "vocabulary")
    refused(language_model, [{"input_ids": torch.rand(2, 3)}], "float32", "token ids")
    refused(
        language_model, [{"input_ids": torch.ones(2, 3).long(), "labels": torch.ones(1, 3)}], "labels [1, 3]"
    )
    refused(language_model, [{"input_ids": [[2, 3], [2]]}], "input_ids", "list")
    masked = {"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.zeros(1, 3)}
    refused(language_model, [masked], "padding")
    refused(language_model, [{"input_ids": torch.tensor([3])}], "input_ids [1]", "no target for the loss")
    refused(language_model, [{"input_ids": ids, "labels": ids[:, 1:]}], "input_ids [5]", "labels [4]")
    refused(language_model, [{"input_ids": ids, "labels": 0 * ids - 100}], "no target for the loss", "-100")
    refused(language_model, TEXTS, "sequence_length=4000", sequence_length=4000)
    refused(language_model, TEXTS, "samples=0", samples=0)
    drawn = ecoflap.calibrate(language_model, TEXTS, samples=2, sequence_length=4)
    refused(language_model, drawn, "sequence_length, foo", "samples", sequence_length=2, foo=3)
    refused(language_model, TEXTS, "samples='8'", "whole number", samples="8")
    refused(language_model, TEXTS, "seed='a'", "whole number", seed="a")
    refused(replace(language_model, processor=None), TEXTS, "no tokenizer", "ecoflap.load(model, tokenizer)")


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("train.TXT", "text"),
        ("a.jsonl.gz", "chat"),
        ("a.parquet", "parquet"),
        ("a.tar", "webdataset"),
        ("a.safetensors", "token_file"),
    ],
)
def test_a_path_is_no_text(language_model: PrunableModel, name: str, reader: str) -> None:
    advice = f"data=ecoflap.calibrate(model, '{reader}', path='{name}')"
    refused(language_model, name, f"data='{name}' is a path", advice)


def test_the_path_of_any_file_or_folder_is_no_text(language_model: PrunableModel, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("the cat sees a dog")
    refused(language_model, f"{tmp_path}/notes", "is a path", f"NAME, path='{tmp_path}/notes'", "NAME is the")
    refused(language_model, str(tmp_path), "is a path", f"NAME, path='{tmp_path}'", "the choices are")
    refused(language_model, "Please read notes.txt", "is not known; give texts as a list")
    refused(language_model, "the cat " * 999, "is not known; give texts as a list")


def test_a_text_by_name_is_not_read_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(TEXTS))
    save_file({"tokens": torch.tensor([ROWS[1]] * 2)}, tmp_path / "rows.safetensors")
    text, rows = str(tmp_path / "text.txt"), str(tmp_path / "rows.safetensors")
    model = ecoflap.load(llama().module)
    refused(model, "wikitext2", "calibration=wikitext2", "no tokenizer", "ecoflap.load(", path=text)
    with pytest.raises(UserError, match=r"task=wikitext2 .* no tokenizer .* with its tokenizer"):
        ecoflap.evaluate(model, "wikitext2", path=text)
    assert len(ecoflap.calibrate(model, "token_file", path=rows, key="tokens")) == 2


@pytest.mark.parametrize("shape", [(1, 1, 5, 5), (1, 5, 5), (1, 4)])
def test_a_mask_of_more_than_padding_is_refused(
    language_model: PrunableModel, shape: tuple[int, ...]
) -> None:
    given = {"input_ids": torch.ones(1, 5).long(), "attention_mask": torch.ones(shape).tril()}
    found = f"attention_mask {list(shape[1:])}"
    refused(language_model, [given], "input_ids [5]", found, "shape of input_ids", "packed")


def test_fewer_samples_than_asked_for_are_warned_of(
    language_model: PrunableModel, caplog: pytest.LogCaptureFixture
) -> None:
    few = ecoflap.calibrate(language_model, TEXTS, samples=4000, sequence_length=16)
    assert f"samples=4000 was asked for and there are only {len(few)}" in caplog.text
    caplog.clear()
    ecoflap.calibrate(language_model, TEXTS)
    assert not caplog.text


def test_a_length_is_refused_where_it_sets_nothing(language_model: PrunableModel) -> None:
    one = llava()
    model = ecoflap.load(one.module, one.processor)
    words = "it is for texts and chats that a decoder language model reads, and the data are"
    refused(language_model, [{"input_ids": [2, 3, 4]}], words, "inputs", sequence_length=2)
    refused(model, one.data, "sequence_length=4: ", words, "examples", model.name, sequence_length=4)
    refused(model, [talk("what ?", "no", image=picture(0))], words, "chats", sequence_length=4)


def test_a_null_text_is_named() -> None:
    data = read([{"text": "a cat"}, {"text": None}])
    with pytest.raises(UserError, match="item 1 of the data has no text: its text is null; take it out"):
        texts_of(data, 100)


def test_ids_beyond_the_vocabulary_are_refused_in_any_form() -> None:
    sizes = {**tiny.LLAMA, "vocab_size": 12, "max_position_embeddings": 64}
    module = hf.LlamaForCausalLM(hf.LlamaConfig(num_key_value_heads=1, **sizes))
    model = ecoflap.load(module, word_tokenizer())
    for data in (
        TEXTS,
        [talk("what is red ?", "the tree and the house")],
        [{"input_ids": torch.tensor([2, 19])}],
    ):
        refused(model, data, "input_ids of the data hold ids from", "a vocabulary of 12", "own tokenizer")
