"""Texts cut in two for encoder-decoder models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ecoflap.data.text.prefix import SHORTEST, PrefixDocuments, PrefixText
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.run.instantiate import build
from tests.cli.conftest import composed

WORDS = [f"w{number}" for number in range(40)]


class Keeps:
    """Remembers what it encodes."""

    def __init__(self) -> None:
        self.pairs: list[tuple[list[str], list[str]]] = []

    def encode(self, example: Any) -> dict[str, Tensor]:
        self.pairs.append((example.text.split(), example.target.split()))
        return {"input_ids": torch.zeros(1)}


def pairs(source: PrefixText, seed: int = 0) -> list[tuple[list[str], list[str]]]:
    keeps = Keeps()
    source.load(PrunableModel("tiny", nn.Module(), (), (), (), lambda *_: torch.zeros(1), None, keeps), seed)
    return keeps.pairs


def test_lines_are_cut_in_their_first_half(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(
        "= Heading"
        f" =\n{' '.join(WORDS)}\n\n{' '.join(WORDS[:SHORTEST])}\n{' '.join(WORDS[: SHORTEST - 1])} \n"
    )
    found = pairs(PrefixText(path=str(file), max_words=20))
    assert sorted(len(text) + len(target) for text, target in found) == [SHORTEST, 20]
    for text, target in found:
        assert text + target == WORDS[: len(text) + len(target)]
        assert 1 <= len(text) <= len(target)
    assert found == pairs(PrefixText(path=str(file), max_words=20))
    assert any(found != pairs(PrefixText(path=str(file), max_words=20), seed) for seed in (1, 2, 3))


def test_documents_go_on_over_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "c4.jsonl"
    text = "\n".join(" ".join(WORDS[start : start + 4]) for start in range(0, 40, 4))
    file.write_text(
        "".join(json.dumps({"text": each, "url": ""}) + "\n" for each in (text, "too short", text))
    )
    found = pairs(PrefixDocuments(path=str(file), max_words=30))
    assert [text + target for text, target in found] == [WORDS[:30]] * 2
    assert len(pairs(PrefixDocuments(path=str(file), samples=1))) == 1
    assert len(pairs(PrefixDocuments(path=str(file), documents=2))) == 1


def test_config_reads_json_lines(tmp_path: Path) -> None:
    (tmp_path / "c4.NDJSON").write_text(json.dumps({"text": " ".join(WORDS * 2)}))
    source = build(
        "calibration",
        composed(["calibration=c4_prefix", f"calibration.path={tmp_path / 'c4.NDJSON'}"]).calibration,
    )
    assert [len(text) + len(target) for text, target in pairs(source)] == [50]


def test_refusals(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("too short\n\nthis too")
    for source in (PrefixText, PrefixDocuments):
        with pytest.raises(UserError, match="the text has no line or document of 8 words or more"):
            pairs(source(path=str(file)))
    with pytest.raises(UserError, match=r"calibration\.max_words=7 must be at least 8"):
        PrefixText(max_words=7)
