"""Models that run a tower picture by picture count the same tokens in batches of any size."""

from __future__ import annotations

import pytest
import torch

from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.prune.inputs import measure_dense
from tests.zoo.architecture import Architecture, Draw, reached_towers
from tests.zoo.architectures import VISION_LANGUAGE

BY_PICTURE = [one for one in VISION_LANGUAGE if one.name.startswith("minicpm")]


@pytest.mark.parametrize("architecture", BY_PICTURE, ids=[one.name for one in BY_PICTURE])
def test_statistics_do_not_depend_on_the_size_of_batches(architecture: Architecture) -> None:
    if (reason := architecture.missing()) is not None:
        pytest.skip(reason)
    draw = Draw(9, torch.Generator().manual_seed(1))
    calibration = CalibrationSet("zoo", tuple(architecture.sample(draw) for _ in range(5)))
    model = architecture.prunable(reached_towers(architecture.prunable(), calibration.samples[0]))
    alone, together = (measure_dense(model, calibration, size) for size in (1, 5))
    for name, statistic in alone.items():
        assert together[name][-1] == statistic[-1], "tokens"
        torch.testing.assert_close(together[name], statistic, rtol=1e-5, atol=1e-8)
