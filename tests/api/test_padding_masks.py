"""What a mask of padding cuts, which masks stay as they are, and which are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import ecoflap
from ecoflap.errors import UserError
from ecoflap.models.core.losses import IGNORED
from tests import tiny
from tests.api.conftest import refused
from tests.api.masked_inputs import (
    bert,
    captioner,
    heard_loss,
    noise,
    qwen3,
    spoken,
    t5,
    wav2vec2,
    whisper,
    written_loss,
)


class Own(nn.Module):
    """Blocks whose masks may be of any meaning."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(block, 2).layers

    def forward(self, states: Tensor | None = None, **others: Tensor) -> Tensor:
        states = others["inputs_embeds"] if states is None else states
        for layer in self.layers:
            states = layer(states)
        return states


CAUSAL = torch.ones(5, 5).tril()


@pytest.mark.parametrize(
    "mask",
    [
        CAUSAL.bool(),
        torch.where(CAUSAL == 1, 0.0, -1e9),
        torch.zeros(5),
        torch.tensor([0.0, 0, 0, -1e9, -1e9]),
    ],
)
@pytest.mark.parametrize("name", ["states", "inputs_embeds"])
def test_masks_of_one_s_own_model_that_mark_no_padding_are_as_given(name: str, mask: Tensor) -> None:
    loss = lambda module, batch, copies=1: module(**batch).square().mean(dim=(1, 2))
    given = {name: noise(1, 5, 8), "attention_mask": mask[None]}
    (sample,) = ecoflap.calibrate(ecoflap.load(Own(), loss=loss), [given]).samples
    assert torch.equal(sample[name], given[name][0])
    assert torch.equal(sample["attention_mask"], mask)


def test_a_mask_that_is_added_is_not_taken_for_padding_of_tokens() -> None:
    given = {"inputs_embeds": noise(1, 5, 16), "labels": torch.ones(1, 5).long()}
    added = torch.tensor([[0.0, 0.0, 0.0, -1e9, -1e9]])
    refused(ecoflap.load(qwen3()), [{**given, "attention_mask": added}], "of ones and zeros in the shape [5]")


def test_padding_of_a_wave_whose_frames_have_labels_is_refused() -> None:
    module = hf.Wav2Vec2ForAudioFrameClassification(wav2vec2().config)
    wave, mask = noise(1, 100), torch.tensor([1, 0]).repeat_interleave(50)[None]
    given = {"input_values": wave, "labels": torch.zeros(1, 3, 2)}
    model = ecoflap.load(module, loss=heard_loss)
    assert len(ecoflap.calibrate(model, [given])) == 1
    refused(model, [{**given, "attention_mask": mask}], "labels [3, 2]", "one by one, without padding")


def test_a_mask_of_frames_stays_where_all_are_read() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([1, 0]).repeat_interleave(15)
    rows = [{**row, "attention_mask": mask} for row in spoken("input_features", *[(8, 30)] * 3)]
    found = ecoflap.calibrate(ecoflap.load(whisper(), loss=written_loss), rows).samples
    for sample, row in zip(found, rows, strict=True):
        assert sample.keys() == row.keys()
        assert all(torch.equal(sample[name], row[name]) for name in row)


def test_what_goes_with_the_tokens_is_cut_with_their_padding() -> None:
    model = ecoflap.load(bert(), loss=written_loss)
    torch.manual_seed(0)
    places, mask = torch.arange(6)[None], torch.tensor([[0, 0, 1, 1, 1, 0]])
    beside = {"position_ids": places, "token_type_ids": places % 2, "labels": places}
    (sample,) = ecoflap.calibrate(
        model, [{"inputs_embeds": noise(1, 6, 16), "attention_mask": mask, **beside}]
    ).samples
    assert {name: list(tensor.shape) for name, tensor in sample.items()} == {
        "inputs_embeds": [3, 16],
        **{name: [3] for name in ("attention_mask", *beside)},
    }
    assert sample["position_ids"].tolist() == sample["labels"].tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    ("labels", "beside", "kept"),
    [
        ([5, 6, IGNORED, IGNORED], {"decoder_input_ids": [1, 5, 6, 0]}, 2),
        ([IGNORED, 6, 7, 8], {"decoder_attention_mask": [0, 1, 1, 1]}, 3),
    ],
)
def test_all_that_a_decoder_reads_beside_a_picture_is_cut(
    labels: list[int], beside: dict[str, list[int]], kept: int
) -> None:
    text = {name: torch.tensor([row]) for name, row in {"labels": labels, **beside}.items()}
    model = ecoflap.load(captioner())
    (sample,) = ecoflap.calibrate(model, [{"pixel_values": noise(1, 3, 8, 8), **text}]).samples
    assert {name: list(sample[name].shape) for name in text} == {name: [1, kept] for name in text}


def test_without_labels_the_mask_tells_what_a_decoder_reads() -> None:
    model = ecoflap.load(t5(), loss=heard_loss)
    text = {"input_ids": torch.randint(3, 20, (1, 5)), "decoder_input_ids": torch.tensor([[0, 7, 8, 9]])}
    mask = torch.tensor([[1, 1, 1, 0]])
    (sample,) = ecoflap.calibrate(model, [{**text, "decoder_attention_mask": mask}]).samples
    assert sample["decoder_input_ids"].tolist() == [0, 7, 8]
    assert sample["decoder_attention_mask"].tolist() == [1, 1, 1]
    refused(model, [{**text, "decoder_attention_mask": 0 * mask}], "its decoder_attention_mask is all zeros")
    gap = torch.tensor([[1, 0, 1, 1]])
    refused(
        model, [{**text, "decoder_attention_mask": gap}], "1 zeros between the ones of its decoder_attent"
    )
    added = torch.tensor([[0.0, 0.0, 0.0, -1e9]])
    (sample,) = ecoflap.calibrate(model, [{**text, "decoder_attention_mask": added}]).samples
    assert torch.equal(sample["decoder_attention_mask"], added[0])


def instructblip() -> Any:
    text = hf.T5Config(**tiny.GATED_T5).to_dict()
    queries = {"num_query_tokens": tiny.QUERIES, "image_token_index": tiny.IMAGE_TOKEN}
    towers = {"vision_config": {**tiny.VISION, **tiny.SPREAD}, "qformer_config": tiny.QFORMER}
    return hf.InstructBlipForConditionalGeneration(
        hf.InstructBlipConfig(**towers, text_config=text, **queries)
    )


def test_the_texts_of_an_instructblip_are_cut_apart() -> None:
    """A T5 writes answers of another length than the question, which the Q-Former reads in its own tokens."""
    model = ecoflap.load(instructblip())
    prefix, ones = torch.full((1, tiny.QUERIES), tiny.IMAGE_TOKEN), torch.ones(1, tiny.QUERIES).long()
    question, real = torch.tensor([[5, 6, 7, 0]]), torch.tensor([[1, 1, 1, 0]])
    given = {
        "pixel_values": noise(1, 3, 8, 8),
        "input_ids": torch.cat([prefix, question], dim=1),
        "attention_mask": torch.cat([ones, real], dim=1),
        "qformer_input_ids": torch.tensor([[8, 9, 0]]),
        "qformer_attention_mask": torch.tensor([[1, 1, 0]]),
    }
    labels = torch.tensor([[4, 5, 6, 2, IGNORED]])
    (sample,) = ecoflap.calibrate(model, [{**given, "labels": labels}]).samples
    assert sample["labels"].tolist() == [[4, 5, 6, 2]]
    assert sample["input_ids"][:, tiny.QUERIES :].tolist() == [[5, 6, 7]]
    assert sample["qformer_input_ids"].tolist() == [[8, 9]]
    assert sample["qformer_attention_mask"].tolist() == [[1, 1]]
    for mask, said in (([[1, 0, 1]], "1 zeros between the ones of its qformer"), ([[0, 0, 0]], "all zeros")):
        refused(model, [{**given, "labels": labels, "qformer_attention_mask": torch.tensor(mask)}], said)
    with pytest.raises(UserError, match="the model is scored on 'labels'"):
        model.loss({name: tensor[None] for name, tensor in given.items()})


def test_the_class_of_a_text_is_no_text() -> None:
    config = hf.BartConfig(**{**tiny.bart_config().to_dict(), "num_labels": 3})
    model = ecoflap.load(hf.BartForSequenceClassification(config), loss=lambda *_: torch.zeros(1))
    given = {"input_ids": torch.randint(3, 20, (2, 5)), "labels": torch.tensor([1, 2])}
    assert [sample["labels"].tolist() for sample in ecoflap.calibrate(model, [given]).samples] == [1, 2]


def test_padding_that_cannot_be_removed_is_refused() -> None:
    waves, halves = ecoflap.load(wav2vec2(), loss=heard_loss), torch.tensor([1, 0]).repeat_interleave(50)
    wave = {"input_values": noise(1, 100)}
    by_frame = {**wave, "attention_mask": halves[None, ::10]}
    one = ("one by one, without padding", "attention_mask [10] with zeros", "input_values [100]")
    refused(waves, [by_frame], *one)
    refused(waves, [{**wave, "attention_mask": 0 * halves[None]}], "nothing but padding")
    gap = halves.roll(25)[None]
    refused(waves, [{**wave, "attention_mask": 1 - gap}], "50 zeros between its ones", "without the gap")
    pictures = ecoflap.load(tiny.CLASSIFIER["vit"](), loss=heard_loss)
    picture = {"pixel_values": noise(2, 3, 8, 8), "pixel_mask": torch.ones(2, 8, 8)}
    assert len(ecoflap.calibrate(pictures, [picture])) == 2
    picture["pixel_mask"][1, 5:] = 0
    refused(pictures, [picture], "one by one, without padding", "pixel_mask [8, 8]")


def test_embeddings_are_checked_as_tokens_are() -> None:
    model, given = (
        ecoflap.load(qwen3()),
        {"inputs_embeds": noise(1, 5, 16), "labels": torch.ones(1, 5).long()},
    )
    packed = torch.ones(1, 5, 5).tril()
    refused(model, [{**given, "attention_mask": packed}], "inputs_embeds [5, 16]", "the shape [5]", "packed")
    gap = torch.tensor([[1, 1, 0, 1, 1]])
    refused(model, [{**given, "attention_mask": gap}], "1 zeros between its ones", "inputs_embeds")
    refused(model, [{**given, "labels": torch.ones(1, 4).long()}], "labels [4]", "a label per token")
    refused(model, [{**given, "labels": torch.full((1, 5), IGNORED)}], "no target")
    written = torch.full((1, 4), IGNORED)
    refused(ecoflap.load(captioner()), [{"pixel_values": noise(1, 3, 8, 8), "labels": written}], "no target")
