"""Sizes of checkpoints without zeros: python -m benchmarks.sizes. Writes the table in docs/sharing.md.

Real models and the embedded ones in bf16, pruned by magnitude within rows, or 2:4. Every file is read back
and compared to the bit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

import ecoflap
from benchmarks.measure import ROOT, write_between
from benchmarks.models import smollm2
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.ops.selection import select
from ecoflap.storage.bitmask.convert import rewrite
from ecoflap.storage.saved_model import open_checkpoint, weight_bytes

BEGIN, END = "<!-- written by python -m benchmarks.sizes -->", "<!-- end -->"
MINIS = ("blip2_mini", "blip_vqa_mini", "clip_mini", "t5_mini", "vit_mini")
SPARSITIES: Mapping[str, float | None] = {"50 %": 0.5, "60 %": 0.6, "70 %": 0.7, "2:4": None}
FORMS = ("bitmask", "coded")


class Size(NamedTuple):
    """Bytes as shares of the dense ones, by form: of the pruned matrices alone, and of the whole model."""

    matrices: list[float]
    whole: list[float]


def example(name: str, module: str, kind: str) -> Callable[[], PrunableModel]:
    """A model of ``examples/``."""

    def load() -> PrunableModel:
        sys.path.append(str(ROOT / "examples" / name))
        found: PrunableModel = getattr(import_module(module), kind)().load(torch.device("cpu"), Selection())
        return found

    return load


MODELS: Mapping[str, Callable[[], PrunableModel]] = {
    "SmolLM2-135M": smollm2,
    "ViT-S/14 with decoder": example("saliency", "ecoflap_saliency.model", "VitSaliency"),
    "Whisper-tiny.en": example("speech", "ecoflap_speech.whisper", "Whisper"),
    **{name: partial(ecoflap.load, name, device="cpu") for name in MINIS},
}


def sizes_of(model: PrunableModel) -> Iterator[Size]:
    """The sizes of a model at each of ``SPARSITIES``; it stays pruned."""
    model.module.to(torch.bfloat16)
    dense = {layer.name: layer.weight.detach().clone() for layer in model.layers}
    for sparsity in SPARSITIES.values():
        for layer in model.layers:
            layer.weight.data.copy_(pruned(dense[layer.name], sparsity))
        matrices = {layer.name: layer.weight.detach().clone() for layer in model.layers}
        whole = {name: weight.detach() for name, weight in model.module.named_parameters()}
        yield Size(ratios(matrices), ratios(whole))


def pruned(weight: Tensor, sparsity: float | None) -> Tensor:
    """A matrix without its smallest weights, as it is stored."""
    keep = 0 if sparsity is None else round((1 - sparsity) * weight.numel())
    mask = select(weight.abs(), keep, (2, 4) if sparsity is None else "row")
    return torch.where(mask, weight, 0)  # a product would leave negative zeros, which are stored


def ratios(tensors: Mapping[str, Tensor]) -> list[float]:
    """Bytes of the files in each form, as shares of the dense file.

    Raises:
        AssertionError: if a tensor does not come back to the bit.
    """
    found = []
    with TemporaryDirectory(prefix="ecoflap-") as place:
        dense = Path(place) / "dense"
        dense.mkdir()
        save_file({name: one.contiguous() for name, one in tensors.items()}, dense / "model.safetensors")
        for form in FORMS:
            rewrite(dense, Path(place) / form, form)
            with open_checkpoint(Path(place) / form) as checkpoint:
                for name, one in tensors.items():
                    assert torch.equal(checkpoint.read(name).view(torch.int16), one.view(torch.int16)), name
            found.append(weight_bytes(Path(place) / form) / weight_bytes(dense))
    return found


def main() -> None:
    """Measure all that is installed, and write the table."""
    lines = [
        "| bf16, of the dense bytes | | " + " | ".join(SPARSITIES) + " |",
        "|---|---|" + "---:|" * len(SPARSITIES),
    ]
    for name, load in MODELS.items():
        try:
            sizes = list(sizes_of(load()))
        except UserError as error:
            print(f"{name}: not measured: {error}", flush=True)
            continue
        for place, form in enumerate(FORMS):
            cells = [f"{size.matrices[place]:.3f} ({size.whole[place]:.3f})" for size in sizes]
            lines.append(f"| {'' if place else name} | `{form}` | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    write_between(ROOT / "docs" / "sharing.md", BEGIN, END, lines)


if __name__ == "__main__":
    main()
