"""How answers to visual questions are compared, by the rules that BLIP and BLIP-2 were measured by.

They are those of vqaEval.py in github.com/GT-Vision-Lab/VQA until 2021, of which LAVIS has a copy. Since then
it normalises the annotators' answers as it does the prediction, and neither if all annotators agree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from ecoflap.errors import UserError

ARTICLES = ("a", "an", "the")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll how's
    isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've
    should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've
    something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
    wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


# A contraction is recognised where one apostrophe is missing. The last entry is the published table's own,
# the wrong way round as it is there.
REPAIRED = {wrong: word for word in CONTRACTIONS.split() for wrong in _without_one_apostrophe(word)} | {
    "somebody'd": "somebodyd"
}
DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBERS)}


def strip_punctuation(text: str) -> str:
    """Remove punctuation: a mark beside a space vanishes, and others become a space.

    In a text with a number such as 1,000, all marks vanish. A period stays only before a digit.
    """
    all_vanish = re.search(r"\d,\d", text) is not None
    stripped = text
    for mark in PUNCTUATION:
        vanishes = all_vanish or f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if vanishes else " ")
    return re.sub(r"\.(?!\d)", "", stripped)


def normalise(answer: str) -> str:
    """Normalise an answer: lower case, no punctuation or articles, digits up to ten, full contractions."""
    words = strip_punctuation(answer.replace("\n", " ").replace("\t", " ").strip()).lower().split()
    kept = [word for word in (DIGITS.get(word, word) for word in words) if word not in ARTICLES]
    return " ".join(REPAIRED.get(word, word) for word in kept)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Mean over the annotators of min(1, matches among the others / 3).

    As in LAVIS, the annotators' answers lose only their punctuation, and keep it if all agree.

    Args:
        prediction: the model's answer.
        answers: the answers of all annotators.
    """
    said = normalise(prediction)
    given = [strip_punctuation(answer) for answer in answers] if len(set(answers)) > 1 else answers
    same = [answer == said for answer in given]
    return sum(min(1.0, (sum(same) - own) / 3) for own in same) / len(same)


def exact_match(prediction: str, answer: str) -> float:
    """1 if both are equal after normalisation, else 0."""
    return float(normalise(prediction) == normalise(answer))


@cache
def lemmatizer() -> Any:
    """The small English pipeline of spaCy.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import spacy

        return spacy.load("en_core_web_sm")
    except (ImportError, OSError) as error:
        raise UserError(
            f"task.lemmatize=true needs spaCy and its English pipeline ({str(error).splitlines()[0]}): "
            "pip install spacy, then python -m spacy download en_core_web_sm; or set task.lemmatize=false"
        ) from None


def lemmatized(answer: str) -> str:
    """The answer with nouns and verbs in their base forms, as in BLIP-2's evaluation on OK-VQA.

    Raises:
        UserError: if spaCy is not installed.
    """
    return " ".join(
        token.lemma_ if token.pos_ in ("NOUN", "VERB") else token.text for token in lemmatizer()(answer)
    )
