"""What the tests of sparse layers share."""

from __future__ import annotations

import pytest
import torch

from ecoflap.errors import UserError
from ecoflap.models.sparse.library import FLAGS, products


@pytest.fixture(params=FLAGS, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each dtype that this machine has sparse products for."""
    chosen: torch.dtype = request.param
    try:
        products(chosen)
    except UserError as error:
        pytest.skip(str(error))
    return chosen
