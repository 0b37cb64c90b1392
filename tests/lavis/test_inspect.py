"""``inspect`` shows the real models without their weights."""

from __future__ import annotations

import pytest
import torch

from ecoflap.models.core.towers import Selection
from ecoflap.run.instantiate import build
from tests.cli.conftest import composed
from tests.lavis import tiny  # noqa: F401 - skips where LAVIS is missing

PUBLISHED = {
    "blip2_flan_t5_xl_lavis": {
        "vision": (39, 156, 984_023_040),
        "encoder": (24, 168, 1_157_627_904),
        "decoder": (24, 264, 1_560_281_088),
    },
    "blip_nlvr": {"vision": (12, 48, 84_934_656), "text": (12, 174, 148_635_648)},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_real_dimensions(name: str) -> None:
    model = build("model", composed([f"model={name}"]).model).load(torch.device("meta"), Selection())
    assert {
        t.name: (len(t.blocks), len(t.layers), sum(layer.size for layer in t.layers)) for t in model.towers
    } == PUBLISHED[name]
    assert all(parameter.is_meta for parameter in model.module.parameters())
    dense = {skipped.name for skipped in model.skipped}
    assert not any(name in dense for name in (layer.name for layer in model.layers))
    if name == "blip_nlvr":
        assert sum("merge_layer" in layer.name for layer in model.layers) == 6
    else:
        assert len(model.layers) == 588
        assert any(name.startswith("Qformer.bert.encoder.layer.0.crossattention") for name in dense)
