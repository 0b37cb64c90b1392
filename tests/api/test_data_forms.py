"""Whatever form texts, chats and inputs have, they make one and the same calibration set."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader

import ecoflap
from ecoflap.data.calibration_set import draw
from ecoflap.models.core.prunable import PrunableModel
from tests import tiny
from tests.api.conftest import clip, picture, refused, talk, texts, word_tokenizer

TEXTS = texts()


class Stream(torch.utils.data.IterableDataset[Any]):
    """Rows without a length."""

    def __init__(self, rows: Iterable[Any]) -> None:
        self.rows = list(rows)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


FORMS_OF_TEXTS: dict[str, Callable[[], Any]] = {
    "tuple": lambda: tuple(TEXTS),
    "generator": lambda: (text for text in TEXTS),
    "dicts": lambda: [{"text": text, "label": 1} for text in TEXTS],
    "dataset": lambda: Dataset.from_dict({"text": TEXTS}),
    "stream": lambda: IterableDataset.from_generator(lambda: ({"text": text} for text in TEXTS)),
    "loader of texts": lambda: DataLoader(TEXTS, batch_size=5),
    "loader of a stream": lambda: DataLoader(Stream({"text": text} for text in TEXTS), batch_size=5),
    "loader of dicts": lambda: DataLoader([{"text": text} for text in TEXTS], batch_size=5),
}


@pytest.mark.parametrize("form", FORMS_OF_TEXTS)
def test_texts_in_any_form(language_model: PrunableModel, form: str, tmp_path: Path) -> None:
    wanted = ecoflap.calibrate(language_model, TEXTS, samples=4, sequence_length=16)
    found = ecoflap.calibrate(language_model, FORMS_OF_TEXTS[form](), samples=4, sequence_length=16)
    assert found.fingerprint() == wanted.fingerprint()
    assert [list(sample["input_ids"].shape) for sample in found.samples] == [[16]] * 4


def test_perplexity_is_on_windows_that_the_model_reads(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text(" ".join(TEXTS))
    module = hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=22, n_positions=32, n_embd=8, n_layer=1, n_head=2))
    model = ecoflap.load(module, word_tokenizer())
    found = ecoflap.evaluate(model, "text", path=str(tmp_path / "test.txt"))
    assert found == ecoflap.evaluate(model, "text", path=str(tmp_path / "test.txt"), sequence_length=32)
    assert found["rows"] == 11  # of 360 words


def test_texts_are_drawn_as_the_command_line_draws_them(
    language_model: PrunableModel, tmp_path: Path
) -> None:
    (tmp_path / "train.txt").write_text("\n\n".join(TEXTS))
    options = {"samples": 4, "sequence_length": 16, "seed": 3}
    named = ecoflap.calibrate(language_model, "wikitext2", path=str(tmp_path / "train.txt"), **options)
    assert ecoflap.calibrate(language_model, TEXTS, **options).fingerprint() == named.fingerprint()


def test_an_endless_stream_of_texts_ends(language_model: PrunableModel) -> None:
    def stream() -> Iterator[str]:
        while True:
            yield from TEXTS

    assert len(ecoflap.calibrate(language_model, stream(), samples=4, sequence_length=16)) == 4


def test_few_short_texts_are_one_short_window(
    language_model: PrunableModel, caplog: pytest.LogCaptureFixture
) -> None:
    found = ecoflap.calibrate(language_model, ["the cat sees a dog", "a house"])
    assert [sample["input_ids"].tolist() for sample in found.samples] == [
        language_model.processor("the cat sees a dog a house")["input_ids"]
    ]
    assert re.search(r"the texts have only \d+ tokens, less than one window of \d+", caplog.text)


def padded(side: str) -> dict[str, torch.Tensor]:
    return dict(word_tokenizer(padding_side=side)(LINES, padding=True, return_tensors="pt"))


LINES = ["the cat sees a dog", "a house and a tree or a small house", "red not green"]
ROWS = [word_tokenizer()(line)["input_ids"] for line in LINES]
FORMS_OF_INPUTS: dict[str, Callable[[], Any]] = {
    "tensors of one sample": lambda: [{"input_ids": torch.tensor(row)} for row in ROWS],
    "batches of one": lambda: [{"input_ids": torch.tensor([row])} for row in ROWS],
    "padded right": lambda: [padded("right")],
    "padded left": lambda: padded("left"),
    "with labels": lambda: [with_labels(padded("left"))],
    "dataset": lambda: Dataset.from_dict({"input_ids": ROWS, "line": LINES}),
    "torch dataset": lambda: Dataset.from_dict({"input_ids": ROWS}).with_format("torch"),
    "loader of a stream": lambda: DataLoader(Stream({"input_ids": torch.tensor(row)} for row in ROWS), None),
    "loader": lambda: DataLoader(Dataset.from_dict({"text": LINES}), 2, collate_fn=collate),
}


def with_labels(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def collate(rows: list[dict[str, str]]) -> Any:
    return word_tokenizer()([row["text"] for row in rows], padding=True, return_tensors="pt")


@pytest.mark.parametrize("form", FORMS_OF_INPUTS)
def test_model_inputs_in_any_form(language_model: PrunableModel, form: str) -> None:
    found = ecoflap.calibrate(language_model, FORMS_OF_INPUTS[form]())
    assert [sample["input_ids"].tolist() for sample in found.samples] == ROWS
    assert all(list(sample) == ["input_ids"] for sample in found.samples)


def test_a_tensor_of_rows(language_model: PrunableModel) -> None:
    rows = torch.randint(2, 20, (5, 7), generator=torch.Generator().manual_seed(0))
    for samples, places in ((3, draw(5, 3, 0)), (5, range(5))):
        found = ecoflap.calibrate(language_model, rows, samples=samples, seed=0)
        assert torch.equal(torch.stack([sample["input_ids"] for sample in found.samples]), rows[[*places]])


@pytest.mark.parametrize("form", ["inputs", "chats"])
def test_rows_of_a_known_length_are_drawn_by_the_seed(language_model: PrunableModel, form: str) -> None:
    ids = range(2, 18)
    words = language_model.processor.convert_ids_to_tokens(ids)
    chats, inputs = [talk("what ?", word) for word in words], [{"input_ids": [number] * 2} for number in ids]
    rows: list[Any] = chats if form == "chats" else inputs

    def places(data: Any, samples: int, seed: int = 3) -> list[int]:
        found = ecoflap.calibrate(language_model, data, samples=samples, seed=seed)
        return [ids.index(int(sample["input_ids"][-1])) for sample in found.samples]

    for data in (rows, tuple(rows), Dataset.from_list(rows)):
        assert places(data, 5) == draw(16, 5, 3)
        assert places(data, 5, seed=4) == draw(16, 5, 4)
        assert places(data, 16) == [*range(16)]
    for stream in ((row for row in rows), IterableDataset.from_generator(lambda: iter(rows))):
        assert places(stream, 5) == [*range(5)]


def test_examples_of_a_known_length_are_drawn_by_the_seed() -> None:
    one = clip()
    model = ecoflap.load(one.module, one.processor)
    wanted = ecoflap.calibrate(model, [one.data[place] for place in draw(6, 3, 1)])
    assert ecoflap.calibrate(model, one.data, samples=3, seed=1).fingerprint() == wanted.fingerprint()
    (third,) = draw(6, 1, 1)
    rows = [{**row, "image": 3} if place == third else row for place, row in enumerate(one.data)]
    rows[third] = {"image": picture(0), "label": 2}
    refused(model, rows, f"example {third} of the data", "a label", samples=1, seed=1)


def test_batches_of_chats_are_split(language_model: PrunableModel) -> None:
    rows = [talk(f"what is {word} ?", word, system="the house") for word in ("red", "green", "a tree")]
    wanted = ecoflap.calibrate(language_model, rows)
    chats = Dataset.from_list(rows)
    batches = {
        "batched": chats.batch(2),
        "iterated": chats.iter(2),
        "lists": DataLoader(rows, batch_size=2, collate_fn=list),
        "one by one": DataLoader(rows, batch_size=None),
    }
    for form, data in batches.items():
        assert ecoflap.calibrate(language_model, data).fingerprint() == wanted.fingerprint(), form
    collated = DataLoader(rows, batch_size=2)
    refused(language_model, collated, "row 0", "turn 1: its role is a list", "one by one", "batch_size=None")


def test_labels_that_leave_out_a_prompt_count(language_model: PrunableModel) -> None:
    row = torch.tensor([ROWS[1]])
    answer = torch.where(torch.arange(row.shape[1]) < 4, -100, row)
    sample = ecoflap.calibrate(language_model, [{"input_ids": row, "labels": answer}]).samples[0]
    module: Any = language_model.module
    with torch.no_grad():
        loss = language_model.loss({name: tensor[None] for name, tensor in sample.items()})
        torch.testing.assert_close(loss[0], module(input_ids=row, labels=answer).loss)
        assert not torch.isclose(loss[0], module(input_ids=row, labels=row).loss)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_short_integers_are_ids_and_labels_too(language_model: PrunableModel, dtype: torch.dtype) -> None:
    ids = torch.tensor([ROWS[1]])
    labels = torch.where(torch.arange(ids.shape[1]) < 4, 0, ids)
    wanted = ecoflap.calibrate(language_model, [{"input_ids": ids, "labels": labels}])
    short = [{"input_ids": ids.to(dtype).numpy(), "labels": labels.to(dtype)}]
    found = ecoflap.calibrate(language_model, short)
    assert found.fingerprint() == wanted.fingerprint()
    assert all(tensor.dtype == torch.long for tensor in found.samples[0].values())
    assert ecoflap.score(language_model, found, "first_order").importance


def test_encoder_decoders_read_pairs_or_texts() -> None:
    torch.manual_seed(0)
    words = word_tokenizer()
    module = hf.T5ForConditionalGeneration(hf.T5Config(**{**tiny.GATED_T5, "vocab_size": len(words)}))
    model = ecoflap.load(module, words)
    pairs = [{"text": line, "target": "the cat"} for line in LINES]
    wanted = ecoflap.calibrate(model, pairs)
    batch = words(LINES, padding=True, return_tensors="pt")
    labels = words(["the cat"] * 3, return_tensors="pt")["input_ids"]
    padded_labels = torch.nn.functional.pad(labels, (0, 2), value=-100)
    found = ecoflap.calibrate(model, [{**batch, "labels": padded_labels}])
    for sample, other in zip(found.samples, wanted.samples, strict=True):
        assert all(
            torch.equal(sample[name], other[name]) for name in ("input_ids", "attention_mask", "labels")
        )
    collated = {"decoder_input_ids": module.prepare_decoder_input_ids_from_labels(padded_labels)}
    for sample in ecoflap.calibrate(model, [{**batch, "labels": padded_labels, **collated}]).samples:
        assert torch.equal(
            sample["decoder_input_ids"],
            module.prepare_decoder_input_ids_from_labels(sample["labels"][None])[0],
        )
    drawn = ecoflap.calibrate(model, TEXTS, samples=3)
    for sample in drawn.samples:
        assert set(sample) == {"input_ids", "attention_mask", "labels"}
    rows = [{"text": text} for text in TEXTS]
    for data in (rows, Dataset.from_list(rows), DataLoader(rows, batch_size=5)):
        assert ecoflap.calibrate(model, data, samples=3).fingerprint() == drawn.fingerprint()
    refused(model, [rows[0], pairs[0]], "item 1 of the data has text, target", "whole texts", "messages")
