"""Train ``blip_caption_mini`` from scratch to describe Easy-VQA's images.

    python -m tools.train_mini.blip_caption --output ecoflap/mini/blip_caption

The model is transformers' own BLIP for captions (ViT and text decoder), shrunk. The captions, such as "a
picture of a blue circle", are made from the answers to an image's questions; an image whose answers don't
tell both colour and shape has none. The recipe is fixed (steps, not minutes).
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor
from transformers import BlipForConditionalGeneration, BlipProcessor

from tools.train_mini.blip_model import Recipe, build, make_processor
from tools.train_mini.layout import save_processor, save_with_tied
from tools.train_mini.pictures import CLASSES, Pictures, augment, train_and_test
from tools.train_mini.training import command_line, fit, pretrain_vision, recipe_table

PROMPT = "a picture of"
CAPTIONS = [f"{PROMPT} a {name}" for name in CLASSES]


def caption_ids(processor: BlipProcessor) -> Tensor:
    """The caption of each class as the decoder writes it: its start, the words, ``[SEP]``; all are equally
    long.
    """
    ids = processor.tokenizer(CAPTIONS, return_tensors="pt")["input_ids"]
    ids[:, 0] = len(processor.tokenizer)
    return ids


@torch.inference_mode()
def named_right(
    model: BlipForConditionalGeneration,
    processor: BlipProcessor,
    pictures: Pictures,
    prompt: str | None = PROMPT,
) -> float:
    """Share of the named images whose greedy caption names the right colour and the right shape, and only
    those.
    """
    model.eval()
    right = 0
    for rows in pictures.named.split(250):
        texts = {} if prompt is None else processor(text=[prompt] * len(rows), return_tensors="pt")
        written = model.generate(pixel_values=pictures.images[rows], **texts, max_new_tokens=8)
        captions = processor.batch_decode(written, skip_special_tokens=True)
        right += sum(
            caption == CAPTIONS[i]
            for caption, i in zip(captions, pictures.classes[rows].tolist(), strict=True)
        )
    model.train()
    return right / len(pictures.named)


def train(
    recipe: Recipe, processor: BlipProcessor, pictures: Pictures, held_out: Pictures, log: Path
) -> BlipForConditionalGeneration:
    """Train with AdamW and a one-cycle schedule, the vision tower first; writes a line of progress every 250
    steps.
    """
    torch.manual_seed(recipe.seed)
    model = build(BlipForConditionalGeneration, recipe, len(processor.tokenizer))
    pretrain_vision(model.vision_model, recipe, pictures.images, pictures.labels, log)
    captions = caption_ids(processor)

    def lesson() -> Tensor:
        rows = pictures.named[torch.randint(0, len(pictures.named), (recipe.batch,))]
        ids = captions[pictures.classes[rows]]
        loss: Tensor = model(pixel_values=augment(pictures.images[rows]), input_ids=ids, labels=ids).loss
        return loss

    fit(
        model,
        recipe,
        recipe.steps,
        lesson,
        lambda: f"right {named_right(model, processor, held_out):.4f}",
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
pipeline_tag: image-to-text
---
# blip_caption_mini

A BLIP of {parameters:,} parameters (transformers' `BlipForConditionalGeneration`: ViT, text decoder), trained from scratch by this project. It
exists to run a whole pruning job offline in a minute; it knows three shapes and eight colours, and nothing else.

- **Data**: Easy-VQA 1.0 (package `easy-vqa`, MIT). Its answers name colour and shape of {len(pictures.named):,} of the 4,000 training images and
  of {len(held_out.named):,} of the 1,000 test images; the others are left out (the vision tower's first lessons also use what is known in part).
- **Input**: 64 x 64 pixels in [-1, 1]; the prompt "{PROMPT}" or none. A caption is "{CAPTIONS[4]}", no more. The decoder
  starts from `text_config.bos_token_id`, which is not in the tokenizer (as in the published BLIPs); `generate` puts it in the place of `[CLS]`.
- **Accuracy**: {100 * right:.2f} % of the held-out images get the right colour and shape, weights in half precision, computed in fp32. A guesser
  gets {held_out.guesser():.1f} %.
- **Recipe**: the vision tower first learns shapes and colours through a throw-away linear head; then everything learns to write the caption.
  Mirrored and shifted images, AdamW, one cycle per phase, fixed seed. {seconds / 60:.0f} minutes on one CPU thread.
- **Repeat it**: `python -m tools.train_mini.blip_caption --output FOLDER`

{recipe_table(recipe)}"""


def main() -> None:
    """Train, measure on the held-out images, and write weights, processor and model card."""
    (recipe, output), started = command_line(Recipe, __doc__), time.time()
    pictures, held_out = train_and_test()
    processor = make_processor(CAPTIONS)
    model = train(recipe, processor, pictures, held_out, output / "log.txt").half().float()
    right, parameters = (
        named_right(model, processor, held_out),
        sum(parameter.numel() for parameter in model.parameters()),
    )
    save_with_tied(model.half(), output)
    save_processor(processor, output, "BertTokenizerFast")
    (output / "README.md").write_text(
        model_card(recipe, parameters, pictures, held_out, right, time.time() - started)
    )
    print(f"{parameters:,} parameters, {100 * right:.2f} % of the held-out images described right")


if __name__ == "__main__":
    main()
