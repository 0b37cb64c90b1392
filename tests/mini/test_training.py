"""What the trainings of the embedded models share."""

from __future__ import annotations

from pathlib import Path

import torch

from tools.train_mini.layout import correct
from tools.train_mini.pictures import CLASSES, Pictures, augment, image_labels
from tools.train_mini.training import command_line, recipe_table, shuffled
from tools.train_mini.vit_model import Recipe


def test_labels_are_read_from_what_questions_only() -> None:
    texts = [
        "what shape is in the image?",
        "what color is the shape?",
        "is there a circle?",
        "what color is the triangle?",
    ]
    labels = image_labels((texts, ["triangle", "blue", "no", "red"], [0, 0, 1, 2]))
    assert labels.tolist() == [[2, 1], [-1, -1], [-1, 5]]


def test_a_pictures_class_is_its_colour_and_its_shape(held_out: Pictures) -> None:
    assert CLASSES[4] == "blue rectangle"
    shape, colour = held_out.labels[held_out.named].T
    assert torch.equal(held_out.classes[held_out.named], 3 * colour + shape)
    assert (held_out.labels[held_out.classes < 0] < 0).any(1).all()


def test_one_of_each_holds_each_class_once(held_out: Pictures) -> None:
    assert held_out.classes[held_out.one_of_each()].tolist() == list(range(len(CLASSES)))


def test_augment_shifts_and_mirrors_and_nothing_else() -> None:
    torch.manual_seed(0)
    flat = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 64, 64)
    assert torch.equal(augment(flat), flat)
    assert augment(torch.randn(2, 3, 64, 64)).shape == (2, 3, 64, 64)


def test_a_command_line_sets_the_recipe(tmp_path: Path) -> None:
    recipe, output = command_line(
        Recipe, "", ["--output", str(tmp_path / "new"), "--width", "8", "--learning_rate", "0.1"]
    )
    assert (recipe.width, recipe.learning_rate, recipe.heads) == (8, 0.1, Recipe().heads)
    assert output.is_dir()
    assert "| width | 8 |" in recipe_table(recipe)


def test_shuffled_batches_hold_each_row_once_until_too_few_are_left() -> None:
    torch.manual_seed(0)
    batches = shuffled(7, 3)
    for _ in range(3):
        rows = torch.cat([next(batches), next(batches)])
        assert len(rows) == len(set(rows.tolist())) == 6
        assert set(rows.tolist()) < set(range(7))


def test_correct_changes_only_what_it_names(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_text('{"a": 1, "b": 2}')
    correct(file, b=3)
    assert file.read_text() == '{\n  "a": 1,\n  "b": 3\n}\n'
