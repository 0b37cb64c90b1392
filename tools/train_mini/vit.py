"""Train ``vit_mini`` from scratch to name the colour and the shape of Easy-VQA's images.

    python -m tools.train_mini.vit --output ecoflap/mini/vit

The model is transformers' own ViT, shrunk. Easy-VQA has no class labels: an image's class is read from the
answers to its questions, and an image whose answers don't tell both colour and shape is left out. The recipe
is fixed (steps, not minutes).
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import ViTForImageClassification

from tools.train_mini.pictures import CLASSES, Pictures, augment, train_and_test
from tools.train_mini.training import command_line, fit, pretrain_vision, recipe_table
from tools.train_mini.vit_model import Recipe, build, make_processor


@torch.inference_mode()
def accuracy(model: ViTForImageClassification, pictures: Pictures) -> float:
    """Share of the named images whose most likely class is theirs."""
    parts = pictures.named.split(250)
    predicted = torch.cat([model(pixel_values=pictures.images[rows]).logits.argmax(-1) for rows in parts])
    return (predicted == pictures.classes[pictures.named]).float().mean().item()


def train(recipe: Recipe, pictures: Pictures, held_out: Pictures, log: Path) -> ViTForImageClassification:
    """Train with AdamW and a one-cycle schedule, the tower first; writes a line of progress every 250
    steps.
    """
    torch.manual_seed(recipe.seed)
    model = build(recipe)
    pretrain_vision(model.vit, recipe, pictures.images, pictures.labels, log)

    def lesson() -> Tensor:
        rows = pictures.named[torch.randint(0, len(pictures.named), (recipe.batch,))]
        return cross_entropy(
            model(pixel_values=augment(pictures.images[rows])).logits, pictures.classes[rows]
        )

    fit(model, recipe, recipe.steps, lesson, lambda: f"accuracy {accuracy(model, held_out):.4f}", log)
    return model.eval()


def model_card(
    recipe: Recipe, parameters: int, pictures: Pictures, held_out: Pictures, right: float, seconds: float
) -> str:
    """The README beside the weights."""
    return f"""---
license: mit
library_name: transformers
pipeline_tag: image-classification
---
# vit_mini

A ViT of {parameters:,} parameters (transformers' `ViTForImageClassification`), trained from scratch by this project. It exists to run a whole
pruning job offline in a minute; it knows {len(CLASSES)} classes, such as "blue circle", and nothing else.

- **Data**: Easy-VQA 1.0 (package `easy-vqa`, MIT). Its answers name colour and shape of {len(pictures.named):,} of the 4,000 training images and
  of {len(held_out.named):,} of the 1,000 test images; the others are left out (the tower's first lessons also use what is known in part).
- **Input**: 64 x 64 pixels in [-1, 1]; `config.id2label` names the classes.
- **Accuracy**: {100 * right:.2f} % on the held-out images, weights in half precision, computed in fp32. A guesser gets {held_out.guesser():.1f} %.
- **Recipe**: the tower first learns shapes and colours through a throw-away linear head; then everything learns the classes. Mirrored and
  shifted images, AdamW, one cycle per phase, fixed seed. {seconds / 60:.0f} minutes on one CPU thread.
- **Repeat it**: `python -m tools.train_mini.vit --output FOLDER`

{recipe_table(recipe)}"""


def main() -> None:
    """Train, measure on the held-out images, and write weights, processor and model card."""
    (recipe, output), started = command_line(Recipe, __doc__), time.time()
    pictures, held_out = train_and_test()
    model = train(recipe, pictures, held_out, output / "log.txt").half().float()
    right, parameters = accuracy(model, held_out), sum(parameter.numel() for parameter in model.parameters())
    model.half().save_pretrained(output)
    make_processor().save_pretrained(output)
    (output / "README.md").write_text(
        model_card(recipe, parameters, pictures, held_out, right, time.time() - started)
    )
    print(f"{parameters:,} parameters, {100 * right:.2f} % of the held-out images")


if __name__ == "__main__":
    main()
