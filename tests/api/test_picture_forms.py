"""Pictures with questions, captions or labels, in any form: one calibration set, or a refusal in words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from datasets import Dataset
from PIL import Image
from tokenizers.processors import TemplateProcessing
from torch.utils.data import DataLoader

import ecoflap
from ecoflap.data.example import Example
from ecoflap.errors import UserError
from tests import tiny
from tests.api.conftest import Given, clip, llava, picture, refused, talk
from tests.vlms.folders import MODELS


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


@pytest.mark.parametrize("form", ["file", "bytes", "opened"])
def test_a_picture_that_is_cut_off_is_named(tmp_path: Path, form: str) -> None:
    """Pillow opens it, and raises an OSError once its pixels are asked for."""
    noise = torch.randint(256, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.numpy()).save(tmp_path / "cut.jpg")
    content = (tmp_path / "cut.jpg").read_bytes()
    content = content[: len(content) // 2]
    (tmp_path / "cut.jpg").write_bytes(content)
    given = {
        "file": str(tmp_path / "cut.jpg"),
        "bytes": content,
        "opened": Image.open(tmp_path / "cut.jpg"),
    }
    rows = [{"image": picture(0), "caption": "a circle"}, {"image": given[form], "caption": "a cat"}]
    named = "the picture .*cut.jpg cannot be" if form == "file" else "image of example 1 of the data can't be"
    one = clip()
    with pytest.raises(UserError, match=rf"{named} read \(image file is truncated.*; .*take it out"):
        ecoflap.calibrate(ecoflap.load(one.module, one.processor), rows)


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
        refused(
            model,
            [{"image": picture(0), "label": label}],
            f"example 0 of the data has the label {label},",
            "5 classes",
        )
        held = {"pixel_values": pixels, "labels": torch.full((5,), label, dtype=torch.int32)}
        refused(model, [held], f"labels of the data hold numbers from {label} ", "5 classes")


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
