"""The files beside the weights, in the layout that transformers 4 and 5 both read; what 5 writes by itself, 4
refuses or misreads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file


def correct(file: Path, **values: object) -> None:
    """Set values in a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values, indent=2, sort_keys=True) + "\n")


def save_processor(processor: Any, folder: Path, tokenizer_class: str) -> None:
    """Write the parts of an image-and-text processor one by one, and the name of the class that joins
    them.
    """
    name = type(processor).__name__
    processor.image_processor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    correct(folder / "tokenizer_config.json", tokenizer_class=tokenizer_class, processor_class=name)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": name}, indent=2) + "\n")


def save_with_tied(model: Any, folder: Path) -> None:
    """Write the model with a copy of each tied tensor, as the published BLIPs have: transformers 4 doesn't
    tie their decoder's head on loading.
    """
    model.save_pretrained(folder)
    save_file(
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
