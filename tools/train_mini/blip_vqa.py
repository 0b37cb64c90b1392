"""Train ``blip_vqa_mini`` from scratch on Easy-VQA's questions.

    python -m tools.train_mini.blip_vqa --output ecoflap/mini/blip_vqa

The model is transformers' own BLIP for question answering (ViT, text encoder that looks at the image, text
decoder), shrunk. The recipe is fixed (steps, not minutes), so two machines that run it differ only by
rounding.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import BlipForQuestionAnswering, BlipProcessor

from tools.train_mini import blip_model
from tools.train_mini.blip_model import END, build, make_processor
from tools.train_mini.layout import save_processor, save_with_tied
from tools.train_mini.pictures import Pictures, Questions, augment, train_and_test
from tools.train_mini.training import command_line, fit, pretrain_vision, recipe_table, shuffled


@dataclass(frozen=True)
class Recipe(blip_model.Recipe):
    """Every number that the trained weights depend on; questions take more and longer steps than captions."""

    batch: int = 64
    steps: int = 3500


class Data:
    """Questions as the processor writes them, answers from the decoder's start to its end, and the pictures
    they are about.
    """

    def __init__(self, questions: Questions, pictures: Pictures, processor: BlipProcessor) -> None:
        texts, answers, images = questions
        encoded = processor(text=texts, padding=True, return_tensors="pt")
        self.input_ids, self.attention_mask = encoded["input_ids"], encoded["attention_mask"]
        start = len(processor.tokenizer)
        self.labels = torch.tensor(
            [[start, answer, END] for answer in processor.tokenizer.convert_tokens_to_ids(answers)]
        )
        self.images, self.image_of = pictures.images, torch.tensor(images)

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """The rows as keyword arguments of the model's ``generate``, cut to the longest question among
        them.
        """
        longest = int(self.attention_mask[rows].sum(1).max())
        return {
            "pixel_values": self.images[self.image_of[rows]],
            "input_ids": self.input_ids[rows, :longest],
            "attention_mask": self.attention_mask[rows, :longest],
        }


@torch.inference_mode()
def accuracy(model: BlipForQuestionAnswering, data: Data, limit: int | None = None) -> float:
    """Share of questions whose first generated token is the answer."""
    model.eval()
    rows = torch.arange(len(data.labels))[:limit]
    first = torch.cat(
        [model.generate(**data.batch(part), max_new_tokens=1)[:, 1] for part in rows.split(250)]
    )
    model.train()
    return (first == data.labels[rows, 1]).float().mean().item()


def train(
    recipe: Recipe, pictures: Pictures, train_data: Data, test_data: Data, words: int, log: Path
) -> BlipForQuestionAnswering:
    """Train with AdamW and a one-cycle schedule, the vision tower first; writes a line of progress every 250
    steps.
    """
    torch.manual_seed(recipe.seed)
    model = build(BlipForQuestionAnswering, recipe, words)
    pretrain_vision(model.vision_model, recipe, pictures.images, pictures.labels, log)
    batches = shuffled(len(train_data.labels), recipe.batch)

    def lesson() -> Tensor:
        rows = next(batches)
        batch = train_data.batch(rows)
        batch["pixel_values"] = augment(batch["pixel_values"])
        loss: Tensor = model(**batch, labels=train_data.labels[rows]).loss
        return loss

    fit(model, recipe, recipe.steps, lesson, lambda: f"accuracy {accuracy(model, test_data, 1000):.4f}", log)
    return model.eval()


def model_card(recipe: Recipe, parameters: int, right: float, seconds: float) -> str:
    """The README beside the weights."""
    return f"""---
license: mit
library_name: transformers
pipeline_tag: visual-question-answering
---
# blip_vqa_mini

A BLIP of {parameters:,} parameters (transformers' `BlipForQuestionAnswering`: ViT, text encoder, text decoder), trained from scratch by this
project. It exists to run a whole pruning job offline in a minute; it knows three shapes and eight colours, and nothing else.

- **Data**: Easy-VQA 1.0 (package `easy-vqa`, MIT): 4,000 images of 64 x 64 pixels and 38,575 questions for training, 1,000 other images and
  9,673 questions for the test.
- **Input**: 64 x 64 pixels in [-1, 1]; the question as its processor writes it. The decoder starts from `text_config.bos_token_id`, which is
  not in the tokenizer (as in the published BLIPs), and answers with one word and `[SEP]`.
- **Accuracy**: {100 * right:.2f} % on all held-out questions, weights in half precision, computed in fp32. A guesser that never sees the image
  gets 67 %.
- **Recipe**: the vision tower first learns shapes and colours through a throw-away linear head, with labels read from the training answers; then
  everything learns to answer. Mirrored and shifted images, AdamW, one cycle per phase, fixed seed. {seconds / 60:.0f} minutes on one CPU thread.
- **Repeat it**: `python -m tools.train_mini.blip_vqa --output FOLDER`

{recipe_table(recipe)}"""


def main() -> None:
    """Train, measure on all held-out questions, and write weights, processor and model card."""
    import easy_vqa

    (recipe, output), started = command_line(Recipe, __doc__), time.time()
    pictures, held_out = train_and_test()
    questions = easy_vqa.get_train_questions()
    processor = make_processor([*questions[0], *questions[1]])
    train_data, test_data = (
        Data(questions, pictures, processor),
        Data(easy_vqa.get_test_questions(), held_out, processor),
    )
    model = (
        train(recipe, pictures, train_data, test_data, len(processor.tokenizer), output / "log.txt")
        .half()
        .float()
    )
    right, parameters = accuracy(model, test_data), sum(parameter.numel() for parameter in model.parameters())
    save_with_tied(model.half(), output)
    save_processor(processor, output, "BertTokenizerFast")
    (output / "README.md").write_text(model_card(recipe, parameters, right, time.time() - started))
    print(f"{parameters:,} parameters, {100 * right:.2f} % of all held-out questions")


if __name__ == "__main__":
    main()
