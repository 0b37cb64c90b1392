"""Models that read rows of files, and a folder with their pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

import ecoflap
from ecoflap.models.core.prunable import PrunableModel
from tests.api.conftest import llama, llava
from tests.data.files import rows as given


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
