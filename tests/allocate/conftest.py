"""A model with blocks and towers of different sizes, and a run that allocates for it."""

from __future__ import annotations

import pytest

from ecoflap.allocate.protocol import Context
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.wanda import Wanda
from tests import tiny


@pytest.fixture(scope="module")
def model() -> PrunableModel:
    return tiny.build("blip2_t5", skip_layers=(r"block\.1\.layer\.0",))


@pytest.fixture
def context() -> Context:
    return Context(Wanda(), tiny.samples("blip2_t5"), 2, 0)
