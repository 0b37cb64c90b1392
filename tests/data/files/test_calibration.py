"""Rows make the same calibration set in whatever file they come; the loss is that of the last answer."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import transformers as hf

import ecoflap
from ecoflap.data.calibration_set import CalibrationSet, draw
from ecoflap.data.files.calibration import Chat, Parquet, RowsCalibration, WebDataset
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.run.stored_calibration import stored_calibration
from ecoflap.storage.cache.store import Store
from tests import tiny
from tests.api.conftest import clip, llama, llava, texts, word_tokenizer
from tests.data.files import rows as given

pytestmark = pytest.mark.long

if not hasattr(transformers, "LlavaForConditionalGeneration"):
    pytest.skip(f"transformers {transformers.__version__} has no LLaVA", allow_module_level=True)

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} | {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


@pytest.fixture(scope="module")
def vlm() -> PrunableModel:
    one = llava()
    return ecoflap.load(one.module, one.processor)


@pytest.fixture(scope="module")
def language_model() -> PrunableModel:
    one = llama()
    return ecoflap.load(one.module, one.processor)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    given.write_pictures(tmp_path)
    return tmp_path


def shard(folder: Path, rows: list[dict[str, Any]]) -> Path:
    members: dict[str, bytes] = {}
    for number, row in enumerate(rows):
        members[f"{number:06}.png"] = given.png(number)
        kept = {name: value for name, value in row.items() if name != "image"}
        members[f"{number:06}.json"] = json.dumps(kept).encode()
    return given.write_shard(folder / "000000.tar", members)


def packed(folder: Path) -> Path:
    file = folder / "chats.NDJSON.GZ"
    file.write_bytes(
        gzip.compress(given.write_lines(folder / "chats.jsonl", given.llava_chats()).read_bytes())
    )
    return file


def listed(folder: Path) -> Path:
    (folder / "chats.json").write_text(json.dumps(given.llava_chats(), indent=1))
    return folder / "chats.json"


FILES: dict[str, tuple[type[RowsCalibration], Callable[[Path], Path]]] = {
    "llava lines": (Chat, lambda to: given.write_lines(to / "a.jsonl", given.llava_chats())),
    "llava list": (Chat, listed),
    "packed": (Chat, packed),
    "openai": (Chat, lambda to: given.write_lines(to / "a.jsonl", given.openai_chats())),
    "columns": (Chat, lambda to: given.write_lines(to / "a.jsonl", given.columns())),
    "parquet chats": (Parquet, lambda to: given.write_parquet(to / "a.parquet", given.llava_chats())),
    "parquet columns": (Parquet, lambda to: given.write_parquet(to / "a.parquet", given.columns(), 4)),
    "tar chats": (WebDataset, lambda to: shard(to, given.llava_chats())),
    "tar columns": (WebDataset, lambda to: shard(to, given.columns())),
}


@pytest.mark.parametrize("form", FILES)
def test_a_row_is_the_same_in_every_file(vlm: PrunableModel, folder: Path, form: str) -> None:
    kind, write = FILES[form]
    calibration = kind(str(write(folder)), samples=4)
    calibration.check_data("calibration")
    wanted = ecoflap.calibrate(
        vlm,
        [
            {"image": str(folder / row["image"]), "text": row["question"], "target": row["answer"]}
            for row in (given.columns()[place] for place in draw(6, 4, 3))
        ],
    )
    found = calibration.load(vlm, 3)
    assert found.fingerprint() == wanted.fingerprint()
    assert str(Path(str(calibration.path)).resolve()) in found.sources
    if kind is Chat:
        assert wanted.sources <= found.sources


def test_a_stored_set_is_not_that_of_other_files(vlm: PrunableModel, folder: Path) -> None:
    """Neither a pattern nor the folder of a file's pictures is a path among the options."""
    file = given.write_lines(folder / "a-0.jsonl", given.llava_chats())
    store, chats = Store(folder / "cache"), Chat(path=str(folder / "a-*.jsonl"), samples=6)

    def drawn() -> tuple[str, bool]:
        key = {"calibration": {"path": chats.path}, "processor": {}}
        found, cached = stored_calibration(store, chats, vlm, 0, key)
        return found.fingerprint(), cached

    before, _ = drawn()
    assert drawn() == (before, True)
    (folder / "0.png").write_bytes(given.png(7))
    pictured, cached = drawn()
    assert (pictured == before, cached) == (False, False)
    given.write_lines(file, given.llava_chats(4))
    other, cached = drawn()
    assert (other == pictured, cached) == (False, False)
    (folder / "unused.png").write_bytes(given.png(1))
    assert drawn() == (other, True)


def test_rows_of_a_draw_come_from_their_row_groups(folder: Path) -> None:
    files = [
        given.write_parquet(folder / f"train-{part}.parquet", given.columns()[3 * part : 3 * part + 3])
        for part in range(2)
    ]
    rows = Parquet().open(files)
    assert len(rows) == 6
    order = [4, 0, 5, 2, 2, 1, 3]
    found = rows.read(order)
    assert [row.values["image"]["path"] for row in found] == [f"{place}.png" for place in order]
    assert [row.where for row in found[:2]] == [f"{files[1]}, row 2", f"{files[0]}, row 1"]


def of_split(folder: Path, split: str) -> list[str]:
    return [file.name for file in Parquet(str(folder), split=split).files]


def test_files_of_a_split(folder: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        given.write_parquet(folder / f"{name}.parquet", given.columns(1))
    assert of_split(folder, "train") == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert of_split(folder, "val") == of_split(folder, "validation") == ["validation-00000-of-00001.parquet"]
    with pytest.raises(UserError, match=r"calibration\.split=test: .* has train, validation"):
        of_split(folder, "test")
    pattern = Parquet(str(folder / "*-00001-*"))
    assert [file.name for file in pattern.files] == ["train-00001-of-00002.parquet"]


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


def test_the_first_turns_alone(vlm: PrunableModel, folder: Path) -> None:
    chats = given.write_lines(folder / "a.jsonl", [long_chat()])
    single = given.write_lines(folder / "b.jsonl", given.columns(1))
    found = Chat(str(chats), turns="first").load(vlm, 0)
    assert found.fingerprint() == Chat(str(single)).load(vlm, 0).fingerprint()


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


def test_texts_in_parquet(language_model: PrunableModel, tmp_path: Path) -> None:
    words = texts()
    file = given.write_parquet(tmp_path / "a.parquet", [{"text": text} for text in words], 5)
    found = Parquet(str(file), samples=3, sequence_length=16).load(language_model, 1)
    shuffled = [words[place] for place in draw(len(words), len(words), 1)]
    tokens = language_model.processor(" ".join(shuffled), return_tensors="pt")["input_ids"][0]
    windows = tokens.unfold(0, 16, 16)
    wanted = windows[draw(len(windows), 3, 1)]
    assert torch.equal(torch.stack([sample["input_ids"] for sample in found.samples]), wanted)
    torch.manual_seed(0)
    reader = word_tokenizer()
    t5 = hf.T5ForConditionalGeneration(hf.T5Config(**{**tiny.GATED_T5, "vocab_size": len(reader)}))
    samples = Parquet(str(file), samples=3).load(ecoflap.load(t5, reader), 1).samples
    assert [set(sample) for sample in samples] == [{"input_ids", "attention_mask", "labels"}] * 3


def test_captions_in_tar_shards(folder: Path) -> None:
    one = clip()
    model = ecoflap.load(one.module, one.processor)
    members: dict[str, bytes] = {"__index__.txt": b""}
    for number in range(4):
        members |= {
            f"a/{number}.png": given.png(number),
            f"a/{number}.txt": f"a picture of {number}\n".encode(),
        }
    given.write_shard(folder / "0.tar", {k: v for k, v in members.items() if k != "__index__.txt"})
    found = WebDataset(str(folder), samples=None).load(model, 2)
    wanted = ecoflap.calibrate(
        model,
        [{"image": given.picture(place), "caption": f"a picture of {place}"} for place in draw(4, 4, 2)],
    )
    assert found.fingerprint() == wanted.fingerprint()


def test_pictures_of_a_sample_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [*(f"s.{number}.png" for number in range(12)), "s.png"]
    members = {name: given.png(0) for name in sorted(names)} | {"s.txt": b"a"}
    rows = WebDataset().open([given.write_shard(tmp_path / "0.tar", members)])
    assert [image["path"] for image in rows.read([0])[0].values["images"]] == names


def test_a_byte_order_mark_in_a_shard_is_no_text(tmp_path: Path) -> None:
    members = {"0.txt": "a café".encode("utf-8-sig"), "1.json": '{"caption": "a café"}'.encode("utf-8-sig")}
    rows = WebDataset().open([given.write_shard(tmp_path / "0.tar", members)])
    assert [row.values for row in rows.read([0, 1])] == [{"caption": "a café"}] * 2


def test_pictures_by_url_in_a_folder_with_a_space_and_an_umlaut(vlm: PrunableModel, folder: Path) -> None:
    given.write_pictures(folder / "schöne Bilder")
    wanted = Chat(str(given.write_lines(folder / "a.jsonl", given.columns()))).load(vlm, 0).fingerprint()
    addressed = [
        {**row, "image": (folder / "schöne Bilder" / row["image"]).as_uri()} for row in given.columns()
    ]
    assert "%20" in addressed[0]["image"]
    file = given.write_lines(folder / "b.jsonl", addressed)
    assert Chat(str(file)).load(vlm, 0).fingerprint() == wanted
    assert len(ecoflap.calibrate(vlm, [{**row, "text": row["question"]} for row in addressed])) == 6


def test_labels_in_parquet(folder: Path) -> None:
    torch.manual_seed(0)
    module = hf.ViTForImageClassification(hf.ViTConfig(num_labels=5, **tiny.VISION))
    model = ecoflap.load(module, hf.ViTImageProcessor(size={"height": 8, "width": 8}))
    rows = [{"image": f"{number}.png", "label": number} for number in range(5)]
    found = Parquet(str(given.write_parquet(folder / "a.parquet", rows))).load(model, 0)
    assert [int(sample["labels"]) for sample in found.samples] == draw(5, 5, 0)


def test_chats_from_python(vlm: PrunableModel, folder: Path) -> None:
    from datasets import Dataset

    rows = [{**row, "image": given.picture(number)} for number, row in enumerate(given.llava_chats())]
    wanted = ecoflap.calibrate(vlm, llava().data)
    assert ecoflap.calibrate(vlm, rows).fingerprint() == wanted.fingerprint()
    by_path = [{**row, "image": str(folder / row["image"])} for row in given.llava_chats()]
    assert ecoflap.calibrate(vlm, Dataset.from_list(by_path)).fingerprint() == wanted.fingerprint()
