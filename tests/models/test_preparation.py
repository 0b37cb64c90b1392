"""The model's fingerprint knows how its inputs are made, wherever it was loaded from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ecoflap.data.example import Example, Generation
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.blip2.generation import Blip2
from ecoflap.models.families.clip.clip import Clip
from ecoflap.models.families.language.seq2seq import Seq2Seq
from ecoflap.models.families.vision.image_classifier import ImageClassifier
from ecoflap.run.config import package_file

LOADERS: dict[str, Any] = {"clip": Clip, "blip2": Blip2, "vit": ImageClassifier, "t5": Seq2Seq}


def load(name: str, folder: Path | str) -> PrunableModel:
    loader = LOADERS[name](str(folder))
    if not all(hasattr(transformers, one) for one in loader.classes):
        pytest.skip(f"transformers has no {name}")
    try:
        return loader.load(torch.device("cpu"), Selection())
    except Exception as error:
        if "data did not match any variant" not in str(error):
            raise
        pytest.skip("this release of tokenizers can't read files of newer ones")


@pytest.mark.parametrize("name", LOADERS)
def test_equal_from_different_folders(name: str, tmp_path: Path) -> None:
    model = load(name, package_file(f"mini/{name}"))
    copy = load(name, shutil.copytree(package_file(f"mini/{name}"), tmp_path / "copy"))
    assert model.fingerprint() == copy.fingerprint()
    assert model.fingerprint() != PrunableModel(**{**vars(model), "processor": None}).fingerprint()


def edited(file: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content))

    return edit


CHANGES = {
    "image_std": (
        "vit",
        edited("preprocessor_config.json", lambda content: content.update(image_std=[5, 5, 5])),
    ),
    "a word": (
        "t5",
        edited("tokenizer.json", lambda content: content.update(normalizer={"type": "Lowercase"})),
    ),
    "chat": ("t5", edited("tokenizer_config.json", lambda content: content.update(chat_template="{{ 1 }}"))),
    "longest": ("t5", edited("tokenizer_config.json", lambda content: content.update(model_max_length=7))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(change: str, tmp_path: Path) -> None:
    if change == "chat" and not hasattr(transformers.PreTrainedTokenizerBase, "apply_chat_template"):
        pytest.skip("transformers has no chat templates")
    name, edit = CHANGES[change]
    folder = shutil.copytree(package_file(f"mini/{name}"), tmp_path / "copy")
    before = load(name, folder).fingerprint()
    edit(folder)
    assert load(name, folder).fingerprint() != before


OPTIONS: dict[str, Callable[[Any], object]] = {
    "truncation_side": lambda now: {"left": "right", "right": "left"}[now],
    "split_special_tokens": lambda now: not now,
    "model_input_names": lambda now: [*now, "token_type_ids"],
    "clean_up_tokenization_spaces": lambda now: not now,
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_a_tokenizer_is_seen(option: str, tmp_path: Path) -> None:
    folder = shutil.copytree(package_file("mini/t5"), tmp_path / "copy")
    model = load("t5", folder)
    if not hasattr(model.processor, option):
        pytest.skip(f"tokenizers have no {option} in transformers {transformers.__version__}")
    value = OPTIONS[option](getattr(model.processor, option))
    edited("tokenizer_config.json", lambda content: content.update({option: value}))(folder)
    changed = load("t5", folder)
    assert getattr(changed.processor, option) == value
    assert changed.fingerprint() != model.fingerprint()


def test_asking_the_model_changes_nothing() -> None:
    model = load("t5", package_file("mini/t5"))
    before = model.fingerprint()
    model.interface.answer(model, [Example("one"), Example("one two three")], Generation(max_new_tokens=1))
    model.processor("one", truncation=True, max_length=1)
    assert model.fingerprint() == before
