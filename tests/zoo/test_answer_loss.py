"""Samples in one batch have the losses that each has alone, and models without answers are refused."""

from __future__ import annotations

import pytest

from ecoflap.data.calibration_set import stack
from ecoflap.errors import UserError
from tests.zoo.architectures import ARCHITECTURES


@pytest.mark.parametrize("name", ["molmo2", "hunyuan_vl", "minicpmv4_7", "git", "qwen2_5_vl"])
def test_samples_of_a_batch_do_not_see_each_other(name: str) -> None:
    architecture = ARCHITECTURES[name]
    if (reason := architecture.missing()) is not None:
        pytest.skip(reason)
    model, samples = architecture.prunable(), architecture.samples().samples[:2]
    alone = [model.loss(stack([sample])).item() for sample in samples]
    assert model.loss(stack(samples)).tolist() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("name", ["diffusion_gemma", "pi0", "pp_formulanet"])
def test_models_without_answers_are_refused(name: str) -> None:
    architecture = ARCHITECTURES[name]
    if (reason := architecture.missing()) is not None:
        pytest.skip(reason)
    with pytest.raises(UserError, match=rf"^model\.loss=answer .* {name} .*; set model\.loss[^\n]*$"):
        architecture.prunable().loss(stack(architecture.samples().samples[:1]))
