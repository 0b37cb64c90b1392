"""A model comes back from a training in its own dtype, or the training is refused as diverged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ecoflap.errors import NumericalError
from ecoflap.finetune.full import Full
from ecoflap.finetune.lora import Lora
from ecoflap.finetune.protocol import Finetuner
from ecoflap.finetune.training_precision import trained_in_float32
from tests.finetune.test_lora import job
from tests.tiny import build

LAST = {"data": "calibration", "steps": 1, "learning_rate": 1e38}


@pytest.mark.parametrize("finetuner", [Full(**LAST), Lora(**LAST)], ids=["full", "lora"])  # type: ignore[arg-type]
def test_a_last_step_that_diverges_is_refused(finetuner: Finetuner, tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match=r"NaN or infinite weights in float32.*finetune\.learning_rate"):
        finetuner.finetune(job("llama", tmp_path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_judged_in_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    model = build("llama")
    model.module.to(dtype)
    weight = next(model.module.parameters())
    with trained_in_float32(model), torch.no_grad():
        assert weight.dtype == torch.float32
        weight.fill_(60_000.0)
    assert weight.dtype == dtype
    name = str(dtype).removeprefix("torch.")
    with (
        pytest.raises(NumericalError, match=rf"weights in {name} after the training"),
        trained_in_float32(model),
        torch.no_grad(),
    ):
        weight.fill_(3.4e38)
