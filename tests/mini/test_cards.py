"""The embedded models are small, in half precision, and have a card."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ecoflap.run.config import package_file

MINIS = {
    "blip2": 8e6,
    "blip_caption": 1e6,
    "blip_retrieval": 1e6,
    "blip_vqa": 1e6,
    "clip": 1e6,
    "llava_smollm2": 4e6,
    "t5": 1e6,
    "vit": 1e6,
}
"""The most bytes of each folder."""


@pytest.mark.parametrize("name", MINIS)
def test_it_is_small_half_precision_and_has_a_card(name: str) -> None:
    folder = Path(package_file(f"mini/{name}"))
    assert sum(file.stat().st_size for file in folder.iterdir()) < MINIS[name]
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights).values()
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert all(torch.isfinite(tensor).all() for tensor in tensors)
    card = (folder / "README.md").read_text()
    data, trainer = "MMLU" if name == "t5" else "Easy-VQA", name.removesuffix("_smollm2")
    for word in (data, "seed", "held-out", "guesser", "license: mit", f"tools.train_mini.{trainer}"):
        assert word in card
