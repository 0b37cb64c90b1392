"""The hashes of the files beside the weights: another config or tokenizer makes another model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import ecoflap
from ecoflap.cli.verify import main
from ecoflap.errors import UserError
from ecoflap.storage.bitmask.convert import convert
from ecoflap.storage.results import Result, verify
from ecoflap.storage.sharing.push import prepare
from tests.api.conftest import llama


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A pruned model and its tokenizer, as ``ecoflap.save`` leaves them."""
    given = llama()
    result = ecoflap.prune(given.module, given.processor, data=given.data, sparsity=0.6, score="none")
    return ecoflap.save(result, tmp_path / "saved")


def change_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"rms_norm_eps": 1e-2}),
        ("generation_config.json", {"max_new_tokens": 3}),
        ("tokenizer_config.json", {"model_max_length": 3}),
    ],
)
def test_a_changed_file_is_named(
    file: str, values: dict[str, object], saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(saved) == []
    change_json(saved / file, **values)
    assert verify(saved) == [f"{file}: has changed since the model was saved"]
    assert main([str(saved)]) == 1
    assert f"difference: {file}: has changed" in capsys.readouterr().out
    with pytest.raises(UserError, match=rf"can't be shared: .*{file}: has changed"):
        prepare(saved)


def test_a_missing_file_is_named_and_an_added_one_is_not(saved: Path) -> None:
    (saved / "tokenizer.json").rename(saved / "vocab.json")
    assert verify(saved) == ["tokenizer.json: is missing, the model was saved with it"]


def test_the_files_of_a_processor_that_stays_are_not_of_the_new_model(saved: Path) -> None:
    given = llama()
    batches = [dict(given.processor(text, return_tensors="pt")) for text in given.data]
    result = ecoflap.prune(given.module, data=batches, sparsity=0.5, score="none")
    ecoflap.save(result, saved)
    assert (saved / "tokenizer.json").is_file()
    recorded = Result.read(saved / "result.json").model_files
    assert recorded is not None
    assert recorded.keys() == {"config.json", "generation_config.json"}
    change_json(saved / "tokenizer_config.json", model_max_length=3)
    assert verify(saved) == []


def test_every_form_has_the_files(saved: Path, tmp_path: Path) -> None:
    for form in ("bitmask", "coded"):
        convert(saved, tmp_path / form, form)
        assert verify(tmp_path / form) == []
        change_json(tmp_path / form / "config.json", rms_norm_eps=1e-2)
        assert verify(tmp_path / form) == ["config.json: has changed since the model was saved"]


def test_a_record_without_their_hashes_is_verified_by_the_weights(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((saved / "result.json").read_text())
    assert "tokenizer.json" in record.pop("model_files")
    (saved / "result.json").write_text(json.dumps(record))
    (saved / "config.json").unlink()
    assert main([str(saved)]) == 0
    assert "no bit of a weight has changed" in capsys.readouterr().out


def test_a_run_records_the_files_of_its_checkpoint(
    run: Callable[..., Result], text_run: list[str], tmp_path: Path
) -> None:
    overrides = [override for override in text_run if not override.startswith("score.")]
    result = run([*overrides, "score=none", "allocation=water_filling", "model.save=true"])
    assert "config.json" in (result.model_files or {})
    folder = tmp_path / "run"
    assert verify(folder) == []
    change_json(folder / "checkpoint" / "config.json", rms_norm_eps=1e-2)
    assert verify(folder) == ["config.json: has changed since the model was saved"]
