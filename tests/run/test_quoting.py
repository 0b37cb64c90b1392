"""Hydra reads a quoted option as the text that was quoted."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString

from ecoflap.errors import path_option, text_option

TEXTS = ["", "a b", "a,[b]{c}#=:", "é", "it's", '"', "\\", "C:\\a\\b", '\\"', '\\\\" \\', "~/a"]


def read(option: str) -> str:
    value = OverridesParser.create().parse_override(option).value()
    return value.text if isinstance(value, QuotedString) else str(value)


@pytest.mark.parametrize("text", TEXTS)
def test_texts_and_paths(text: str) -> None:
    assert read(text_option("task.path", text)) == text
    assert read(path_option("task.path", text)) == text


def test_plain_paths_have_no_quotes() -> None:
    assert path_option("hydra.run.dir", "/a-b/c_1.d") == "hydra.run.dir=/a-b/c_1.d"
