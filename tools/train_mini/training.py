"""What the trainings of the mini models share: the command line, the vision tower's first lessons, AdamW, the
log.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from tools.train_mini.pictures import COLOURS, SHAPES, augment

RecipeType = TypeVar("RecipeType")


class Schedule(Protocol):
    """The part of a recipe that an optimizer needs."""

    @property
    def learning_rate(self) -> float:
        """The highest rate of the cycle."""

    @property
    def weight_decay(self) -> float:
        """AdamW's."""

    @property
    def warmup(self) -> int:
        """Steps before the highest rate."""


class VisionRecipe(Schedule, Protocol):
    """The part of a recipe that the vision tower's first lessons need."""

    @property
    def width(self) -> int:
        """Length of the tower's hidden vectors."""

    @property
    def vision_steps(self) -> int:
        """Steps of the first lessons."""

    @property
    def batch(self) -> int:
        """Images per step."""


def pretrain_vision(
    tower: nn.Module, recipe: VisionRecipe, images: Tensor, labels: Tensor, log: Path
) -> None:
    """Teach a vision tower shapes and colours with a throw-away linear head, as BLIP-2's own ViT was trained
    before it met a language model.
    """
    head = torch.nn.Linear(recipe.width, len(SHAPES) + len(COLOURS))
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer, schedule = optimizer_for(parameters, recipe, recipe.vision_steps)
    start = time.time()
    for step in tqdm(range(recipe.vision_steps), disable=None, desc="vision"):
        rows = torch.randint(0, len(labels), (recipe.batch,))
        logits = head(tower(augment(images[rows])).last_hidden_state.mean(1))
        shape, colour = logits.split([len(SHAPES), len(COLOURS)], dim=1)
        target = labels[rows]
        loss = cross_entropy(shape, target[:, 0], ignore_index=-1) + cross_entropy(
            colour, target[:, 1], ignore_index=-1
        )
        update(loss, parameters, optimizer, schedule)
        if (step + 1) % 250 == 0:
            right = (
                (shape.argmax(1) == target[:, 0]).float().mean(),
                (colour.argmax(1) == target[:, 1]).float().mean(),
            )
            note(
                log, start, step, f"vision loss {loss.item():.4f} shape {right[0]:.3f} colour {right[1]:.3f}"
            )


def fit(
    model: nn.Module,
    recipe: Schedule,
    steps: int,
    lesson: Callable[[], Tensor],
    progress: Callable[[], str],
    log: Path,
    every: int = 250,
) -> None:
    """Train all of a model with AdamW and a one-cycle schedule.

    Args:
        model: to train.
        recipe: what the optimizer needs.
        steps: of the schedule.
        lesson: the loss on the next batch.
        progress: how far the model is, in words.
        log: file that gets a line of progress.
        every: steps between two lines.
    """
    parameters = list(model.parameters())
    optimizer, schedule = optimizer_for(parameters, recipe, steps)
    start = time.time()
    for step in tqdm(range(steps), disable=None):
        loss = lesson()
        update(loss, parameters, optimizer, schedule)
        if (step + 1) % every == 0:
            note(log, start, step, f"loss {loss.item():.4f} {progress()}")


def shuffled(count: int, size: int) -> Iterator[Tensor]:
    """Batches [size] of the row numbers below ``count``, without end; they are shuffled anew when fewer than
    ``size`` are left.
    """
    order = torch.empty(0, dtype=torch.long)
    while True:
        if len(order) < size:
            order = torch.randperm(count)
        yield order[:size]
        order = order[size:]


def note(log: Path, start: float, step: int, text: str) -> None:
    """Append a line of progress to the log."""
    with log.open("a") as file:
        print(f"{step + 1} {time.time() - start:.0f}s {text}", file=file)


def optimizer_for(
    parameters: list[torch.nn.Parameter], recipe: Schedule, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW and a one-cycle schedule over the steps."""
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.learning_rate,
        total_steps=steps,
        pct_start=recipe.warmup / steps,
        cycle_momentum=False,
    )
    return optimizer, schedule


def update(
    loss: Tensor,
    parameters: list[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """One clipped step."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()


def command_line(
    recipe: type[RecipeType], description: str | None, arguments: Sequence[str] | None = None
) -> tuple[RecipeType, Path]:
    """The recipe and the output folder that a training's command line names; every number of the recipe is an
    option.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    for name, value in vars(recipe()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    named: dict[str, Any] = vars(parser.parse_args(arguments))
    output: Path = named.pop("output")
    output.mkdir(parents=True, exist_ok=True)
    return recipe(**named), output


def recipe_table(recipe: object) -> str:
    """The recipe as the last part of a model card."""
    return "| recipe | |\n|---|---|\n" + "".join(
        f"| {name} | {value} |\n" for name, value in vars(recipe).items()
    )
