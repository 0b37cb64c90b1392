"""Model inputs of any kind: sound, embeddings, long texts, and tensors that go with the tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf

import ecoflap
from tests.api.conftest import llama


def whisper() -> Any:
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    sizes = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_attention_heads": 2}
    return hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(
            vocab_size=20, num_mel_bins=16, max_source_positions=30, **special(), **layers, **sizes
        )
    )


def special() -> dict[str, int]:
    return {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


def wav2vec2() -> Any:
    convolutions = {"conv_dim": (8,), "conv_kernel": (3,), "conv_stride": (2,)}
    sizes = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "intermediate_size": 32}
    layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**convolutions, **sizes, **layers))


def spectrogram_transformer() -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return hf.ASTForAudioClassification(hf.ASTConfig(max_length=32, num_mel_bins=16, **sizes))


@pytest.mark.parametrize(
    ("make", "name", "shape"),
    [
        (whisper, "input_features", (16, 60)),
        (wav2vec2, "input_values", (100,)),
        (spectrogram_transformer, "input_values", (32, 16)),
        (lambda: llama().module, "inputs_embeds", (7, 16)),
    ],
)
def test_one_sample_of_other_inputs_is_one(
    make: Callable[[], Any], name: str, shape: tuple[int, ...]
) -> None:
    model = ecoflap.load(make(), loss=lambda *_: torch.zeros(1))
    rows = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    wanted = ecoflap.calibrate(model, [{name: rows}])
    assert [list(sample[name].shape) for sample in wanted.samples] == [list(shape)] * 4
    for rows_of in (list(rows), [row[None] for row in rows]):
        found = ecoflap.calibrate(model, [{name: row} for row in rows_of])
        assert found.fingerprint() == wanted.fingerprint()
