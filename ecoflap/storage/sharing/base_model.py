"""What is known of the model that was pruned: its id on the hub, its license and its task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml

from ecoflap.storage.file_names import CARD, CHECKPOINT
from ecoflap.storage.files import read_json

TASKS = {
    "ForCausalLM": "text-generation",
    "ForImageClassification": "image-classification",
    "BlipForQuestionAnswering": "visual-question-answering",
    "CLIPModel": "zero-shot-image-classification",
}
"""{end of an architecture's name: what models of this kind do, in the hub's words}, where that is certain."""
LICENSE = ("license", "license_name", "license_link")
EMBEDDED = ("ecoflap", "mini")
"""The last folders above the weights that come with the package, of whatever installation."""


@dataclass(frozen=True)
class BaseModel:
    """The dense model.

    Attributes:
        id: its id on the hub; None for a local folder.
        license: ``license``, ``license_name`` and ``license_link`` of its card, as far as it has them.
        pipeline_tag: its task in the hub's words; None if unknown.
        library: the library that loads the pruned model by ``from_pretrained``; None if unknown.
    """

    id: str | None
    license: dict[str, Any]
    pipeline_tag: str | None
    library: str | None


def describe_base(model: Mapping[str, Any], folder: Path) -> BaseModel:
    """What the model's own card, which is on this machine or not at all, and the saved config say.

    Args:
        model: the ``model`` part of a config; {} if it was in memory.
        folder: the folder of the pruned model.
    """
    path, revision = model.get("path"), model.get("revision")
    settings, card, hub_id = saved_settings(folder), None, None
    if path is not None and (local := Path(path).expanduser()).is_dir():
        card = local / CARD
    elif path is not None and _cached(str(path), "config.json", revision) is not None:
        card, hub_id = _cached(str(path), CARD, revision), str(path)
    said = _front_matter(card)
    tag = said.get("pipeline_tag") or _task_of(settings)
    return BaseModel(
        hub_id,
        {key: said[key] for key in LICENSE if isinstance(said.get(key), str)},
        tag if isinstance(tag, str) else None,
        "transformers" if "transformers_version" in settings else None,
    )


def model_name(model: Mapping[str, Any], choice: str) -> str:
    """The name of a model by its path (see ``shown_path``); the choice's where the package has its weights.

    Args:
        model: the ``model`` part of a config.
        choice: the name of the choice, which a model without a path has.
    """
    path = model.get("path")
    if path is None or PurePath(path).parts[-3:-1] == EMBEDDED:
        return choice
    return shown_path(path)


def shown_path(path: str) -> str:
    """OWNER/NAME, as on the hub; of other paths the last part, as the folders are of one machine.

    The folder of a run's model has that of the run before it.
    """
    given = PurePath(path)
    parts = [part for part in given.parts if part not in ("..", "~")]
    whole = len(given.parts) == len(parts) == 2 and not given.is_absolute()
    return "/".join(parts[-2:] if whole or parts[-1:] == [CHECKPOINT] else parts[-1:])


def saved_settings(folder: Path) -> dict[str, Any]:
    """The config.json of a saved model; {} if there is none that can be read."""
    settings = read_json(folder / "config.json")
    return settings if isinstance(settings, dict) else {}


def _cached(hub_id: str, name: str, revision: str | None) -> Path | None:
    """A file of a model in the hub's cache; None if it is not there, as for a model from elsewhere."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(hub_id, name, revision=revision)
    except ValueError:
        return None
    return Path(found) if isinstance(found, str) else None


def _front_matter(file: Path | None) -> dict[str, Any]:
    """The YAML at the head of a card; {} if it has none."""
    from huggingface_hub import metadata_load

    try:
        return (metadata_load(file) if file is not None and file.is_file() else None) or {}
    except (ValueError, yaml.YAMLError):
        return {}


def _task_of(settings: Mapping[str, Any]) -> str | None:
    """The task of a model by the name of its architecture; None where that does not say."""
    name = next(iter(settings.get("architectures") or ()), "")
    return next((task for end, task in TASKS.items() if name.endswith(end)), None)
