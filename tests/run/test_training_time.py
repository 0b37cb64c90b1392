"""About how long a training takes: its passes, as many as it runs, and the model as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from ecoflap.finetune.full import Full
from ecoflap.finetune.job import Job, Training
from ecoflap.finetune.lora import Lora
from ecoflap.finetune.protocol import Finetuner
from ecoflap.finetune.reconstruct import Reconstruct
from ecoflap.run.steps import training_time
from ecoflap.run.steps.training_time import training_seconds
from tests import tiny


@pytest.mark.parametrize(
    ("finetuner", "passes"),
    [
        (Full(batch_size=8, steps=5), 40),
        (Full(batch_size=8, steps=5, accumulation=3), 120),
        (Full(batch_size=8, epochs=2), 2 * 13 * 8),  # the last batch of an epoch is counted as a whole one
        (Lora(batch_size=8, epochs=0.5), round(0.5 * 13) * 8),
        (Full(batch_size=512, steps=2), 200),
        (Reconstruct(epochs=3), pytest.approx((3 + 4 / 3) * 100)),
        (Reconstruct(epochs=3, samples=16), pytest.approx((3 + 4 / 3) * 16)),
    ],
)
def test_passes_of_a_hundred_samples(finetuner: Finetuner, passes: float) -> None:
    assert finetuner.passes(100) == passes


@pytest.mark.parametrize(("of_sample", "timed"), [(0.1, [2, 2, 5]), (2.0, [2, 2])])
def test_a_batch_is_timed_unless_few_samples_take_long(
    monkeypatch: pytest.MonkeyPatch, of_sample: float, timed: list[int]
) -> None:
    seen: list[int] = []

    def work(model: Any, samples: Sequence[Any], precise: bool) -> float:
        seen.append(len(samples))
        assert precise
        return of_sample * len(samples)

    monkeypatch.setattr(training_time, "_pass", work)
    model, samples = tiny.build("llama"), tiny.samples("llama").samples
    assert training_seconds(Full(batch_size=32, steps=6), model, samples, 0.5, 1) == pytest.approx(
        of_sample * 6 * 5
    )
    assert seen == timed


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_stays_as_it_was(family: str, dtype: torch.dtype) -> None:
    model = tiny.build(family)
    model.module.to(dtype)
    before = model.fingerprint()
    samples = tiny.samples(family).samples
    assert training_seconds(Full(batch_size=3, steps=2), model, samples, 0.5, 1) > 0
    assert model.fingerprint() == before
    assert all(one.grad is None and one.requires_grad for one in model.module.parameters())


def test_the_time_of_a_finetuner_of_ones_own_is_unknown() -> None:
    class Own(Finetuner):
        name = "own"

        def finetune(self, job: Job) -> Training:
            raise NotImplementedError

    assert training_seconds(Own(), tiny.build("llama"), tiny.samples("llama").samples, 0.5, 1) is None
