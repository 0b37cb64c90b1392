"""Train ``clip_mini`` from scratch on Easy-VQA's images and captions made of their answers.

    python -m tools.train_mini.clip --output ecoflap/mini/clip

The model is transformers' own CLIP, shrunk, and learns as CLIP did: each image of a batch must find its
caption and each caption its image. A batch holds one image of each class, so that no other caption of the
batch is true of it. The recipe is fixed (steps, not minutes).
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from tools.train_mini.clip_model import Recipe, build, make_processor
from tools.train_mini.layout import save_processor
from tools.train_mini.pictures import CLASSES, Pictures, augment, train_and_test
from tools.train_mini.training import command_line, fit, pretrain_vision, recipe_table

PROMPT = "a photo of a {}."
TEMPLATES = [PROMPT, "a picture of a {}.", "an image of a {}.", "there is a {}.", "a {}."]


def captions(template: str) -> list[str]:
    """The caption of each class."""
    return [template.format(name) for name in CLASSES]


@torch.inference_mode()
def zero_shot(model: CLIPModel, processor: CLIPProcessor, pictures: Pictures) -> float:
    """Share of the named images that are closest to their own class's prompt."""
    model.eval()
    text = processor.tokenizer(captions(PROMPT), padding=True, return_tensors="pt")
    parts = pictures.named.split(250)
    predicted = torch.cat(
        [model(**text, pixel_values=pictures.images[rows]).logits_per_image.argmax(-1) for rows in parts]
    )
    model.train()
    return (predicted == pictures.classes[pictures.named]).float().mean().item()


def train(
    recipe: Recipe, processor: CLIPProcessor, pictures: Pictures, held_out: Pictures, log: Path
) -> CLIPModel:
    """Train with AdamW and a one-cycle schedule, the vision tower first; writes a line of progress every 250
    steps.
    """
    torch.manual_seed(recipe.seed)
    source = random.Random(recipe.seed)
    model = build(recipe, processor.tokenizer)
    pretrain_vision(model.vision_model, recipe, pictures.images, pictures.labels, log)

    def lesson() -> Tensor:
        texts = [source.choice(TEMPLATES).format(name) for name in CLASSES]
        text = processor.tokenizer(texts, padding=True, return_tensors="pt")
        loss: Tensor = model(
            **text, pixel_values=augment(pictures.images[pictures.one_of_each()]), return_loss=True
        ).loss
        return loss

    fit(
        model,
        recipe,
        recipe.steps,
        lesson,
        lambda: f"zero-shot {zero_shot(model, processor, held_out):.4f}",
        log,
    )
    return model.eval()


def model_card(
    recipe: Recipe, parameters: int, pictures: Pictures, held_out: Pictures, right: float, seconds: float
) -> str:
    """The README beside the weights."""
    return f"""---
license: mit
library_name: transformers
pipeline_tag: zero-shot-image-classification
---
# clip_mini

A CLIP of {parameters:,} parameters (transformers' `CLIPModel`), trained from scratch by this project. It exists to run a whole pruning job
offline in a minute; it knows three shapes and eight colours, and nothing else.

- **Data**: Easy-VQA 1.0 (package `easy-vqa`, MIT). Its answers name colour and shape of {len(pictures.named):,} of the 4,000 training images and
  of {len(held_out.named):,} of the 1,000 test images; the others are left out (the vision tower's first lessons also use what is known in part).
- **Input**: 64 x 64 pixels in [-1, 1]; captions such as "{PROMPT.format(CLASSES[4])}" in CLIP's byte pairs, one token per known word.
- **Accuracy**: zero-shot over the {len(CLASSES)} classes with the prompt "{PROMPT}", {100 * right:.2f} % of the held-out images, weights in half
  precision, computed in fp32. A guesser gets {held_out.guesser():.1f} %.
- **Recipe**: the vision tower first learns shapes and colours through a throw-away linear head; then image and caption of one picture per class
  must find each other among {len(CLASSES)} ({len(TEMPLATES)} caption templates). Mirrored and shifted images, AdamW, one cycle per phase, fixed
  seed. {seconds / 60:.0f} minutes on one CPU thread.
- **Repeat it**: `python -m tools.train_mini.clip --output FOLDER`

{recipe_table(recipe)}"""


def main() -> None:
    """Train, measure on the held-out images, and write weights, processor and model card."""
    (recipe, output), started = command_line(Recipe, __doc__), time.time()
    pictures, held_out = train_and_test()
    processor = make_processor([caption for template in TEMPLATES for caption in captions(template)])
    model = train(recipe, processor, pictures, held_out, output / "log.txt").half().float()
    right, parameters = (
        zero_shot(model, processor, held_out),
        sum(parameter.numel() for parameter in model.parameters()),
    )
    model.half().save_pretrained(output)
    save_processor(processor, output, "CLIPTokenizerFast")
    (output / "README.md").write_text(
        model_card(recipe, parameters, pictures, held_out, right, time.time() - started)
    )
    print(f"{parameters:,} parameters, {100 * right:.2f} % of the held-out images, zero-shot")


if __name__ == "__main__":
    main()
