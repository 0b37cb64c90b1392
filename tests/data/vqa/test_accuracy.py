"""The VQA evaluation's rules, by hand-made cases."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from ecoflap.data.vqa.accuracy import (
    REPAIRED,
    exact_match,
    lemmatized,
    lemmatizer,
    normalise,
    strip_punctuation,
    vqa_accuracy,
)
from ecoflap.errors import UserError


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("Yes.", "yes"),
        ("  no \n", "no"),
        ("yes\tit is", "yes it is"),
        ("The dog", "dog"),
        ("a cat and an owl", "cat and owl"),
        ("two", "2"),
        ("None", "0"),
        ("ten o'clock", "10 o'clock"),
        ("eleven", "eleven"),
        ("dont know", "don't know"),
        ("don't know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("lets go", "lets go"),
        ("2.5", "2.5"),
        ("2.", "2"),
        ("p.m.", "pm"),
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),
        ("red, white", "red white"),
        ("red,white", "red white"),
        ("t-shirt", "t shirt"),
        ("t- shirt", "t shirt"),
        ("and/or", "and or"),
        ("what?!", "what"),
        ("3:30", "3:30"),
        ("", ""),
    ],
)
def test_normalisation(answer: str, normal: str) -> None:
    assert normalise(answer) == normal


def test_every_contraction_of_the_published_table() -> None:
    assert len(REPAIRED) == 114
    assert {REPAIRED[wrong] for wrong in ("yall'd've", "y'alld've", "y'all'dve")} == {"y'all'd've"}
    assert REPAIRED["'ows'at"] == REPAIRED["ow's'at"] == REPAIRED["'ow'sat"] == "'ow's'at"


@pytest.mark.parametrize(("count", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_accuracy_by_number_of_annotators_who_agree(count: int, accuracy: float) -> None:
    answers = ["two dogs"] * (10 - count) + ["2 cats"] * count
    assert vqa_accuracy("Two cats.", answers) == pytest.approx(accuracy)


def test_annotators_lose_their_punctuation_only_where_they_differ() -> None:
    assert vqa_accuracy("p.m.", ["p.m."] * 9 + ["night"]) == 1
    assert vqa_accuracy("p.m.", ["p.m."] * 10) == 0
    assert vqa_accuracy("Two", ["two"] * 9 + ["3"]) == 0, (
        "they are not brought to digits: the files hold digits"
    )


def test_exact_match_normalises_both() -> None:
    assert exact_match("The t-shirt.", "t-shirt") == 1
    assert exact_match("shirt", "t-shirt") == 0


def test_strip_punctuation_keeps_case_and_spaces() -> None:
    assert strip_punctuation("Yes; A [b] c") == "Yes A b c"


def test_lemmas_of_nouns_and_verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"racing": ("VERB", "race"), "best": ("ADJ", "good"), "dogs": ("NOUN", "dog")}
    tokens = lambda text: [
        SimpleNamespace(text=word, pos_=words[word][0], lemma_=words[word][1]) for word in text.split()
    ]
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: tokens))
    lemmatizer.cache_clear()
    assert lemmatized("racing best dogs") == "race best dog"
    lemmatizer.cache_clear()


def test_without_spacy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    lemmatizer.cache_clear()
    with pytest.raises(
        UserError,
        match=r"task\.lemmatize=true needs spaCy and its English pipeline .* or set task\.lemmatize=false",
    ):
        lemmatized("dogs")
