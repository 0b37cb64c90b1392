"""Loader of the golden vectors: outputs of the published implementations, kept beside the repository (see its
README.md).
"""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parents[2].parent / "shared" / "golden"
needs_golden = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"golden vectors not found at {FOLDER}")


def cases(name: str) -> dict[str, dict[str, Any]]:
    """The cases of <name>.json by name; none if the folder is missing."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def tensors(name: str, case: str) -> dict[str, Tensor]:
    """The tensors of one case of <name>.safetensors, without the case's prefix."""
    stored = load_file(FOLDER / f"{name}.safetensors")
    return {
        key.removeprefix(f"{case}."): value for key, value in stored.items() if key.startswith(f"{case}.")
    }
