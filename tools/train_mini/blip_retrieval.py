"""Train ``blip_retrieval_mini`` from scratch to find captions for Easy-VQA's images, and images for captions.

    python -m tools.train_mini.blip_retrieval --output ecoflap/mini/blip_retrieval

The model is transformers' own BLIP for image-text retrieval, shrunk, and learns as BLIP did: contrast (ITC)
between the two towers, and matching (ITM) of pairs whose wrong half is drawn from what the contrast confuses.
A batch holds one image of each class, so that no other caption of the batch is true of it. The recipe is
fixed (steps, not minutes).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import BlipForImageTextRetrieval, BlipProcessor

from tools.train_mini.blip_model import Recipe, build, make_processor
from tools.train_mini.layout import save_processor
from tools.train_mini.pictures import CLASSES, Pictures, augment, train_and_test
from tools.train_mini.training import command_line, fit, pretrain_vision, recipe_table

CAPTIONS = [f"a picture of a {name}" for name in CLASSES]
TEMPERATURE = 0.07


@dataclass(frozen=True)
class Recall:
    """Recall at 1 by head and direction: an image's caption out of all classes', a caption's image out of all
    held-out images.
    """

    contrast_to_text: float
    contrast_to_image: float
    matching_to_text: float
    matching_to_image: float


def contrast(model: BlipForImageTextRetrieval, vision: Tensor, ids: Tensor) -> Tensor:
    """Cosines [images, texts] between the towers' projected first vectors; the model's own
    ``use_itm_head=False``.
    """
    images = normalize(model.vision_proj(vision[:, 0]), dim=-1)
    texts = normalize(model.text_proj(model.text_encoder(input_ids=ids).last_hidden_state[:, 0]), dim=-1)
    return images @ texts.T


def matching(model: BlipForImageTextRetrieval, vision: Tensor, ids: Tensor) -> Tensor:
    """Logits [pairs, 2] that image and text of a pair don't, or do, belong together; the model's own
    ``use_itm_head=True``.
    """
    return model.itm_head(
        model.text_encoder(input_ids=ids, encoder_hidden_states=vision).last_hidden_state[:, 0]
    )


def losses(model: BlipForImageTextRetrieval, images: Tensor, ids: Tensor) -> Tensor:
    """ITC plus ITM of images and their captions; each image meets one wrong caption, each caption one wrong
    image.
    """
    vision = model.vision_model(images).last_hidden_state
    logits, own = contrast(model, vision, ids) / TEMPERATURE, torch.arange(len(ids))
    itc = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
    confused = logits.detach().masked_fill(torch.eye(len(ids), dtype=torch.bool), -torch.inf)
    text, image = confused.softmax(1).multinomial(1).flatten(), confused.T.softmax(1).multinomial(1).flatten()
    scores = matching(model, torch.cat([vision, vision, vision[image]]), torch.cat([ids, ids[text], ids]))
    return itc + cross_entropy(
        scores, torch.cat([torch.ones_like(own), torch.zeros_like(own), torch.zeros_like(own)])
    )


@torch.inference_mode()
def recall(model: BlipForImageTextRetrieval, processor: BlipProcessor, pictures: Pictures) -> Recall:
    """Rank all classes' captions for each named image, and all named images for each caption, by both
    heads.
    """
    model.eval()
    ids = processor.tokenizer(CAPTIONS, return_tensors="pt")["input_ids"]
    vision = torch.cat(
        [model.vision_model(pictures.images[rows]).last_hidden_state for rows in pictures.named.split(250)]
    )
    itc = contrast(model, vision, ids)
    itm = torch.stack(
        [matching(model, vision, caption.expand(len(vision), -1)).diff(dim=1).flatten() for caption in ids],
        dim=1,
    )
    model.train()
    own = pictures.classes[pictures.named]
    shares = [
        share.float().mean().item()
        for score in (itc, itm)
        for share in (score.argmax(1) == own, own[score.argmax(0)] == torch.arange(len(CLASSES)))
    ]
    return Recall(*shares)


def train(
    recipe: Recipe, processor: BlipProcessor, pictures: Pictures, held_out: Pictures, log: Path
) -> BlipForImageTextRetrieval:
    """Train with AdamW and a one-cycle schedule, the vision tower first; writes a line of progress every 250
    steps.
    """
    torch.manual_seed(recipe.seed)
    model = build(BlipForImageTextRetrieval, recipe, len(processor.tokenizer))
    pretrain_vision(model.vision_model, recipe, pictures.images, pictures.labels, log)
    ids = processor.tokenizer(CAPTIONS, return_tensors="pt")["input_ids"]

    def lesson() -> Tensor:
        return losses(model, augment(pictures.images[pictures.one_of_each()]), ids)

    fit(model, recipe, recipe.steps, lesson, lambda: str(recall(model, processor, held_out)), log)
    return model.eval()


def model_card(
    recipe: Recipe, parameters: int, pictures: Pictures, held_out: Pictures, found: Recall, seconds: float
) -> str:
    """The README beside the weights."""
    return f"""---
license: mit
library_name: transformers
---
# blip_retrieval_mini

A BLIP of {parameters:,} parameters (transformers' `BlipForImageTextRetrieval`: ViT, text encoder), trained from scratch by this project. It
exists to run a whole pruning job offline in a minute; it knows three shapes and eight colours, and nothing else.

- **Data**: Easy-VQA 1.0 (package `easy-vqa`, MIT). Its answers name colour and shape of {len(pictures.named):,} of the 4,000 training images and
  of {len(held_out.named):,} of the 1,000 test images; the others are left out (the vision tower's first lessons also use what is known in part).
- **Input**: 64 x 64 pixels in [-1, 1]; captions such as "{CAPTIONS[4]}", as the processor writes them. `use_itm_head=False` gives
  the contrast's cosines [images, texts] (trained at temperature {TEMPERATURE}), `use_itm_head=True` two logits per pair, the second for "they match".
- **Recall at 1** on the held-out images, weights in half precision, computed in fp32 (a guesser gets {held_out.guesser():.1f} %):

| | image to caption (of {len(CLASSES)}) | caption to image (of {len(held_out.named)}) |
|---|---|---|
| contrast | {100 * found.contrast_to_text:.2f} % | {100 * found.contrast_to_image:.2f} % |
| matching | {100 * found.matching_to_text:.2f} % | {100 * found.matching_to_image:.2f} % |

- **Recipe**: the vision tower first learns shapes and colours through a throw-away linear head; then everything learns both tasks on batches of
  one picture per class. Mirrored and shifted images, AdamW, one cycle per phase, fixed seed. {seconds / 60:.0f} minutes on one CPU thread.
- **Repeat it**: `python -m tools.train_mini.blip_retrieval --output FOLDER`

{recipe_table(recipe)}"""


def main() -> None:
    """Train, measure on the held-out images, and write weights, processor and model card."""
    (recipe, output), started = command_line(Recipe, __doc__), time.time()
    pictures, held_out = train_and_test()
    processor = make_processor(CAPTIONS)
    model = train(recipe, processor, pictures, held_out, output / "log.txt").half().float()
    found, parameters = (
        recall(model, processor, held_out),
        sum(parameter.numel() for parameter in model.parameters()),
    )
    model.half().save_pretrained(output)
    save_processor(processor, output, "BertTokenizerFast")
    (output / "README.md").write_text(
        model_card(recipe, parameters, pictures, held_out, found, time.time() - started)
    )
    print(f"{parameters:,} parameters, {found}")


if __name__ == "__main__":
    main()
