"""The hardware in the record of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ecoflap.storage.file_names import RESULT
from ecoflap.storage.results import Result
from ecoflap.storage.results import hardware as module
from ecoflap.storage.results.hardware import hardware, in_words, name_of
from tests.storage.test_results import make_result

CPU = {"device": "cpu", "name": "EPYC", "threads": 1, "processes": 1}


def test_the_processor_and_the_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the name that Linux knows."""
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: AMD EPYC: 9654\n\nmodel name\t: B\n")
    found = hardware(torch.device("cpu"), 2)
    threads = torch.get_num_threads()
    assert found == {"device": "cpu", "name": "AMD EPYC: 9654", "threads": threads, "processes": 2}


def test_a_processor_without_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Outside Linux, and on machines whose kernel doesn't tell."""
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "missing")
    assert name_of(torch.device("cpu"))


def test_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own name; by its type if it has none."""
    named = SimpleNamespace(get_device_name=lambda device: f"H100 {device.index}")
    monkeypatch.setattr(torch, "get_device_module", lambda _: named)
    assert name_of(torch.device("cuda", 1)) == "H100 1"
    monkeypatch.setattr(torch, "get_device_module", lambda _: SimpleNamespace())
    assert name_of(torch.device("mps")) == "mps"


@pytest.mark.parametrize(
    ("known", "words"),
    [
        (None, ""),
        (CPU, "EPYC"),
        ({**CPU, "threads": 8, "processes": 2}, "EPYC, 8 threads, 2 processes"),
        ({"device": "cuda", "name": "H100", "threads": 8, "processes": 1}, "H100"),
    ],
)
def test_in_words(known: dict[str, str | int] | None, words: str) -> None:
    """The host's threads matter where the model runs on the host."""
    assert in_words(known) == words


def test_a_record_from_before_the_field_is_read(tmp_path: Path) -> None:
    """As one of unknown hardware."""
    make_result(hardware=CPU).write(tmp_path / RESULT)
    assert Result.read(tmp_path / RESULT).hardware == CPU
    record = json.loads((tmp_path / RESULT).read_text())
    del record["hardware"]
    (tmp_path / RESULT).write_text(json.dumps(record))
    assert Result.read(tmp_path / RESULT).hardware is None


def test_a_repetition_elsewhere_has_the_same_digest() -> None:
    """The digest is of what the run found."""
    here = make_result(hardware=CPU)
    assert replace(here, hardware={**CPU, "name": "Xeon"}).digest() == here.digest()
