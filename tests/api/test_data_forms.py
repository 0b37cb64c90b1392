"""Whatever form data have, they make one and the same calibration set; what isn't understood is refused in
words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from datasets import Dataset, IterableDataset
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing
from torch.utils.data import DataLoader

import ecoflap
from ecoflap.api.forms import read, texts_of
from ecoflap.data.calibration_set import draw
from ecoflap.data.example import Example
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from tests import tiny
from tests.api.conftest import Given, clip, llama, llava, picture, texts, word_tokenizer
from tests.vlms.folders import MODELS

TEXTS = texts()
FORMS_OF_TEXTS: dict[str, Callable[[], Any]] = {
    "tuple": lambda: tuple(TEXTS),
    "generator": lambda: (text for text in TEXTS),
    "dicts": lambda: [{"text": text, "label": 1} for text in TEXTS],
    "dataset": lambda: Dataset.from_dict({"text": TEXTS}),
    "stream": lambda: IterableDataset.from_generator(lambda: ({"text": text} for text in TEXTS)),
    "loader of texts": lambda: DataLoader(TEXTS, batch_size=5),
    "loader of dicts": lambda: DataLoader([{"text": text} for text in TEXTS], batch_size=5),
}


@pytest.fixture(scope="module")
def language_model() -> PrunableModel:
    one = llama()
    return ecoflap.load(one.module, one.processor)


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


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(6):
        picture(number).save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(6)]


@pytest.mark.parametrize("make", [clip, llava])
def test_examples_with_pictures_in_any_form(make: Callable[[], Given], pictures: list[str]) -> None:
    one = make()
    model = ecoflap.load(one.module, one.processor)
    wanted = ecoflap.calibrate(model, one.data)
    by_path = [{**row, "image": path} for row, path in zip(one.data, pictures, strict=True)]
    forms = {
        "paths": by_path,
        "path objects": [{**row, "image": Path(row["image"])} for row in by_path],
        "generator": (row for row in one.data),
        "dataset": Dataset.from_list(by_path),
        "loader": DataLoader(by_path, batch_size=4),
        "renamed": [
            {{"text": "question", "target": "answer"}.get(k, k): v for k, v in row.items()}
            for row in one.data
        ],
    }
    if make is clip:
        forms["renamed"] = [{"image": row["image"], "caption": row["text"]} for row in one.data]
    for form, data in forms.items():
        assert ecoflap.calibrate(model, data).fingerprint() == wanted.fingerprint(), form
    assert ecoflap.calibrate(model, by_path).sources >= {str(Path(pictures[0]).resolve())}
    assert not wanted.sources


def test_a_clip_without_a_processor_reads_what_its_processor_gives() -> None:
    one = clip()
    texts, images = ([row[name] for row in one.data] for name in ("text", "image"))
    inputs = {
        **one.processor(text=texts, images=images, return_tensors="pt", padding=True),
        "return_loss": True,
    }
    found = []
    for processor in (one.processor, None):
        model = ecoflap.load(one.module, processor)
        data = ecoflap.calibrate(model, [inputs])
        found.append(ecoflap.score(model, data, "first_order", batch_size=4))
    assert found[0].importance == found[1].importance
    assert all(value > 0 for value in found[0].importance.values())


def test_a_clip_without_a_processor_reads_nothing_raw() -> None:
    one = clip()
    model = ecoflap.load(one.module)
    refused(model, one.data, "no tokenizer", "model inputs")
    refused(model, [row["text"] for row in one.data], "no tokenizer", "model inputs")
    with pytest.raises(UserError, match="CLIPModel"):
        ecoflap.evaluate(model, "easy_retrieval")


def test_a_label_is_no_caption() -> None:
    one = clip()
    labelled = [{"image": row["image"], "label": number} for number, row in enumerate(one.data)]
    refused(ecoflap.load(one.module, one.processor), labelled, "example 0", "a label", "a caption")
    zero_shot = ecoflap.load(one.module, one.processor, loss="classification")
    refused(zero_shot, one.data, "calibration set with classes", "model.loss=contrastive")


def test_one_pair_has_nothing_to_be_compared_with() -> None:
    one = clip()
    model = ecoflap.load(one.module, one.processor)
    data = ecoflap.calibrate(model, one.data[:1])
    for score in ("first_order", "zeroth_order"):
        with pytest.raises(
            UserError, match="compares the samples of a batch, such as contrastive, needs two"
        ):
            ecoflap.score(model, data, score)


def test_what_a_clip_processor_gives_is_what_its_examples_give() -> None:
    one = clip()
    model = ecoflap.load(one.module, one.processor)
    wanted = ecoflap.calibrate(model, one.data)
    made = one.processor(
        images=[row["image"] for row in one.data],
        text=[row["text"] for row in one.data],
        padding=True,
        return_tensors="pt",
    )
    found = ecoflap.calibrate(model, [made])
    assert len(found) == len(wanted)
    for sample, other in zip(found.samples, wanted.samples, strict=True):
        assert all(torch.equal(sample[name], other[name]) for name in other)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_what_a_vlm_processor_gives(batch_size: int) -> None:
    one = llava()
    model = ecoflap.load(one.module, one.processor)
    wanted = ecoflap.calibrate(model, one.data)
    one.processor.tokenizer.padding_side = "left"
    batches = [
        one.processor(
            images=[row["image"] for row in rows],
            text=[f"USER: <image> {row['text']} ASSISTANT: {row['target']}" for row in rows],
            padding=True,
            return_tensors="pt",
        )
        for rows in (one.data[start : start + batch_size] for start in range(0, len(one.data), batch_size))
    ]
    image_token = one.module.config.image_token_id
    found = ecoflap.calibrate(model, batches)
    for sample, other in zip(found.samples, wanted.samples, strict=True):
        assert torch.equal(sample["pixel_values"], other["pixel_values"])
        assert bool(sample["attention_mask"].all())
        assert torch.equal(sample["labels"] == -100, sample["input_ids"] == image_token)
    assert torch.isfinite(model.loss({name: tensor[None] for name, tensor in found.samples[0].items()})).all()


def test_pictures_with_labels() -> None:
    torch.manual_seed(0)
    module = hf.ViTForImageClassification(hf.ViTConfig(num_labels=5, **tiny.VISION))
    processor = hf.ViTImageProcessor(size={"height": 8, "width": 8})
    model = ecoflap.load(module, processor)
    rows = [{"image": picture(number), "label": number} for number in range(5)]
    pixels = processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    batches = [{"pixel_values": pixels, "labels": torch.arange(5)}]
    wanted = ecoflap.calibrate(model, rows)
    assert ecoflap.calibrate(model, batches).fingerprint() == wanted.fingerprint()
    single = [{"pixel_values": one, "labels": torch.tensor(label)} for label, one in enumerate(pixels)]
    assert ecoflap.calibrate(model, single).fingerprint() == wanted.fingerprint()
    refused(model, [{"image": picture(0), "label": "circle"}], "'circle'", "label2id")
    for label in (-1, 5):
        refused(model, [{"image": picture(0), "label": label}], f"label {label} ", "5 classes")
        held = {"pixel_values": pixels, "labels": torch.full((5,), label, dtype=torch.int32)}
        refused(model, [held], f"labels of the data hold numbers from {label} ", "5 classes")


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


def talk(question: str, answer: str, **columns: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **columns}


def refused(model: PrunableModel, data: Any, *words: str, **options: Any) -> None:
    with pytest.raises(UserError) as caught:
        ecoflap.calibrate(model, data, **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


class Frame(dict[str, list[str]]):
    """Like a data frame of pandas: what it iterates over is the names of its columns."""

    def iterrows(self) -> None:
        """Its rows."""


def test_what_is_not_understood_is_refused(language_model: PrunableModel) -> None:
    ids = torch.ones(1, 5).long()
    refused(language_model, [], "empty")
    refused(language_model, 3, "int", "texts")
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


def test_an_answer_stands_before_what_a_vlms_tokenizer_puts_behind_texts() -> None:
    plain, ending = llava(), llava()
    words = ending.processor.tokenizer
    words._tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", words.eos_token_id)]
    )
    assert words("is there")["input_ids"][-1] == words.eos_token_id
    wanted, found = (ecoflap.load(one.module, one.processor) for one in (plain, ending))
    assert ecoflap.calibrate(found, plain.data).fingerprint() == (
        ecoflap.calibrate(wanted, plain.data).fingerprint()
    )
    asked = [
        found.interface._question_prompt(Example(text, "")) for text in ("what ?", "is there a circle ?")
    ]
    pictures = [picture(number) for number in range(2)]
    words.padding_side = plain.processor.tokenizer.padding_side = "left"
    batch, expected = (one.interface.inputs.of_batch(pictures, asked) for one in (found, wanted))
    assert all(batch[name].equal(expected[name]) for name in ("input_ids", "attention_mask"))


def test_what_a_model_with_pictures_cannot_read_is_refused() -> None:
    one = llava()
    model = ecoflap.load(one.module, one.processor)
    refused(model, ["what is there ?"], "reads pictures", '"image"')
    refused(model, [{"text": "what is there ?", "target": "a circle"}], "example 0", "no image")
    refused(model, [{"image": picture(0), "text": "what is there ?"}], "example 0", "target")
    refused(model, [{"image": picture(0), "label": 3}], "example 0", "a label", "give a target")
    refused(model, [{"image": 3, "target": "a circle"}], "int", "path")
    refused(model, [{"image": "nowhere.png", "target": "a circle"}], "nowhere.png")
    refused(model, [{"image": picture(0), "target": ["a", "b"]}], "list", "'a'")


def test_chats_without_a_picture_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = llava()
    model = ecoflap.load(one.module, one.processor)
    picture(0).save(tmp_path / "0.png")
    rows = [talk("is there ?", "no"), talk("what ?", "a circle", image=str(tmp_path / "0.png"))]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with caplog.at_level("INFO"):
        named = ecoflap.calibrate(model, "chat", path=str(tmp_path / "chats.jsonl"))
        found = ecoflap.calibrate(model, rows)
    assert found.fingerprint() == named.fingerprint()
    assert len(found) == 1
    assert "data: 1 rows without a picture are left out" in caplog.text
    refused(model, rows[:1], "data: ", "none of the 1 rows has one")


def test_a_length_is_refused_where_it_sets_nothing(language_model: PrunableModel) -> None:
    one = llava()
    model = ecoflap.load(one.module, one.processor)
    words = "it is for texts and chats that a decoder language model reads, and the data are"
    refused(language_model, [{"input_ids": [2, 3, 4]}], words, "inputs", sequence_length=2)
    refused(model, one.data, "sequence_length=4: ", words, "examples", model.name, sequence_length=4)
    refused(model, [talk("what ?", "no", image=picture(0))], words, "chats", sequence_length=4)


def test_long_texts_of_a_vlm_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    one = llava()
    one.module.config.text_config.max_position_embeddings = 40
    model = ecoflap.load(one.module, one.processor)
    ecoflap.calibrate(model, one.data[:1])
    assert "was made for 40 tokens" not in caplog.text
    ecoflap.calibrate(model, [{**one.data[0], "text": 99 * "what "}])
    assert re.search(
        r"data has \d+ tokens: .* was made for 40 tokens \(max_position_embeddings\)", caplog.text
    )


def test_the_place_of_a_picture_in_a_plain_question_goes() -> None:
    one = llava()
    model = ecoflap.load(one.module, one.processor)
    (image, question, answer), mark = one.data[0].values(), "<image>"
    wanted = ecoflap.calibrate(model, one.data[:1])
    for text in (f"{mark}\n{question}", f"{question}\n{mark}"):
        rows = [{"image": image, "question": text, "answer": answer}]
        assert ecoflap.calibrate(model, rows).fingerprint() == wanted.fingerprint()
    twice = {"image": image, "text": f"{mark}{mark}{question}", "target": answer}
    refused(model, [twice], "one picture", "2 places for pictures", mark)
    refused(model, [{**one.data[0], "target": f"a {mark}"}], "an answer has <image>", "a <image>")
    one.processor.image_token = "shape"  # as other models name it
    refused(model, one.data, "a question has shape, which stands for a picture", "what shape is there")


@pytest.mark.parametrize("prompt", ["USER: {} ASSISTANT:", "USER: <image><image> {} ASSISTANT:"])
def test_a_prompt_must_show_one_picture(prompt: str) -> None:
    one = llava()
    assert ecoflap.load(one.module, one.processor, prompt="USER: <image>\n{} ASSISTANT:")
    with pytest.raises(UserError, match=r"model.prompt='USER.* must show one picture, which <image> stands"):
        ecoflap.load(one.module, one.processor, prompt=prompt)


def test_what_a_token_of_mllama_sees_goes_with_the_padding() -> None:
    module, processor = MODELS["mllama"].build()
    processor.tokenizer.padding_side = "left"
    model = ecoflap.load(module, processor)
    asked = [
        processor.apply_chat_template(chat(text), tokenize=False)
        for text in ("what ?", "is it red or blue ?")
    ]
    images = [[picture(number)] for number in range(2)]
    given = ecoflap.calibrate(
        model, [processor(images=images, text=asked, padding=True, return_tensors="pt")]
    )
    for sample, image, text in zip(given.samples, images, asked, strict=True):
        alone = processor(images=[image], text=[text], return_tensors="pt")
        for one in ("input_ids", "cross_attention_mask"):
            assert sample[one].equal(alone[one]), one


def chat(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def test_a_null_text_is_named() -> None:
    data = read([{"text": "a cat"}, {"text": None}])
    with pytest.raises(UserError, match="item 1 of the data has no text: its text is null; take it out"):
        texts_of(data, 100)
