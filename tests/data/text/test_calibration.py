import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ecoflap.data.text.calibration import Documents, Text, TokenFile
from ecoflap.data.text.checks import vocabulary_of
from ecoflap.data.text.reading import read_token_rows, windows
from ecoflap.data.text.source import TextSource
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.run.instantiate import build
from tests import tiny
from tests.cli.conftest import composed


class Letters:
    """A tokenizer: one token per letter."""

    def __call__(self, text: str, add_special_tokens: bool, **_: object) -> dict[str, Tensor]:
        ids = [ord(letter) - ord("a") for letter in text]
        return {"input_ids": torch.tensor([[1, *ids] if add_special_tokens else ids])}


@pytest.fixture
def model() -> PrunableModel:
    built = tiny.build("llama")
    return PrunableModel(
        "tiny", built.module, built.every_tower, built.towers, (), built.loss_function, Letters()
    )


def token_file(folder: Path, **tensors: Tensor) -> str:
    save_file(tensors, folder / "tokens.safetensors")
    return str(folder / "tokens.safetensors")


def test_windows_do_not_overlap_and_drop_the_rest() -> None:
    assert windows(torch.arange(7), 3, "calibration").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert windows(torch.arange(6), 3, "calibration").tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(UserError, match=r"task\.sequence_length=8 is more than the 7 tokens"):
        windows(torch.arange(7), 8, "task")


def test_windows_that_overlap() -> None:
    assert windows(torch.arange(7), 4, "task", 2).tolist() == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert windows(torch.arange(6), 4, "task", 1).tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]


def json_lines(file: Path, *texts: str) -> str:
    content = "".join(json.dumps({"text": text, "url": "u"}) + "\n" for text in texts)
    file.write_bytes(gzip.compress(content.encode()) if file.suffix.lower() == ".gz" else content.encode())
    return str(file)


@pytest.mark.parametrize("name", ["c4.jsonl", "c4.json", "c4.json.gz", "c4.NDJSON", "C4.JSONL.GZ"])
def test_json_lines_are_documents_or_one_text(tmp_path: Path, name: str) -> None:
    path = json_lines(tmp_path / name, "a\n\nb", "c", "d")
    assert TextSource(path).read_documents("task") == ["a\n\nb", "c", "d"]
    assert TextSource(path, separator=" ").read_text("task") == "a\n\nb c d"
    assert TextSource(path, documents=2).read_text("task") == "a\n\nb\n\nc"
    assert TextSource(path, column="url").read_documents("task") == ["u"] * 3
    with pytest.raises(
        UserError,
        match=r"line 1: expected a JSON object whose 'sentence' is a text \(task\.column names it\)",
    ):
        TextSource(path, column="sentence").read_text("task")


def test_text_file_is_taken_as_it_is_or_cut_at_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a\nb\n\n\nc\n")
    source = TextSource(str(tmp_path / "text.txt"), documents=1, separator="x")
    assert source.read_text("task") == "a\nb\n\n\nc\n"
    assert source.read_documents("task") == ["a\nb", "\nc\n"]


@pytest.mark.parametrize(
    ("name", "column", "content", "rows"),
    [
        (
            "wikitext2",
            "text",
            " \n = A = \n \t\r\n a b \u2028 c \n\n d e \n",
            ["", " = A = \n", "", " a b \u2028 c \n", "", " d e \n"],
        ),
        ("ptb", "sentence", " a b \r\n c d \n\n e \n", ["a b", "c d", "", "e"]),
    ],
)
@pytest.mark.parametrize("group", ["task", "calibration"])
@pytest.mark.any_release
def test_published_file_is_the_text_of_the_hub(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    group: str,
    name: str,
    column: str,
    content: str,
    rows: list[str],
) -> None:
    """The hub's rows are the lines of the file, as its scripts make them."""
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({column: rows}))
    file = tmp_path / "published.txt"
    file.write_bytes(content.encode())

    def source(*options: str) -> Any:
        return build(group, composed([f"{group}={name}", *options])[group])

    hub, local = source(), source(f"{group}.path={file}")
    assert local.read_text(group) == hub.read_text(group) == hub.separator.join(rows)
    assert replace(local, documents=2).read_text(group) == replace(hub, documents=2).read_text(group)
    own = build(group, composed([f"{group}=text", f"{group}.path={file}"])[group])
    assert (
        own.read_text(group)
        == content.replace("\r\n", "\n")
        == replace(local, lines="whole").read_text(group)
    )
    with pytest.raises(UserError, match=rf"{group}\.lines=row is not known; did you mean rows"):
        source(f"{group}.path={file}", f"{group}.lines=row").check_data(group)


@pytest.mark.parametrize("name", ["c4.jsonl", "c4.json.gz"])
def test_a_byte_order_mark_and_the_name_of_a_nul(tmp_path: Path, name: str) -> None:
    """Excel and PowerShell write the mark; code may speak of a NUL, and a text may not hold one."""
    file = Path(json_lines(tmp_path / name, r"if (c == '\u0000')", "one\u2028line"))
    content = gzip.decompress(file.read_bytes()) if name.endswith(".gz") else file.read_bytes()
    content = "\ufeff".encode() + content
    file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert TextSource(str(file)).read_documents("task") == [r"if (c == '\u0000')", "one\u2028line"]
    with pytest.raises(UserError, match="holds a NUL"):
        TextSource(json_lines(tmp_path / f"nul_{name}", r"a \u0000 and a", "\0")).read_documents("task")


def test_line_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\nb\n')
    with pytest.raises(UserError, match=r"calibration\.path=.*text\.jsonl, line 2: expected a JSON object"):
        TextSource(str(tmp_path / "text.jsonl")).read_documents("calibration")


def test_blank_lines_among_json_lines_hold_no_text(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('\n{"text": "a"}\n \t\n{"text": "b"}\n\n{\n')
    source = TextSource(str(tmp_path / "text.jsonl"), documents=2)
    assert source.read_documents("calibration") == ["a", "b"]
    with pytest.raises(UserError, match=r"text\.jsonl, line 6: expected a JSON object"):
        replace(source, documents=None).read_documents("calibration")


@pytest.mark.parametrize("name", ["text.jsonl", "text.jsonl.gz"])
def test_json_lines_that_are_not_utf8(tmp_path: Path, name: str) -> None:
    content = '{"text": "café"}'.encode("latin-1")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(UserError, match=r"text\.jsonl.*not text in UTF-8; convert it to UTF-8") as caught:
        TextSource(str(tmp_path / name)).read_documents("calibration")
    assert "download" not in str(caught.value)


def test_hub_is_asked_for_one_file_and_its_first_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*names: str | None, **options: Any) -> datasets.Dataset:
        asked.append((names, options))
        return datasets.Dataset.from_dict({"sentence": ["a", "b", "c"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = TextSource(None, "allenai/c4", None, "validation", "sentence", None, "en/first.json.gz", 2, " ")
    assert source.read_text("task") == "a b"
    assert list(source.read_documents("task")) == ["a", "b"]
    assert asked[0] == (
        ("allenai/c4", None),
        {"split": "validation", "revision": None, "data_files": {"validation": "en/first.json.gz"}},
    )
    assert TextSource(column="sentence", documents=9).read_text("task") == "a\n\nb\n\nc"
    assert asked[-1][1]["data_files"] is None


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (["a", None, "b"], r".*'string'.* there, and null in 1 of 3 rows"),
        ([1, 2], r".*'int64'.* there, and null in 0 of 2 rows"),
        ([["a"], ["b"]], r".*'string'.* there, and null in 0 of 2 rows"),
    ],
)
def test_rows_of_the_hub_without_a_text(monkeypatch: pytest.MonkeyPatch, rows: list[Any], found: str) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"text": rows}))
    with pytest.raises(UserError, match=rf"task\.column=text: one/two \(test\) has {found}"):
        TextSource(None, "one/two", None).read_text("task")
    if rows[0] == "a":
        assert TextSource(None, "one/two", None, documents=1).read_text("task") == "a"


def test_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = (
        r"task: the data set allenai/c4 \(one\.json\.gz, test\) could not be read from the hub"
        r" \(ConnectionError\); give a local text file"
    )
    with pytest.raises(UserError, match=message):
        TextSource(None, "allenai/c4", None, data_files="one.json.gz").read_text("task")


def test_one_window_of_each_long_document(tmp_path: Path, model: PrunableModel) -> None:
    path = json_lines(tmp_path / "c4.jsonl", "abcdefgh", "ijkl", "mnopqrst", "uvw", "nopqrstu")
    draws = [
        Documents(path=path, samples=2, sequence_length=4).load(model, seed).samples for seed in range(20)
    ]
    rows = [[sample["input_ids"].tolist() for sample in samples] for samples in draws]
    assert all(len(row) == 4 and row == list(range(row[0], row[0] + 4)) for drawn in rows for row in drawn)
    starts = {row[0] for drawn in rows for row in drawn}
    assert starts <= {*range(0, 5), *range(12, 17), *range(13, 18)}
    assert len(starts) > 8
    assert (
        draws[0][0]["input_ids"].tolist()
        == Documents(path=path, samples=2, sequence_length=4).load(model, 0).samples[0]["input_ids"].tolist()
    )
    assert len(Documents(path=path, sequence_length=4).load(model, 0)) == 3
    with pytest.raises(
        UserError, match=r"calibration\.sequence_length=8: none of the 5 documents has more tokens"
    ):
        Documents(path=path, sequence_length=8).load(model, 0)


@pytest.mark.parametrize("name", ["c4", "ptb", "wikitext2"])
def test_configs_read_local_files(tmp_path: Path, model: PrunableModel, name: str) -> None:
    (tmp_path / "text.txt").write_text("abcdefghijklmnopqrstuvw")
    overrides = [
        f"calibration={name}",
        f"calibration.path={tmp_path / 'text.txt'}",
        "calibration.sequence_length=5",
    ]
    source = build("calibration", composed(overrides).calibration)
    assert {len(sample["input_ids"]) for sample in source.load(model, 0).samples} == {5}


def test_text_draws_different_windows_by_seed(tmp_path: Path, model: PrunableModel) -> None:
    (tmp_path / "text.txt").write_text("abcdefghijklmnopqrstuvwxyz")
    text = Text(path=str(tmp_path / "text.txt"), samples=3, sequence_length=4)
    drawn = [sample["input_ids"].tolist() for sample in text.load(model, seed=0).samples]
    assert len(drawn) == 3
    assert all(row == list(range(row[0], row[0] + 4)) and row[0] % 4 == 0 for row in drawn)
    assert len({row[0] for row in drawn}) == 3
    assert drawn == [sample["input_ids"].tolist() for sample in text.load(model, seed=0).samples]
    assert any(
        drawn != [sample["input_ids"].tolist() for sample in text.load(model, seed).samples]
        for seed in (1, 2, 3)
    )


def test_missing_text_names_the_files_beside_it(tmp_path: Path, model: PrunableModel) -> None:
    (tmp_path / "wiki.txt").touch()
    with pytest.raises(
        UserError, match=r"calibration\.path=.*wikii\.txt: there is no such file; in that folder: wiki\.txt"
    ):
        Text(path=str(tmp_path / "wikii.txt")).load(model, 0)
    with pytest.raises(UserError, match="there is no folder"):
        Text(path=str(tmp_path / "nowhere" / "wiki.txt")).load(model, 0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint16, torch.uint8])
def test_token_rows_of_any_integer_type(tmp_path: Path, model: PrunableModel, dtype: torch.dtype) -> None:
    rows = torch.tensor([[0, 1, 39], [4, 5, 6], [7, 8, 9]])
    calibration = TokenFile(token_file(tmp_path, ids=rows.to(dtype)), "ids", samples=2).load(model, seed=5)
    assert [sample["input_ids"].tolist() for sample in calibration.samples] == rows[:2].tolist()
    assert all(sample["input_ids"].dtype == torch.int64 for sample in calibration.samples)
    assert len(TokenFile(token_file(tmp_path, ids=rows.to(dtype)), "ids").load(model, seed=5)) == 3


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            torch.zeros(2, 3),
            r"ids is torch\.float32 \[2, 3\]; token ids are an integer tensor \[rows, tokens\]",
        ),
        (torch.zeros(2, 3, dtype=torch.bool), r"torch\.bool"),
        (torch.zeros(3, dtype=torch.long), r"torch\.int64 \[3\]"),
        (torch.zeros(0, 3, dtype=torch.long), r"torch\.int64 \[0, 3\]"),
        (torch.tensor([[-1, 3]]), "ids from -1 on; token ids are 0 or more"),
    ],
)
def test_tokens_that_are_none(tmp_path: Path, tokens: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_token_rows(token_file(tmp_path, ids=tokens), "ids", "calibration")


def test_tokens_outside_the_vocabulary(tmp_path: Path, model: PrunableModel) -> None:
    rows = TokenFile(token_file(tmp_path, ids=torch.tensor([[0, 40]])), "ids")
    with pytest.raises(UserError, match="ids from 0 to 40; the model has a vocabulary of 40"):
        rows.check_model(model)


def test_wrong_key_lists_the_right_ones(tmp_path: Path) -> None:
    path = token_file(tmp_path, input_ids=torch.zeros(1, 1), other=torch.zeros(1))
    with pytest.raises(UserError, match=r"calibration\.key=input_id: .*did you mean input_ids"):
        read_token_rows(path, "input_id", "calibration")


def test_missing_or_foreign_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task\.path=.*there is no such file"):
        read_token_rows(str(tmp_path / "none.safetensors"), "ids", "task")
    (tmp_path / "text.safetensors").write_text("this is no safetensors file")
    with pytest.raises(UserError, match="is not a safetensors file"):
        read_token_rows(str(tmp_path / "text.safetensors"), "ids", "task")


@pytest.mark.parametrize("family", [*tiny.LANGUAGE, *tiny.SEQ2SEQ])
def test_vocabulary(family: str) -> None:
    assert vocabulary_of(tiny.build(family)) == tiny.VOCABULARY
