"""Every architecture is pruned and scored on an accelerator without fp64 as on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest

from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import sparsegpt
from ecoflap.prune.admm import ADMM
from ecoflap.prune.driver import prune
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from ecoflap.score.first_order import FirstOrder
from ecoflap.score.zeroth_order import ZerothOrder
from tests.accelerator import device
from tests.accelerator.conftest import in_child
from tests.accelerator.state import NAME, without_fp64
from tests.zoo.architectures import ARCHITECTURES
from tests.zoo.compare import EPS, SEED, uniform
from tests.zoo.examine import examine

EVERY_RUN = ("mamba2", "qwen3_moe")
COMPUTE_IN_FP64 = ("ergo", "udop")
"""They don't run on a device without fp64, whatever is done with them."""
Found = dict[str, Any]
"""{layer: its pruned weight [rows, cols], or its score}."""


def pruned(pruner: Any, propagate: str, model: PrunableModel, calibration: CalibrationSet) -> Found:
    prune(model, calibration, pruner, uniform(model), batch_size=2, propagate=propagate)
    return {layer.name: layer.matrix().detach().cpu().numpy() for layer in model.layers}


def scored(scorer: ZerothOrder | FirstOrder, model: PrunableModel, calibration: CalibrationSet) -> Found:
    return dict(scorer(model, calibration, SEED).importance)


ALGORITHMS: dict[str, Callable[[PrunableModel, CalibrationSet], Found]] = {
    "Wanda": partial(pruned, Wanda(), "pruned"),
    "SparseGPT": partial(pruned, SparseGPT(), "layer"),
    "ADMM": partial(pruned, ADMM(iterations=3, schedule=2), "compensated"),
    "zeroth order": partial(scored, ZerothOrder(samples=2, batch_size=2, eps=EPS)),
    "derivative": partial(scored, ZerothOrder(samples=2, batch_size=2, probe="derivative")),
    "first order": partial(scored, FirstOrder(samples=2, batch_size=2)),
}


def cases() -> list[object]:
    """All architectures; those beyond a few run with the zoo only."""
    others = pytest.mark.zoo
    return [name if name in EVERY_RUN else pytest.param(name, marks=others) for name in ARCHITECTURES]


@pytest.mark.parametrize("name", cases())
def test_on_a_device_as_on_the_cpu(name: str) -> None:
    if not device.is_available():
        pytest.skip("this PyTorch can't register a device from Python")
    architecture = ARCHITECTURES[name]
    if (reason := architecture.missing()) is not None:
        pytest.skip(reason)
    row = examine(architecture, {})
    if row.refusal is not None and not row.skipped:
        pytest.skip(f"a run refuses it: {row.refusal}")

    def found(place: str) -> dict[str, Found | str]:
        return {name: attempt(algorithm, place) for name, algorithm in ALGORITHMS.items()}

    def attempt(algorithm: Callable[[PrunableModel, CalibrationSet], Found], place: str) -> Found | str:
        model = architecture.prunable(row.towers, row.skipped)
        model.module.to(place)
        # on the CPU, too: the same numbers but for their last digits
        precision = nullcontext() if architecture.name in COMPUTE_IN_FP64 else without_fp64()
        with precision, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sparsegpt, "eliminate", sparsegpt.solve_batched)
            try:
                return algorithm(model, architecture.samples())
            except UserError as error:
                return str(error)

    here, there = found("cpu"), in_child(found, NAME)
    for algorithm, expected in here.items():
        assert_same(there[algorithm], expected, algorithm)


def assert_same(found: Found | str, expected: Found | str, algorithm: str) -> None:
    """Compare zeros, weights and scores, or what a refusal says."""
    if isinstance(expected, str) or isinstance(found, str):
        assert found == expected
        return
    assert found.keys() == expected.keys()
    largest = max(float(np.abs(value).max()) for value in expected.values())
    for layer, value in expected.items():
        assert np.array_equal(found[layer] == 0, value == 0), f"{algorithm}: zeros of {layer}"
        np.testing.assert_allclose(
            found[layer], value, rtol=1e-4, atol=1e-5 * largest, err_msg=f"{algorithm}: {layer}"
        )
