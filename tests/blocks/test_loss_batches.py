"""Batches for losses hold as many samples as were asked for, and padding changes no sample's loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ecoflap.blocks.loss_batches import batching, loss_batches, padded
from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet, stack
from ecoflap.models.core.losses import token_loss
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.loading.loader import prunable
from tests import tiny

LENGTHS = (5, 7, 6, 9, 5)
TEXTS = [
    family
    for family in tiny.FAMILIES
    if family not in (*tiny.COMPARING, *tiny.CLASSIFIER, *tiny.PACKED, "blip_vqa")
]


def losses_alone(model: PrunableModel, calibration: CalibrationSet) -> Tensor:
    return torch.cat([model.loss(stack([sample])) for sample in calibration.samples])


@torch.no_grad()
@pytest.mark.parametrize("family", TEXTS)
def test_the_loss_of_a_padded_sample_is_its_loss_alone(family: str) -> None:
    model, calibration = tiny.build(family), tiny.samples(family, LENGTHS)
    batches = loss_batches(model, calibration, 3)
    assert [len(batch["pixel_values" if "pixel_values" in batch else "input_ids"]) for batch in batches] == [
        3,
        2,
    ]
    found = torch.cat([model.loss(batch) for batch in batches])
    torch.testing.assert_close(found, losses_alone(model, calibration), rtol=1e-5, atol=1e-6)
    assert found.std() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("family", TEXTS)
def test_the_order_of_the_samples_changes_no_loss(family: str) -> None:
    model, calibration = tiny.build(family), tiny.samples(family, LENGTHS)
    backwards = CalibrationSet("backwards", calibration.samples[::-1])
    one, other = (
        torch.cat([model.loss(batch) for batch in loss_batches(model, data, 2)])
        for data in (calibration, backwards)
    )
    torch.testing.assert_close(one, other.flip(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", [family for family in tiny.FAMILIES if family not in TEXTS])
def test_samples_of_one_length_are_as_they_were(family: str) -> None:
    calibration = tiny.samples(family, (7, 7, 7))
    for one, other in zip(
        loss_batches(tiny.build(family), calibration, 2), calibration.batches(2), strict=True
    ):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", ["torch_encoder", "torch_encoder_tokens_first"])
def test_what_is_no_text_is_grouped(family: str) -> None:
    batches = loss_batches(tiny.build(family), tiny.samples(family, LENGTHS), 8)
    assert sorted(len(batch["inputs"]) for batch in batches) == [1, 1, 1, 2]


@torch.no_grad()
def test_blip_is_asked_questions_of_one_length() -> None:
    """Its decoder in transformers sees the padding of a question, in some releases through a mask that only
    weakens it.
    """
    model, calibration = tiny.build("blip_vqa"), tiny.samples("blip_vqa", LENGTHS)
    padding = padded(calibration.samples)
    heeded = torch.allclose(model.loss(padding), losses_alone(model, calibration), rtol=1e-3)
    assert [len(batch["labels"]) for batch in loss_batches(model, calibration, 8)] == (
        [5] if heeded else [2, 1, 1, 1]
    )


def counts_padding(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """A custom loss that ignores the mask of padding."""
    return module(input_ids=batch["input_ids"]).logits.float().square().mean(dim=(1, 2))


def test_a_loss_that_counts_padding_gets_batches_of_one_length(caplog: pytest.LogCaptureFixture) -> None:
    model = PrunableModel(**{**vars(tiny.build("llama")), "loss_function": counts_padding})
    calibration = tiny.samples("llama", LENGTHS)
    with caplog.at_level("INFO"):
        batches = loss_batches(model, calibration, 8)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(2, 5), (1, 6), (1, 7), (1, 9)]
    assert "batches of texts of one length" in caplog.text


def counts_some_padding(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """A custom loss that padding changes by less than half the digits of bfloat16."""
    ids = batch["input_ids"]
    logits = module(input_ids=ids, attention_mask=batch.get("attention_mask")).logits.float()
    return cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(len(ids), -1).mean(1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_hides_no_change_by_padding(dtype: torch.dtype) -> None:
    model, calibration = tiny.build("llama"), tiny.samples("llama", (12, 14, 16, 16))
    model.module.to(dtype)
    before = model.fingerprint()
    counting = replace(model, loss_function=counts_some_padding)
    assert [len(batch["input_ids"]) for batch in loss_batches(counting, calibration, 4)] == [1, 1, 2]
    assert [len(batch["input_ids"]) for batch in loss_batches(model, calibration, 4)] == [4]
    assert model.fingerprint() == before


@pytest.mark.parametrize("family", ["llama", "opt", "t5", "blip2_t5", "llava"])
def test_models_in_half_precision_share_batches(family: str) -> None:
    model, calibration = tiny.build(family), tiny.samples(family, LENGTHS)
    model.module.to(torch.bfloat16)
    assert len(loss_batches(model, calibration, 5)) == 1


def test_a_loss_of_one_dtype_is_tried_in_it() -> None:
    """A loss that runs in bfloat16 only fails in fp32."""
    model = tiny.build("llama")
    model.module.to(torch.bfloat16)

    def loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
        assert module.lm_head.weight.dtype == torch.bfloat16
        return model.loss_function(module, batch, copies)

    def counting(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
        return loss(module, batch) + batch["input_ids"].shape[1]

    calibration = tiny.samples("llama", LENGTHS)
    assert len(loss_batches(replace(model, loss_function=loss), calibration, 5)) == 1
    assert len(loss_batches(replace(model, loss_function=counting), calibration, 5)) == 4


def test_some_of_the_samples_can_be_mixed_where_all_of_them_are_not() -> None:
    """All make two batches of one length each, and the second and the third one of two lengths."""
    model = tiny.build("llama")
    rows = [torch.arange(1, length + 1) for length in (5, 5, 7, 7)]
    every = CalibrationSet("rows", [{"input_ids": row} for row in rows])
    some = replace(every, samples=every.samples[1:3])
    [batch] = batching(model, every, 2)(some)
    assert batch["input_ids"].shape == (2, 7)
    other = replace(model, loss_function=counts_padding)
    assert [len(one["input_ids"]) for one in batching(other, every, 2)(some)] == [1, 1]
    assert [len(one["input_ids"]) for one in batching(model, every, 1)(some)] == [1, 1]


def test_captions_of_many_lengths_make_whole_batches() -> None:
    lengths = tuple(torch.randint(3, 14, (32,), generator=torch.Generator().manual_seed(0)).tolist())
    batches = loss_batches(tiny.build("blip2_t5"), tiny.samples("blip2_t5", lengths), 8)
    assert [len(batch["labels"]) for batch in batches] == [8, 8, 8, 8]


def test_padding_by_hand() -> None:
    samples = [
        {
            "input_ids": torch.tensor([[4, 5]]),
            "labels": torch.tensor([[6]]),
            "pixel_values": torch.ones(1, 3),
        },
        {
            "input_ids": torch.tensor([[7, 8, 9]]),
            "labels": torch.tensor([[6, 7]]),
            "pixel_values": torch.ones(1, 3),
        },
    ]
    batch = padded(samples)
    assert batch["input_ids"].tolist() == [[[4, 5, 0]], [[7, 8, 9]]]
    assert batch["attention_mask"].tolist() == [[[1, 1, 0]], [[1, 1, 1]]]
    assert batch["labels"].tolist() == [[[6, -100]], [[6, 7]]]
    assert batch["pixel_values"].shape == (2, 1, 3)
    assert padded(samples[:1]).keys() == samples[0].keys()


@torch.no_grad()
def test_transcripts_of_different_lengths_share_a_batch() -> None:
    """A decoder's texts beside sound, which has no mask."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {
        f"{part}_{name}": size
        for part in ("encoder", "decoder")
        for name, size in {"layers": 1, "attention_heads": 2, "ffn_dim": 16}.items()
    }
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=20,
        num_mel_bins=4,
        d_model=8,
        max_source_positions=6,
        max_target_positions=12,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        **sizes,
    )
    module = WhisperForConditionalGeneration(config).eval()

    def loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
        inputs = {name: batch[name] for name in ("input_features", "decoder_input_ids")}
        return token_loss(module(**inputs, use_cache=False).logits, batch["labels"])

    model = prunable("whisper", module, None, loss, Selection())
    texts = [torch.randint(3, 20, (length,)) for length in LENGTHS]
    samples = [
        {"input_features": torch.randn(4, 12), "decoder_input_ids": text, "labels": text.roll(-1)}
        for text in texts
    ]
    calibration = CalibrationSet("speech", tuple(samples))
    batches = loss_batches(model, calibration, 3)
    assert [len(batch["labels"]) for batch in batches] == [3, 2]
    found = torch.cat([model.loss(batch) for batch in batches])
    torch.testing.assert_close(found, losses_alone(model, calibration), rtol=1e-5, atol=1e-6)
