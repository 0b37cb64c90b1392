"""What releases of transformers and the environment must not change of a training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Trainer

from ecoflap.data.batch import Sample
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.distributed.processes import rank
from ecoflap.errors import UserError
from ecoflap.finetune.full import Full
from ecoflap.finetune.job import Job
from ecoflap.finetune.trainer import PrunedTrainer
from ecoflap.models.core.encoding import OnDemand
from tests import tiny
from tests.distributed.together import together
from tests.finetune.test_masked_parameters import pruned
from tests.finetune.test_training import gradients


def test_the_environment_does_not_choose_the_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Releases before 5 leave one there: in a sweep, fp32 after bfloat16 was bfloat16."""
    plain = gradients(tmp_path / "plain", batch_size=5)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert plain
    torch.testing.assert_close(gradients(tmp_path / "again", batch_size=5), plain, rtol=0, atol=0)


def test_accumulation_needs_a_release_that_resumes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older ones lose a last step of fewer parts, or resume in another epoch."""
    model, _ = pruned("llama")
    monkeypatch.setattr("ecoflap.finetune.training.transformers", SimpleNamespace(__version__="4.56.2"))
    Full().check_model(model)
    with pytest.raises(UserError, match=r"accumulation=2 needs transformers 4\.57.* 4\.56\.2 .*batch_size"):
        Full(accumulation=2).check_model(model)
    monkeypatch.setattr("ecoflap.finetune.training.transformers", SimpleNamespace(__version__="4.57.1"))
    Full(accumulation=2).check_model(model)


def test_processes_agree_on_the_best_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may look for it before the first one has written it, or before it sees what was written."""
    original = Trainer._save_checkpoint

    def too_early(self: Trainer, *given: Any, **named: Any) -> None:
        original(self, *given, **named)
        if rank():
            self.state.best_model_checkpoint = None

    def work() -> str | None:
        found: list[str | None] = []
        patch.setattr(
            PrunedTrainer,
            "_load_best_model",
            lambda self: found.append(self.state.best_model_checkpoint),
        )
        model, masks = pruned("llama")
        schedule = Full(data="calibration", steps=2, every=1, held_out=2, batch_size=1, precision="float32")
        schedule.finetune(Job(model, masks, None, tiny.samples("llama"), lambda: model, 2, 0, tmp_path))
        return found[0] if found else None

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoint", too_early)
        first, second = together(2, work)
    assert first is not None
    assert second == first


def test_the_error_of_a_worker_is_the_one_without_workers(tmp_path: Path) -> None:
    model, masks = pruned("llama")
    drawn = tiny.samples("llama").samples

    def encode(number: int) -> Sample:
        if number == 3:
            raise UserError("picture 3 can't be read; take it out")
        return drawn[number]

    everything = CalibrationSet("pictures", OnDemand(encode, range(len(drawn))))
    job = Job(model, masks, lambda _: everything, None, lambda: model, 2, 0, tmp_path)
    with pytest.raises(UserError) as refused:
        Full(batch_size=2, workers=1, precision="float32").finetune(job)
    assert str(refused.value) == "picture 3 can't be read; take it out"
