"""How a saved model is loaded: as its run loaded the dense one, from its own folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ecoflap.errors import UserError
from ecoflap.models.loading.checkpoint_folder import local_settings
from ecoflap.models.loading.kinds import class_or_type, option_for_config
from ecoflap.models.loading.options import PretrainedOptions
from ecoflap.run import registry
from ecoflap.storage.file_names import RESULT
from ecoflap.storage.files import read_json

OF_THE_DENSE = (
    "revision",
    "architecture",
    "save",
    "save_lavis",
    "lavis_checkpoint",
    "vision_from",
    "language_from",
)
"""Options about where the dense weights came from, and what is written; others say how inputs are made."""


def saved_node(recorded: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The ``model`` node of a config that loads a saved model.

    A loader that reads no folder, such as that of an installed package, gives way to the one that fits the
    saved model's config.json, with the options that both have.

    Args:
        recorded: the ``model`` node of the run's config.
        folder: the folder of the saved model.

    Raises:
        UserError: if no loader of this package reads the folder.
    """
    target = str(recorded.get("_target_"))
    options = registry.PARTS["model"].get(target)
    if options is None and "path" in recorded:  # a loader from outside the package
        return {**recorded, "path": str(folder.resolve()), "save": False}
    if options is None or not issubclass(options, PretrainedOptions):
        target, options = _fitting(folder)
    known = registry.node(target, options)
    kept = {name: value for name, value in recorded.items() if name in known and name not in OF_THE_DENSE}
    return {**known, **kept, "_target_": target, "path": str(folder.resolve())}


def recorded_node(folder: Path) -> dict[str, Any] | None:
    """The same for a folder that has its own record; None if it has none, or a loader of someone else's."""
    record = read_json(folder / RESULT)
    if not isinstance(record, dict) or record.get("checkpoint") != ".":
        return None
    model = (record.get("config") or {}).get("model")
    if not isinstance(model, dict) or str(model.get("_target_")) not in registry.PARTS["model"]:
        return None
    return saved_node(model, folder)


def _fitting(folder: Path) -> tuple[str, type]:
    """The class that loads what ``save_pretrained`` wrote into a folder, and its options.

    Raises:
        UserError: if there is none.
    """
    settings = local_settings(folder)
    choice = option_for_config(settings)
    for target, options in registry.PARTS["model"].items():
        if issubclass(options, PretrainedOptions) and registry.defaults(options)["name"] == choice:
            return target, options
    raise UserError(
        f"{folder} holds a {class_or_type(settings)}, which no option of model loads; load it as it was saved"
    )
