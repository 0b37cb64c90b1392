"""Every architecture is scored and pruned in bfloat16, the dtype of most checkpoints.

Zeroth-order scores are computed in fp32: those of a model in bfloat16 are those of the same weights in fp32.
Pruning runs in the model's own dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError
from ecoflap.models.core.wide_parts import DTYPE_OPTION
from ecoflap.prune.admm import ADMM
from ecoflap.prune.driver import prune
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from ecoflap.score.first_order import FirstOrder
from ecoflap.score.zeroth_order import ZerothOrder
from tests.zoo.architecture import Architecture
from tests.zoo.architectures import ARCHITECTURES
from tests.zoo.compare import EPS, SEED, uniform
from tests.zoo.examine import examine

EVERY_RUN = ("llama", "llava", "nemotron_h_omni")
SKIPPED = {
    **dict.fromkeys(("reformer", "xlnet", "xlstm"), "transformers multiplies bfloat16 by fp32 there"),
    "shieldgemma2": "transformers doesn't find the weights that it saved",
}
PRUNERS: Mapping[str, tuple[Any, str]] = {
    "Wanda": (Wanda(), "pruned"),
    "SparseGPT": (SparseGPT(), "layer"),
    "ADMM": (ADMM(iterations=3, schedule=2), "compensated"),
}


@dataclass(frozen=True)
class Loaded(Architecture):
    """An architecture as ``from_pretrained`` loads it from a checkpoint in bfloat16; some parts stay in fp32.

    Attributes:
        folder: of the checkpoint, which is written if it is missing.
        dtype: that it is in, once it is loaded in bfloat16, which rounds its positions, scales of embeddings,
            ..., too.
    """

    folder: Path = Path()
    dtype: torch.dtype = torch.bfloat16

    def module(self) -> nn.Module:
        if not self.folder.exists():
            made: Any = super().module()
            made.to(torch.bfloat16).save_pretrained(self.folder)
        kind = getattr(transformers, self.model)
        loaded, found = kind.from_pretrained(
            self.folder, output_loading_info=True, **{DTYPE_OPTION: torch.bfloat16}
        )
        assert not found["missing_keys"]
        self.prepare(loaded)
        if self.dtype == torch.float32:
            for tensor in (*loaded.parameters(), *loaded.buffers()):
                tensor.data = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            for part in loaded.modules():
                if isinstance(getattr(part, "config", None), transformers.PretrainedConfig):
                    setattr(part.config, DTYPE_OPTION, torch.float32)
        return loaded.eval()  # type: ignore[no-any-return]

    def samples(self) -> CalibrationSet:
        samples = super().samples()
        return replace(samples, samples=[dict(map(self._cast, one.items())) for one in samples.samples])

    def _cast(self, named: tuple[str, Tensor]) -> tuple[str, Tensor]:
        name, tensor = named
        return name, tensor.bfloat16().to(self.dtype) if tensor.is_floating_point() else tensor


def cases() -> list[object]:
    """All architectures; those beyond a few run with the zoo only."""
    others = pytest.mark.zoo
    return [name if name in EVERY_RUN else pytest.param(name, marks=others) for name in ARCHITECTURES]


@pytest.mark.parametrize("name", cases())
def test_in_bfloat16(name: str, tmp_path: Path) -> None:
    if (reason := ARCHITECTURES[name].missing()) is not None:
        pytest.skip(reason)
    if name in SKIPPED:
        pytest.skip(SKIPPED[name])
    narrow = Loaded(**vars(ARCHITECTURES[name]), folder=tmp_path / "checkpoint")
    row = examine(narrow, {})
    if row.refusal is not None and not row.skipped:
        pytest.skip(f"a run refuses it: {row.refusal}")

    zeroth = ZerothOrder(samples=2, batch_size=2, eps=EPS)
    found, expected = (
        zeroth(one.prunable(row.towers, row.skipped), one.samples(), SEED).importance
        for one in (narrow, replace(narrow, dtype=torch.float32))
    )
    largest = max(float(np.abs(value).max()) for value in expected.values())
    for layer, value in expected.items():
        np.testing.assert_allclose(found[layer], value, rtol=1e-4, atol=1e-5 * largest, err_msg=layer)
    model = narrow.prunable(row.towers, row.skipped)
    first = FirstOrder(samples=2, batch_size=2)(model, narrow.samples(), SEED).importance
    assert all(np.isfinite(value).all() for value in first.values())

    for pruner, propagate in PRUNERS.values():
        model = narrow.prunable(row.towers, row.skipped)
        dtypes = {layer.name: layer.weight.dtype for layer in model.layers}
        allocation = uniform(model)
        try:
            prune(model, narrow.samples(), pruner, allocation, batch_size=2, propagate=propagate)
        except UserError:  # a layer that is called twice, say; the comparison in fp32 looks at refusals
            continue
        for layer in model.layers:
            weight = layer.matrix()
            assert layer.weight.dtype == dtypes[layer.name]
            assert bool(weight.isfinite().all()), layer.name
            assert int(weight.count_nonzero()) == allocation.keep[layer.name], layer.name
