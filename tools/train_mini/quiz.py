"""Multiple-choice questions in MMLU's form that a tiny model can learn: seven subjects, made by rule, the
same on every machine.

A question is its text and the set of its options; train, dev and test share none. They do share the facts:
what is tested is whether a model that was told that the opposite of "hot" is "cold" still finds it among
other distractors, at another letter.
"""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ecoflap.data.mmlu.reading import LETTERS, Question, prompt

DEV, TEST, DRAWS = 5, 100, 3000

OPPOSITES = (
    "hot cold, big small, fast slow, high low, old young, wet dry, hard soft, full empty, early late, light"
    " dark, rich poor, happy sad, open closed, loud quiet, strong weak, long short, clean dirty, deep"
    " shallow, thick thin, sweet sour"
)
CATEGORIES = {
    "an animal": "dog cat horse cow sheep lion tiger rabbit",
    "a fruit": "apple pear plum cherry grape melon peach mango",
    "a tool": "hammer saw drill wrench chisel shovel rake axe",
    "a vehicle": "car bus train bicycle truck tram boat plane",
    "a body part": "hand foot knee elbow nose ear shoulder finger",
    "an instrument": "violin piano flute drum trumpet guitar harp cello",
}
COLOUR_OF = {
    "banana": "yellow",
    "lemon": "yellow",
    "grass": "green",
    "frog": "green",
    "blood": "red",
    "tomato": "red",
    "sky": "blue",
    "sea": "blue",
    "snow": "white",
    "milk": "white",
    "coal": "black",
    "crow": "black",
    "carrot": "orange",
    "chocolate": "brown",
    "soil": "brown",
    "elephant": "gray",
    "ash": "gray",
    "flamingo": "pink",
}
THINGS = ["star", "dot", "ring", "cross", "heart", "coin", "bell", "key"]
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def identity(question: Question) -> tuple[str, frozenset[str]]:
    """What makes two questions the same, in whatever order the options stand."""
    return question.text, frozenset(question.options)


def choice(source: random.Random, text: str, right: str, wrong: Sequence[str]) -> Question:
    """A question with three of the wrong options, in random order."""
    options = [right, *source.sample([option for option in wrong if option != right], 3)]
    source.shuffle(options)
    return Question(text, tuple(options), LETTERS[options.index(right)])


def addition(source: random.Random) -> Question:
    """The sum of two digits."""
    left, right = source.randrange(10), source.randrange(10)
    return choice(
        source, f"What is {left} plus {right}?", str(left + right), [str(number) for number in range(19)]
    )


def comparison(source: random.Random) -> Question:
    """The largest or the smallest of four numbers."""
    numbers = source.sample(range(30), 4)
    name, right = source.choice([("largest", max(numbers)), ("smallest", min(numbers))])
    return choice(source, f"Which number is the {name}?", str(right), [str(number) for number in numbers])


def opposites(source: random.Random) -> Question:
    """The opposite of an adjective."""
    pairs = [pair.split() for pair in OPPOSITES.split(", ")]
    word, right = source.sample(source.choice(pairs), 2)
    return choice(
        source,
        f"What is the opposite of {word}?",
        right,
        [other for pair in pairs for other in pair if other != word],
    )


def categories(source: random.Random) -> Question:
    """The one word of a kind."""
    kind = source.choice(list(CATEGORIES))
    wrong = [word for other, words in CATEGORIES.items() if other != kind for word in words.split()]
    return choice(source, f"Which of these is {kind}?", source.choice(CATEGORIES[kind].split()), wrong)


def alphabet_order(source: random.Random) -> Question:
    """The neighbour of a letter."""
    position = source.randrange(1, 25)
    name, right = source.choice([("after", ALPHABET[position + 1]), ("before", ALPHABET[position - 1])])
    wrong = [letter for letter in ALPHABET if letter != ALPHABET[position]]
    return choice(source, f"Which letter comes right {name} {ALPHABET[position]}?", right, wrong)


def colours_of_things(source: random.Random) -> Question:
    """The usual colour of a thing."""
    thing = source.choice(list(COLOUR_OF))
    return choice(
        source, f"What is the colour of {thing}?", COLOUR_OF[thing], sorted(set(COLOUR_OF.values()))
    )


def counting(source: random.Random) -> Question:
    """How often a word stands in a row."""
    thing, count = source.choice(THINGS), source.randrange(1, 9)
    return choice(
        source,
        f"How many words are in this row: {' '.join([thing] * count)}?",
        str(count),
        [str(number) for number in range(1, 9)],
    )


SUBJECTS: tuple[Callable[[random.Random], Question], ...] = (
    addition,
    alphabet_order,
    categories,
    colours_of_things,
    comparison,
    counting,
    opposites,
)


def splits() -> dict[str, dict[str, list[Question]]]:
    """The questions of each subject, by split; none is in two of them. ``train`` is what is left of 3,000
    draws.
    """
    result = {}
    for subject in SUBJECTS:
        source = random.Random(subject.__name__)
        found: dict[tuple[str, frozenset[str]], Question] = {}
        for _ in range(DRAWS):
            question = subject(source)
            found.setdefault(identity(question), question)
        questions = list(found.values())
        result[subject.__name__] = {
            "dev": questions[:DEV],
            "test": questions[DEV : DEV + TEST],
            "train": questions[DEV + TEST :],
        }
    return result


def vocabulary() -> list[str]:
    """Every word of every prompt, sorted."""
    return sorted(
        {
            word
            for subject, by_split in splits().items()
            for question in by_split["train"]
            for word in re.findall(r"\w+|[^\w\s]+", prompt(subject, [], question))
        }
    )


def write_mmlu(folder: Path) -> None:
    """Write MMLU's folder: ``dev/<subject>_dev.csv``, ``test/...``, ``train/...``; rows of question, four
    options and letter, no header.
    """
    for subject, by_split in splits().items():
        for split, questions in by_split.items():
            (folder / split).mkdir(parents=True, exist_ok=True)
            with (folder / split / f"{subject}_{split}.csv").open("w", newline="") as file:
                csv.writer(file).writerows(
                    [question.text, *question.options, question.answer] for question in questions
                )
