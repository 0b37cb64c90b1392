"""Train ``blip2_mini``, the embedded default model, from scratch on Easy-VQA.

    python -m tools.train_mini.blip2 --output ecoflap/mini/blip2

The model is transformers' own BLIP-2 (ViT, Q-Former, T5), shrunk until a hundred thousand weights have to
work for their answers, so that pruning them shows.
The recipe is fixed (steps, not minutes), so two machines that run it differ only by rounding.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Blip2ForConditionalGeneration

from tools.train_mini.blip2_model import (
    EOS,
    IMAGE,
    NUM_QUERIES,
    PAD,
    SPECIAL_TOKENS,
    UNKNOWN,
    Recipe,
    build,
    make_processor,
    save_processor,
    words,
)
from tools.train_mini.pictures import Questions, augment, image_labels, load_images
from tools.train_mini.training import command_line, fit, pretrain_vision, recipe_table, shuffled


class Data:
    """Easy-VQA as tensors: images [count, 3, 64, 64] in [-1, 1], questions [count, tokens], answers [count,
    2].
    """

    def __init__(self, questions: Questions, paths: dict[int, str], vocabulary: dict[str, int]) -> None:
        texts, answers, images = questions
        self.images = load_images(paths)
        rows = [
            [IMAGE] * NUM_QUERIES + [vocabulary.get(word, UNKNOWN) for word in words(text)] + [EOS]
            for text in texts
        ]
        longest = max(map(len, rows))
        self.input_ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
        self.labels = torch.tensor([[vocabulary[answer], EOS] for answer in answers])
        self.image_of = torch.tensor(images)

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """The rows as keyword arguments of the model, cut to the longest question among them."""
        input_ids = self.input_ids[rows]
        input_ids = input_ids[:, : int((input_ids != PAD).sum(1).max())]
        return {
            "pixel_values": self.images[self.image_of[rows]],
            "input_ids": input_ids,
            "attention_mask": (input_ids != PAD).long(),
            "labels": self.labels[rows],
        }


@torch.inference_mode()
def accuracy(model: Blip2ForConditionalGeneration, data: Data, limit: int | None = None) -> float:
    """Share of questions whose first predicted token is the answer."""
    model.eval()
    rows = torch.arange(len(data.labels) if limit is None else limit)
    right = 0
    for part in rows.split(256):
        batch = data.batch(part)
        right += int((model(**batch).logits[:, 0].argmax(-1) == batch["labels"][:, 0]).sum())
    model.train()
    return right / len(rows)


def train(
    recipe: Recipe, train_data: Data, test_data: Data, labels: Tensor, vocabulary: int, log: Path
) -> Blip2ForConditionalGeneration:
    """Train with AdamW and a one-cycle schedule; writes a line of progress every 500 steps."""
    torch.manual_seed(recipe.seed)
    model = build(recipe, vocabulary)
    pretrain_vision(model.vision_model, recipe, train_data.images, labels, log)
    batches = shuffled(len(train_data.labels), recipe.batch)

    def lesson() -> Tensor:
        batch = train_data.batch(next(batches))
        batch["pixel_values"] = augment(batch["pixel_values"])
        return cross_entropy(model(**batch).logits.flatten(0, 1), batch["labels"].flatten())

    fit(
        model,
        recipe,
        recipe.steps,
        lesson,
        lambda: f"acc {accuracy(model, test_data, 1500):.4f}",
        log,
        every=500,
    )
    return model.eval()


def model_card(recipe: Recipe, parameters: int, right: float, seconds: float) -> str:
    """The README beside the weights."""
    return f"""---
license: mit
library_name: transformers
pipeline_tag: visual-question-answering
---
# blip2_mini

A BLIP-2 of {parameters:,} parameters (transformers' `Blip2ForConditionalGeneration`: ViT, Q-Former, T5 encoder and decoder), trained from scratch
by this project. It exists to run a whole pruning job offline in a minute; it knows three shapes and eight colours, and nothing else.

- **Data**: Easy-VQA 1.0 (package `easy-vqa`, MIT): 4,000 images of 64 x 64 pixels and 38,575 questions for training, 1,000 other images and
  9,673 questions for the test.
- **Accuracy**: {100 * right:.2f} % on all held-out questions, weights in half precision, computed in fp32. A guesser that never sees the image
  gets 67 %.
- **Recipe**: the vision tower first learns shapes and colours through a throw-away linear head, with labels read from the training answers; then
  everything learns to answer. Mirrored and shifted images, AdamW, one cycle per phase. {seconds / 60:.0f} minutes on one CPU thread.
- **Repeat it**: `python -m tools.train_mini.blip2 --output FOLDER`

{recipe_table(recipe)}"""


def main() -> None:
    """Train, measure on all held-out questions, and write weights, processor and model card."""
    import easy_vqa

    (recipe, output), started = command_line(Recipe, __doc__), time.time()
    questions = easy_vqa.get_train_questions()
    vocabulary = sorted({word for text in questions[0] for word in words(text)} | set(questions[1]))
    index = {word: i for i, word in enumerate(SPECIAL_TOKENS + vocabulary)}
    train_data = Data(questions, easy_vqa.get_train_image_paths(), index)
    test_data = Data(easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths(), index)
    model = train(
        recipe, train_data, test_data, image_labels(questions), len(index), output / "log.txt"
    ).half()
    right, parameters = (
        accuracy(model.float(), test_data),
        sum(parameter.numel() for parameter in model.parameters()),
    )
    model.half().save_pretrained(output)
    save_processor(make_processor(index), output)
    (output / "README.md").write_text(model_card(recipe, parameters, right, time.time() - started))
    print(f"{parameters:,} parameters, {100 * right:.2f} % of all held-out questions")


if __name__ == "__main__":
    main()
