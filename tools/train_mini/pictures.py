"""Easy-VQA's images, and what the answers to their questions say of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SHAPES = ["circle", "rectangle", "triangle"]
COLOURS = ["black", "blue", "brown", "gray", "green", "red", "teal", "yellow"]
CLASSES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]

Questions = tuple[list[str], list[str], list[int]]  # texts, answers, numbers of the images


@dataclass(frozen=True)
class Pictures:
    """One split: all its images [count, 3, 64, 64] in [-1, 1], and their classes (indices into ``CLASSES``),
    -1 where the answers don't tell.
    """

    images: Tensor
    labels: Tensor
    classes: Tensor

    @classmethod
    def of(cls, questions: Questions, paths: dict[int, str]) -> Pictures:
        """Read a split's images, and their labels from its own answers."""
        labels = image_labels(questions)
        complete = (labels >= 0).all(1)
        return cls(
            load_images(paths), labels, torch.where(complete, labels[:, 1] * len(SHAPES) + labels[:, 0], -1)
        )

    @property
    def named(self) -> Tensor:
        """Numbers of the images whose class is known."""
        return torch.nonzero(self.classes >= 0).flatten()

    def guesser(self) -> float:
        """Percentage of the named images that naming the most frequent class each time gets right."""
        return 100 * self.classes[self.named].bincount().max().item() / len(self.named)

    def one_of_each(self) -> Tensor:
        """Numbers of one random image per class, in the classes' order: a contrastive batch without false
        negatives.
        """
        rows = self.named[torch.randperm(len(self.named))]
        return torch.stack([rows[self.classes[rows] == i][0] for i in range(len(CLASSES))])


def train_and_test() -> tuple[Pictures, Pictures]:
    """Easy-VQA's two splits."""
    import easy_vqa

    return (
        Pictures.of(easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()),
        Pictures.of(easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()),
    )


def load_images(paths: dict[int, str]) -> Tensor:
    """The images as [count, 3, 64, 64] in [-1, 1], ordered by their numbers."""
    from torchvision.io import ImageReadMode, decode_image

    return (
        torch.stack([decode_image(paths[i], ImageReadMode.RGB) for i in range(len(paths))]).float() / 127.5
        - 1
    )


def image_labels(questions: Questions) -> Tensor:
    """What the answers say of each image: [images, 2], the index of its shape and of its colour, or -1 where
    they don't say it.
    """
    texts, answers, images = questions
    named = {
        (image, answer)
        for text, answer, image in zip(texts, answers, images, strict=True)
        if text.startswith("what")
    }
    rows = [[-1, -1] for _ in range(max(images) + 1)]
    for image, answer in named:
        column = 0 if answer in SHAPES else 1
        rows[image][column] = (SHAPES if column == 0 else COLOURS).index(answer)
    return torch.tensor(rows)


def augment(images: Tensor) -> Tensor:
    """Mirror each image left to right at random and shift it by up to 4 pixels; [batch, 3, 64, 64]. Neither
    changes an answer.
    """
    flipped = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)
    padded = torch.nn.functional.pad(flipped, (4, 4, 4, 4), mode="replicate")
    offsets = torch.randint(0, 9, (len(images), 2)).tolist()
    return torch.stack(
        [image[:, y : y + 64, x : x + 64] for image, (y, x) in zip(padded, offsets, strict=True)]
    )
