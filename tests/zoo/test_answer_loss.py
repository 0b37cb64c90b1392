"""Samples in one batch have the losses that each has alone, also in half precision; some have no answers."""

from __future__ import annotations

import pytest
import torch

from ecoflap.data.calibration_set import stack
from ecoflap.errors import UserError
from tests.zoo.architectures import ARCHITECTURES, VISION_LANGUAGE

WITHOUT_ANSWERS = ["diffusion_gemma", "pi0", "pi05", "pp_formulanet"]
KEPT_IN_FP32 = ["inkling2", "inkling2_loop"]
"""Loading in half precision leaves parts of them in fp32, and they don't run without."""
IN_EVERY_RUN = ["fuyu", "llama4"]


def vision_language() -> list[object]:
    """The models that run in half precision as a whole; most with the zoo only."""
    names = [one.name for one in VISION_LANGUAGE if one.name not in WITHOUT_ANSWERS + KEPT_IN_FP32]
    return [name if name in IN_EVERY_RUN else pytest.param(name, marks=pytest.mark.zoo) for name in names]


@pytest.mark.parametrize("name", ["molmo2", "hunyuan_vl", "minicpmv4_7", "git", "qwen2_5_vl"])
def test_samples_of_a_batch_do_not_see_each_other(name: str) -> None:
    architecture = ARCHITECTURES[name]
    if (reason := architecture.missing()) is not None:
        pytest.skip(reason)
    model, samples = architecture.prunable(), architecture.samples().samples[:2]
    alone = [model.loss(stack([sample])).item() for sample in samples]
    assert model.loss(stack(samples)).tolist() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("name", vision_language())
def test_a_model_in_half_precision_reads_pixels_in_fp32(name: str) -> None:
    """Processors return them so, and not every model converts them."""
    architecture = ARCHITECTURES[name]
    if (reason := architecture.missing()) is not None:
        pytest.skip(reason)
    model, batch = architecture.prunable(), stack(architecture.samples().samples[:1])
    model.module.to(torch.bfloat16)
    halves = {key: one.bfloat16() if one.is_floating_point() else one for key, one in batch.items()}
    loss = model.loss(batch)
    assert loss.isfinite().all()
    assert torch.equal(loss, model.loss(halves))


@pytest.mark.parametrize("name", WITHOUT_ANSWERS)
def test_models_without_answers_are_refused(name: str) -> None:
    architecture = ARCHITECTURES[name]
    if (reason := architecture.missing()) is not None:
        pytest.skip(reason)
    with pytest.raises(UserError, match=rf"^model\.loss=answer .* {name} .*; set model\.loss[^\n]*$"):
        architecture.prunable().loss(stack(architecture.samples().samples[:1]))
