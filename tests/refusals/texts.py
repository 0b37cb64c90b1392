"""Texts in other encodings than UTF-8, and windows of them that are too short."""

from __future__ import annotations

from tests.refusals.case import Case
from tests.refusals.folders import text

RUN = ("model=causal_lm", "model.path={tmp}/llama", "score=none")
CALIBRATED = (
    *RUN,
    "steps=[calibrate]",
    "calibration=wikitext2",
    "calibration.path={tmp}/text.txt",
    "calibration.samples=2",
)
MEASURED = (*RUN, "steps=[evaluate]", "task=wikitext2", "task.path={tmp}/text.txt")
WINDOWS = ("calibration.sequence_length=8",)
GOOD = text("text.txt", "cat dog " * 999)
LATIN = text("text.txt", "café ".encode("latin-1") * 999)
UTF_16 = text("text.txt", ("cat dog " * 999).encode("utf-16"))
BINARY = text("text.txt", bytes(range(256)) * 20)

CASES: list[Case] = [
    Case(
        (*CALIBRATED, *WINDOWS, "seed=1"),
        ("{tmp}/text.txt", "not text in UTF-8", "latin-1", "convert it"),
        LATIN,
    ),
    Case(
        (*CALIBRATED, *WINDOWS, "seed=2"),
        ("{tmp}/text.txt", "not text in UTF-8", "looks like UTF-16", "convert it"),
        UTF_16,
    ),
    Case(
        (*CALIBRATED, *WINDOWS, "seed=3"),
        ("{tmp}/text.txt", "not text in UTF-8", "a binary file", "give another file"),
        BINARY,
    ),
    Case(
        (*CALIBRATED, *WINDOWS, "calibration.generated=2"),
        ("calibration.generated=2", "not below calibration.samples=2", "begin with a piece of the others"),
        GOOD,
    ),
    Case(
        (*CALIBRATED, *WINDOWS, "calibration.generated=-1"), ("calibration.generated=-1", "0 or more"), GOOD
    ),
    Case(
        ("model=t5_mini", *CALIBRATED[2:], *WINDOWS, "calibration.generated=1"),
        ("calibration.generated=1", "does not continue texts", "use calibration.generated=0"),
        GOOD,
    ),
    Case(
        (*MEASURED, "task.sequence_length=8", "seed=1"),
        ("{tmp}/text.txt", "not text in UTF-8", "latin-1"),
        LATIN,
    ),
    Case(
        (*MEASURED, "task.sequence_length=8", "seed=2"),
        ("{tmp}/text.txt", "not text in UTF-8", "looks like UTF-16"),
        UTF_16,
    ),
    Case(
        (*MEASURED, "task.sequence_length=8", "seed=3"),
        ("{tmp}/text.txt", "not text in UTF-8", "a binary file"),
        BINARY,
    ),
    Case(
        (*CALIBRATED, "calibration.sequence_length=1"), ("calibration.sequence_length=1", "two or more"), GOOD
    ),
    Case((*CALIBRATED, "calibration.sequence_length=0"), ("calibration.sequence_length=0", "at least"), GOOD),
    Case(
        (*CALIBRATED, "calibration.sequence_length=-8"), ("calibration.sequence_length=-8", "at least"), GOOD
    ),
    Case((*MEASURED, "task.sequence_length=1"), ("task.sequence_length=1", "two or more"), GOOD),
    Case((*MEASURED, "task.sequence_length=0"), ("task.sequence_length=0", "at least"), GOOD),
    Case((*MEASURED, "task.sequence_length=8", "task.stride=0"), ("task.stride=0",), GOOD),
    Case((*CALIBRATED, "calibration.sequence_length=5000"), ("calibration.sequence_length=5000",), GOOD),
    Case((*MEASURED, "task.sequence_length=5000"), ("task.sequence_length=5000",), GOOD),
]
