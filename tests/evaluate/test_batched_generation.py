"""What a model writes after a text doesn't depend on the other texts of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ecoflap.data.text.generated import PROMPT, with_generated
from ecoflap.data.text.options import TextOptions
from ecoflap.models.core.batched_generation import Inputs, depends_on_batch, generate_texts
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language.causal_lm import CausalLM
from tests.zoo.architectures import ARCHITECTURES
from tests.zoo.small import VOCABULARY

DEPENDS = ("rwkv", "recurrent_gemma", "BartForCausalLM", "trocr", "bart")
DOES_NOT = ("llama", "gpt2", "mamba2", "qwen3_next", "mixtral", "t5")
LENGTHS = (4, 9, 1, 4)
PAD = 1


def module(name: str) -> Any:
    if (reason := ARCHITECTURES[name].missing()) is not None:
        pytest.skip(reason)
    return ARCHITECTURES[name].module()


def padded(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of random texts, padded on the left, [rows, tokens]."""
    generator = torch.Generator().manual_seed(0)
    width = max(lengths)
    ids = torch.randint(3, VOCABULARY, (len(lengths), width), generator=generator)
    mask = (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).long()
    return ids.masked_fill(mask == 0, PAD), mask


def written(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    tokens: Tensor = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=4,
        do_sample=False,
        use_cache=True,
        pad_token_id=PAD,
    )
    return tokens if model.config.is_encoder_decoder else tokens[:, ids.shape[1] :]


def depends(model: Any, ids: Tensor, mask: Tensor) -> bool:
    def alone(row: int) -> Inputs:
        seen = mask[row].bool() if mask[row].any() else torch.arange(mask.shape[1]) == mask.shape[1] - 1
        return {"input_ids": ids[row, seen][None], "attention_mask": mask[row, seen][None]}

    return depends_on_batch(model, {"input_ids": ids, "attention_mask": mask}, alone)


def answers(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    def generate(inputs: Inputs) -> Tensor:
        return written(model, inputs["input_ids"], inputs["attention_mask"])

    return generate_texts(model, generate, ids, mask, PAD)


@torch.no_grad()
@pytest.mark.parametrize("name", [*DEPENDS, *DOES_NOT])
def test_as_if_each_text_were_alone(name: str) -> None:
    model = module(name)
    ids, mask = padded(LENGTHS)
    found = answers(model, ids, mask)
    for row, length in enumerate(LENGTHS):
        alone = written(model, ids[row : row + 1, -length:], mask[row : row + 1, -length:])[0]
        assert found[row, : len(alone)].equal(alone)
        assert (found[row, len(alone) :] == PAD).all()
    assert depends(model, ids, mask) == (name in DEPENDS)


@torch.no_grad()
@pytest.mark.parametrize("name", DEPENDS[:3])
def test_the_plain_batch_differs(name: str) -> None:
    model = module(name)
    ids, mask = padded(LENGTHS[:2])
    alone = written(model, ids[:1, -4:], mask[:1, -4:])
    assert not written(model, ids, mask)[:1].equal(alone)


@torch.no_grad()
def test_an_empty_text_and_nan() -> None:
    model = module("rwkv")
    ids, mask = padded((0, 3))
    found = answers(model, ids, mask)
    assert found[1].equal(written(model, ids[1:], mask[1:])[0])
    for parameter in model.parameters():
        parameter.fill_(float("nan"))
    assert not depends(model, ids, mask)  # generation itself refuses them


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "mixtral", "rwkv"])
def test_in_half_precision(name: str) -> None:
    model = module(name).bfloat16()
    assert depends(model, *padded(LENGTHS)) == (name in DEPENDS)


@torch.no_grad()
def test_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = module("rwkv")
    for _ in range(2):
        answers(model, *padded(LENGTHS))
    assert [record.getMessage() for record in caplog.records if "batch" in record.getMessage()] == [
        "RwkvForCausalLM: answers depend on the padding of a batch; texts are answered one at a time"
    ]


@torch.no_grad()
def test_rows_that_a_model_mixes() -> None:
    """RWKV's cache, in transformers 5: the first row of two equal ones gets another answer."""
    model = module("rwkv")
    ids, mask = padded((4, 4))
    found = answers(model, ids, mask)
    for row in range(2):
        assert found[row].equal(written(model, ids[row : row + 1], mask[row : row + 1])[0])


@torch.no_grad()
@pytest.mark.parametrize("name", ["rwkv", "llama"])
def test_calibration_rows_that_a_model_samples(name: str) -> None:
    """RWKV's are those of one row after another; without that, its cache mixes the rows."""
    model = CausalLM("anything").from_module(module(name), None, Selection())
    drawn = torch.randint(3, VOCABULARY, (3, 16), generator=torch.Generator().manual_seed(0))
    found = with_generated(TextOptions(samples=6, generated=3), model, list(drawn), seed=7)[3:]
    torch.manual_seed(7)
    begun = drawn[:, : 16 // PROMPT]
    for rows in begun.split(1 if name in DEPENDS else 3):
        while rows.shape[1] < 16:
            logits = model.module(input_ids=rows, use_cache=False).logits[:, -1].float()
            if (end := model.module.config.eos_token_id) is not None:
                logits[:, end] = -torch.inf
            rows = torch.cat([rows, torch.multinomial(logits.softmax(1), 1)], dim=1)
        for row in rows:
            assert found.pop(0).equal(row)
    assert not found
