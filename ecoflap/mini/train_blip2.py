"""Train ``blip2_mini``, the embedded default model, from scratch on Easy-VQA.

    python -m ecoflap.mini.train_blip2 --output ecoflap/mini/blip2

The model is transformers' own BLIP-2 (ViT, Q-Former, T5), shrunk until a hundred thousand weights have to work for their
answers, so that pruning them shows.
The recipe is fixed (steps, not minutes), so two machines that run it differ only by rounding.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import Blip2ForConditionalGeneration

from ecoflap.mini.blip2_model import EOS, IMAGE, NUM_QUERIES, PAD, SPECIAL_TOKENS, UNKNOWN, Recipe, build, make_processor, save_processor, words

SHAPES = ["circle", "rectangle", "triangle"]
COLOURS = ["black", "blue", "brown", "gray", "green", "red", "teal", "yellow"]


class Data:
    """Easy-VQA as tensors: images [count, 3, 64, 64] in [-1, 1], questions [count, tokens], answers [count, 2]."""

    def __init__(self, questions: tuple[list[str], list[str], list[int]], paths: dict[int, str], vocabulary: dict[str, int]) -> None:
        from torchvision.io import ImageReadMode, decode_image

        texts, answers, images = questions
        self.images = torch.stack([decode_image(paths[i], ImageReadMode.RGB) for i in range(len(paths))]).float() / 127.5 - 1
        rows = [[IMAGE] * NUM_QUERIES + [vocabulary.get(word, UNKNOWN) for word in words(text)] + [EOS] for text in texts]
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


def image_labels(questions: tuple[list[str], list[str], list[int]]) -> Tensor:
    """What the training answers say of each image: [images, 2], the index of its shape and of its colour."""
    texts, answers, images = questions
    named = {(image, answer) for text, answer, image in zip(texts, answers, images, strict=True) if text.startswith("what")}
    rows = [[-1, -1] for _ in range(max(images) + 1)]
    for image, answer in named:
        column = 0 if answer in SHAPES else 1
        rows[image][column] = (SHAPES if column == 0 else COLOURS).index(answer)
    return torch.tensor(rows)


def augment(images: Tensor) -> Tensor:
    """Mirror each image left to right at random and shift it by up to 4 pixels; [batch, 3, 64, 64]. Neither changes an answer."""
    flipped = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)
    padded = torch.nn.functional.pad(flipped, (4, 4, 4, 4), mode="replicate")
    offsets = torch.randint(0, 9, (len(images), 2)).tolist()
    return torch.stack([image[:, y : y + 64, x : x + 64] for image, (y, x) in zip(padded, offsets, strict=True)])


def pretrain_vision(model: Blip2ForConditionalGeneration, recipe: Recipe, data: Data, labels: Tensor, log: Path) -> None:
    """Teach the vision tower shapes and colours with a throw-away linear head, as BLIP-2's own ViT was trained before it met a language model."""
    head = torch.nn.Linear(recipe.width, len(SHAPES) + len(COLOURS))
    parameters = [*model.vision_model.parameters(), *head.parameters()]
    optimizer, schedule = optimizer_for(parameters, recipe, recipe.vision_steps)
    start = time.time()
    for step in tqdm(range(recipe.vision_steps), disable=None, desc="vision"):
        rows = torch.randint(0, len(labels), (recipe.batch,))
        logits = head(model.vision_model(augment(data.images[rows])).last_hidden_state.mean(1))
        shape, colour = logits.split([len(SHAPES), len(COLOURS)], dim=1)
        target = labels[rows]
        loss = cross_entropy(shape, target[:, 0], ignore_index=-1) + cross_entropy(colour, target[:, 1], ignore_index=-1)
        update(loss, parameters, optimizer, schedule)
        if (step + 1) % 250 == 0:
            right = ((shape.argmax(1) == target[:, 0]).float().mean(), (colour.argmax(1) == target[:, 1]).float().mean())
            print(
                f"vision {step + 1} {time.time() - start:.0f}s loss {loss.item():.4f} shape {right[0]:.3f} colour {right[1]:.3f}",
                file=log.open("a"),
                flush=True,
            )


def optimizer_for(
    parameters: list[torch.nn.Parameter], recipe: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW and a one-cycle schedule over the steps."""
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=steps, pct_start=recipe.warmup / steps, cycle_momentum=False
    )
    return optimizer, schedule


def update(
    loss: Tensor, parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler
) -> None:
    """One clipped step."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()


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


def train(recipe: Recipe, train_data: Data, test_data: Data, labels: Tensor, vocabulary: int, log: Path) -> Blip2ForConditionalGeneration:
    """Train with AdamW and a one-cycle schedule; writes a line of progress every 500 steps."""
    torch.manual_seed(recipe.seed)
    model = build(recipe, vocabulary)
    parameters = list(model.parameters())
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", file=log.open("a"))
    pretrain_vision(model, recipe, train_data, labels, log)
    optimizer, schedule = optimizer_for(parameters, recipe, recipe.steps)
    order, start = torch.empty(0, dtype=torch.long), time.time()
    for step in tqdm(range(recipe.steps), disable=None):
        if len(order) < recipe.batch:
            order = torch.randperm(len(train_data.labels))
        rows, order = order[: recipe.batch], order[recipe.batch :]
        batch = train_data.batch(rows)
        batch["pixel_values"] = augment(batch["pixel_values"])
        logits = model(**batch).logits
        loss = cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        update(loss, parameters, optimizer, schedule)
        if (step + 1) % 500 == 0:
            print(
                f"{step + 1} {time.time() - start:.0f}s loss {loss.item():.4f} acc {accuracy(model, test_data, 1500):.4f}",
                file=log.open("a"),
                flush=True,
            )
    return model.eval()


def model_card(recipe: Recipe, parameters: int, right: float, seconds: float) -> str:
    """The README beside the weights."""
    numbers = "\n".join(f"| {name} | {value} |" for name, value in vars(recipe).items())
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
- **Repeat it**: `python -m ecoflap.mini.train_blip2 --output FOLDER`

| recipe | |
|---|---|
{numbers}
"""


def main() -> None:
    """Train, measure on all held-out questions, and write weights, processor and model card."""
    import easy_vqa

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    for name, value in vars(Recipe()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    output = arguments.pop("output")
    output.mkdir(parents=True, exist_ok=True)
    recipe, started = Recipe(**arguments), time.time()
    questions = easy_vqa.get_train_questions()
    vocabulary = sorted({word for text in questions[0] for word in words(text)} | set(questions[1]))
    index = {word: i for i, word in enumerate(SPECIAL_TOKENS + vocabulary)}
    train_data = Data(questions, easy_vqa.get_train_image_paths(), index)
    test_data = Data(easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths(), index)
    model = train(recipe, train_data, test_data, image_labels(questions), len(index), output / "log.txt").half()
    right, parameters = accuracy(model.float(), test_data), sum(parameter.numel() for parameter in model.parameters())
    model.half().save_pretrained(output)
    save_processor(make_processor(index), output)
    (output / "README.md").write_text(model_card(recipe, parameters, right, time.time() - started))
    print(f"{parameters:,} parameters, {100 * right:.2f} % of all held-out questions")


if __name__ == "__main__":
    main()
