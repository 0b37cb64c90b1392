"""Rows make the same calibration set in whatever file they come."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from glob import escape
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import transformers as hf

import ecoflap
from ecoflap.data.calibration_set import draw
from ecoflap.data.files.calibration import Chat, Parquet, RowsCalibration, WebDataset
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.run.stored_calibration import stored_calibration
from ecoflap.storage.cache.store import Store
from tests import tiny
from tests.api.conftest import clip, texts, word_tokenizer
from tests.data.files import rows as given

pytestmark = pytest.mark.long

if not hasattr(transformers, "LlavaForConditionalGeneration"):
    pytest.skip(f"transformers {transformers.__version__} has no LLaVA", allow_module_level=True)


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


def test_files_of_a_split_that_fit_a_pattern(folder: Path) -> None:
    """Files of other splits that fit it as well are not calibrated on."""
    place = folder / "test set [1]"  # whose name tells nothing of the files
    for name in ("train-0", "train-1", "test-0", "eval-1"):
        place.mkdir(exist_ok=True)
        given.write_parquet(place / f"{name}.parquet", given.columns(1))
    pattern = f"{escape(str(place))}/*.parquet"
    assert [file.name for file in Parquet(pattern).files] == ["train-0.parquet", "train-1.parquet"]
    assert [file.name for file in Parquet(pattern, split="test").files] == [
        "eval-1.parquet",
        "test-0.parquet",
    ]
    assert [file.name for file in Parquet(f"{escape(str(place))}/test*").files] == ["test-0.parquet"]
    with pytest.raises(UserError, match=r"calibration\.split=val: .* has test, train"):
        _ = Parquet(pattern, split="val").files
    (folder / "train_sft").mkdir()
    given.write_parquet(folder / "train_sft" / "0.parquet", given.columns(1))
    for named in ("train_sft/*", "*/*", "**/0.parquet"):
        found = Parquet(str(folder / named), split="train_sft").files
        assert found == [folder / "train_sft" / "0.parquet"]


def test_files_behind_links_are_read(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    given.write_parquet(folder / "a.parquet", given.columns(1))
    given.write_parquet(elsewhere / "b.parquet", given.columns(1))
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)  # which ends there
    assert of_split(folder, "train") == ["a.parquet", "b.parquet"]
    (elsewhere / "c.parquet").symlink_to("gone.parquet")
    with pytest.raises(UserError, match=r"linked/c\.parquet is a link to gone\.parquet, which is missing"):
        of_split(folder, "train")


def test_hidden_files_are_left_out(folder: Path) -> None:
    """Jupyter's copies of files, and what the hub's client notes of its downloads."""
    for name in ("a.parquet", ".ipynb_checkpoints/a-checkpoint.parquet", "._a.parquet", "b/.c/d.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        given.write_parquet(folder / name, given.columns(1))
    assert of_split(folder, "train") == ["a.parquet"]


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
