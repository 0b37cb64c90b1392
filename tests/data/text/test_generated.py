"""Rows that the dense model generates, against sampling token by token without a cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ecoflap.data.text.calibration import Text, TokenFile
from ecoflap.data.text.generated import PROMPT
from ecoflap.distributed.processes import rank
from ecoflap.errors import NumericalError, UserError
from ecoflap.finetune.training_set import read_everything
from ecoflap.models.core.prunable import PrunableModel
from tests import tiny
from tests.data.text.test_calibration import Letters
from tests.distributed.together import together

END = 2


@pytest.fixture
def model() -> PrunableModel:
    built = tiny.build("llama")
    module: Any = built.module
    with torch.no_grad():  # so that the end-of-text token would be drawn, and sampling options would show
        module.lm_head.weight.mul_(20)
    module.generation_config.eos_token_id = END
    module.generation_config.temperature = 0.1
    module.generation_config.top_k = 1
    module.generation_config.repetition_penalty = 3.0
    module.generation_config.no_repeat_ngram_size = 1
    module.generation_config.suppress_tokens = list(range(4, 20))
    return PrunableModel(
        "tiny", built.module, built.every_tower, built.towers, (), built.loss_function, Letters()
    )


@pytest.fixture
def rows(tmp_path: Path) -> TokenFile:
    save_file({"ids": torch.arange(3 * 16).view(3, 16) % 40}, tmp_path / "tokens.safetensors")
    return TokenFile(str(tmp_path / "tokens.safetensors"), "ids", samples=8, generated=5)


def token_by_token(model: PrunableModel, prompts: Tensor, length: int, seed: int) -> Tensor:
    """Rows [rows, length], a full forward pass per token."""
    module: Any = model.module
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(seed)
        while prompts.shape[1] < length:
            logits = module(input_ids=prompts, use_cache=False).logits[:, -1].float()
            logits[:, END] = -torch.inf
            prompts = torch.cat([prompts, torch.multinomial(logits.softmax(1), 1)], dim=1)
    return prompts


def ids(samples: Any) -> Tensor:
    return torch.stack([sample["input_ids"] for sample in samples])


def test_equal_to_sampling_token_by_token(model: PrunableModel, rows: TokenFile) -> None:
    found = ids(rows.load(model, seed=7).samples)
    drawn = found[:3]
    assert torch.equal(drawn, ids(replace(rows, samples=3, generated=0).load(model, 7).samples))
    prompts = drawn[[0, 1, 2, 0, 1]][:, : 16 // PROMPT]
    assert torch.equal(found[3:], token_by_token(model, prompts, 16, seed=7))
    assert found[3:].unique(dim=0).shape == (5, 16)
    assert END not in found[3:, 2:]


def test_the_seed_alone_decides(model: PrunableModel, rows: TokenFile) -> None:
    first = rows.load(model, seed=1)
    before = torch.random.get_rng_state()
    assert rows.load(model, seed=1).fingerprint() == first.fingerprint()
    assert rows.load(model, seed=2).fingerprint() != first.fingerprint()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_several_processes_have_the_rows_of_the_first(model: PrunableModel, rows: TokenFile) -> None:
    """Also where their devices sample differently, as here other seeds do."""
    first = rows.load(model, seed=0).fingerprint()
    assert together(2, lambda: rows.load(model, seed=rank()).fingerprint()) == [first, first]


def test_all_rows_of_the_file_and_those_beside_them(model: PrunableModel, rows: TokenFile) -> None:
    assert len(replace(rows, samples=None).load(model, 0)) == 3 + 5
    assert len(replace(rows, samples=6).load(model, 0)) == 1 + 5


def test_windows_of_a_text(model: PrunableModel, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abcdefghijklmnopqrstuvwxyz")
    text = Text(path=str(tmp_path / "text.txt"), samples=5, sequence_length=6, generated=2)
    found = ids(text.load(model, seed=0).samples)
    assert torch.equal(found[:3], ids(replace(text, samples=3, generated=0).load(model, 0).samples))
    assert torch.equal(found[3:, :1], found[:2, :1])


def test_training_reads_none(model: PrunableModel, rows: TokenFile) -> None:
    assert len(read_everything(rows, model, seed=0)) == 3


@pytest.mark.parametrize(
    ("samples", "generated", "message"),
    [
        (8, -1, r"calibration\.generated=-1 must be 0 or more"),
        (8, 8, r"calibration\.generated=8 is not below calibration\.samples=8"),
    ],
)
def test_wrong_numbers(samples: int, generated: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TokenFile("tokens.safetensors", "ids", samples=samples, generated=generated)
    with pytest.raises(UserError, match=message):
        Text(samples=samples, generated=generated)


def test_a_model_that_does_not_continue_texts(model: PrunableModel, rows: TokenFile) -> None:
    headless = replace(model, module=model.module.model)
    with pytest.raises(
        UserError, match=r"generated=5: tiny does not continue texts; use calibration\.generated=0"
    ):
        rows.check_model(headless)
    replace(rows, generated=0).check_model(headless)


def test_a_model_whose_logits_are_nan(model: PrunableModel, rows: TokenFile) -> None:
    module: Any = model.module
    with torch.no_grad():
        module.lm_head.weight[3] = torch.nan
    with pytest.raises(NumericalError, match="generates from logits that are not finite"):
        rows.load(model, seed=0)
