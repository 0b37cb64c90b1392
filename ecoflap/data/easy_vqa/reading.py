"""Easy-VQA's questions, and its pictures with their names ("blue circle"), read from the answers."""

from __future__ import annotations

from collections import defaultdict

from ecoflap.data.example import Example

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)


def read_questions(split: str) -> list[Example]:
    """All questions of the ``train`` or ``test`` split, in the package's order."""
    import easy_vqa

    texts, answers, images = (
        easy_vqa.get_train_questions() if split == "train" else easy_vqa.get_test_questions()
    )
    paths = easy_vqa.get_train_image_paths() if split == "train" else easy_vqa.get_test_image_paths()
    return [
        Example(text, answer, paths[image])
        for text, answer, image in zip(texts, answers, images, strict=True)
    ]


def read_pictures(split: str) -> list[Example]:
    """The pictures of a split with known shape and colour, with their name as target, its class as label."""
    said: dict[str, set[str]] = defaultdict(set)
    for question in read_questions(split):
        if question.text.startswith("what"):
            said[question.image or ""].add(question.target)
    names = {path: _name(answers) for path, answers in said.items()}
    return [
        Example(target=name, image=path, label=NAMES.index(name))
        for path, name in names.items()
        if name is not None
    ]


def _name(answers: set[str]) -> str | None:
    colours, shapes = answers.intersection(COLOURS), answers.intersection(SHAPES)
    return f"{colours.pop()} {shapes.pop()}" if colours and shapes else None
