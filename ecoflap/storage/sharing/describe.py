"""Describe a saved model in its own folder, so that it can be shared without the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ecoflap.storage.file_names import RESULT
from ecoflap.storage.results.record import Result
from ecoflap.storage.saved_model import hash_model_files, hash_weights
from ecoflap.storage.sharing.card import write_card
from ecoflap.storage.sharing.recipe import write_recipe


def with_hashes(result: Result, folder: Path) -> Result:
    """The record with the hashes of the model that was saved in a folder."""
    return replace(result, weights=hash_weights(folder), model_files=hash_model_files(folder))


def describe(folder: Path, result: Result) -> None:
    """Write the model card, the recipe and the record into the folder of a saved model.

    Args:
        folder: the folder of the saved model.
        result: the record of its run.
    """
    replace(result, checkpoint=".").write(folder / RESULT)
    write_recipe(folder, result.config, result.versions.get("ecoflap"))
    write_card(folder, result)
