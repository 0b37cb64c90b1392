"""Models whose inputs can have padding that a mask marks, samples for them, and losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from ecoflap.models.core.losses import token_loss
from tests import tiny

LENGTHS, TARGETS, CODEBOOKS = (4, 12, 5), (7, 3, 5), 4
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SIDES = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
WIDTHS = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
Rows = list[dict[str, Tensor]]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape)


def targets() -> list[Tensor]:
    return [torch.randint(3, 20, (count,)) for count in TARGETS]


def special() -> dict[str, int]:
    return {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


def whisper() -> Any:
    config = hf.WhisperConfig(
        vocab_size=20, num_mel_bins=8, max_source_positions=15, **special(), **SIDES, **WIDTHS
    )
    return hf.WhisperForConditionalGeneration(config)


def speech_to_text() -> Any:
    config = {
        "input_feat_per_channel": 8,
        "conv_channels": 8,
        "num_conv_layers": 1,
        "max_source_positions": 40,
    }
    return hf.Speech2TextForConditionalGeneration(
        hf.Speech2TextConfig(vocab_size=20, conv_kernel_sizes=(5,), **config, **special(), **SIDES, **WIDTHS)
    )


def qwen3() -> Any:
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**{**tiny.LLAMA, "head_dim": 8, "num_key_value_heads": 1}))


def t5() -> Any:
    return hf.T5ForConditionalGeneration(hf.T5Config(**tiny.GATED_T5))


def bert() -> Any:
    return hf.BertForTokenClassification(hf.BertConfig(num_labels=20, **tiny.TEXT))


def captioner() -> Any:
    decoder = {"is_decoder": True, "add_cross_attention": True, "bos_token_id": 1, "eos_token_id": 2}
    encoder, decoder = hf.ViTConfig(**tiny.VISION), hf.BertConfig(**tiny.TEXT, **decoder)
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return hf.VisionEncoderDecoderModel(config)


def wav2vec2() -> Any:
    kernels = {"conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (5, 4)}
    sizes = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer"}
    return hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(vocab_size=20, **kernels, **sizes, **SIZE))


def pix2struct() -> Any:
    text = {"vocab_size": 20, "hidden_size": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    vision = {"patch_embed_hidden_size": 12, "d_ff": 24, "d_kv": 8, "seq_len": 12, **SIZE}
    del vision["intermediate_size"]
    config = hf.Pix2StructConfig(text_config={**text, "decoder_start_token_id": 0}, vision_config=vision)
    return hf.Pix2StructForConditionalGeneration(config)


def siglip2() -> Any:
    vision = {**SIZE, "num_patches": 16, "patch_size": 2, "num_channels": 3}
    return hf.Siglip2ForImageClassification(hf.Siglip2Config(vision_config=vision))


def musicgen() -> Any:
    sizes = {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    codes = {"vocab_size": 20, "num_codebooks": CODEBOOKS, "max_position_embeddings": 32}
    tokens = {"pad_token_id": 0, "bos_token_id": 0, "decoder_start_token_id": 0}
    decoder = hf.MusicgenDecoderConfig(**sizes, **codes, **tokens).to_dict()
    sound = {"num_filters": 4, "hidden_size": 16, "codebook_size": 16, "codebook_dim": 16}
    encodec = hf.EncodecConfig(**sound, upsampling_ratios=[2, 2], target_bandwidths=[1.5], sampling_rate=100)
    text = hf.T5Config(**tiny.GATED_T5).to_dict()
    config = hf.MusicgenConfig(text_encoder=text, audio_encoder=encodec.to_dict(), decoder=decoder)
    config.decoder.decoder_start_token_id = 0  # transformers 5 does not read it
    return hf.MusicgenForConditionalGeneration(config)


def composed() -> Rows:
    """Texts, and codes of their sounds."""
    codes = [torch.randint(3, 16, (count, CODEBOOKS)) for count in TARGETS]
    return [{"input_ids": torch.randint(3, 20, (5,)), "labels": label} for label in codes]


def shaped() -> Rows:
    """Patches of pictures of unequal shapes, whose mask is cut with them."""
    shapes = [(2, 2), (3, 4), (1, 5)]
    return [
        {
            "pixel_values": noise(rows * cols, 12),
            "pixel_attention_mask": torch.ones(rows * cols).long(),
            "spatial_shapes": torch.tensor([rows, cols]),
        }
        for rows, cols in shapes
    ]


def patches() -> Rows:
    """Flattened ones, which begin with their row and column; as Pix2Struct's processor returns them."""
    made = [torch.cat([torch.arange(2 * n).view(n, 2) % 5, noise(n, 12)], dim=1) for n in LENGTHS]
    pairs = zip(made, targets(), strict=True)
    return [{"flattened_patches": of[None], "labels": label[None]} for of, label in pairs]


def spoken(name: str, *shapes: tuple[int, ...]) -> Rows:
    return [{name: noise(*shape), "labels": label} for shape, label in zip(shapes, targets(), strict=True)]


def embedded(same: bool) -> Rows:
    lengths = LENGTHS if same else TARGETS
    labels = [torch.randint(3, 20, (length,)) for length in lengths]
    pairs = zip(LENGTHS, labels, strict=True)
    return [{"inputs_embeds": noise(length, 16), "labels": label} for length, label in pairs]


def written_loss(module: nn.Module, batch: Any, copies: int = 1) -> Tensor:
    return token_loss(module(**batch).logits, batch["labels"])


def heard_loss(module: nn.Module, batch: Any, copies: int = 1) -> Tensor:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    return module(**inputs).logits.square().mean(dim=(1, 2))


def seen_loss(module: nn.Module, batch: Any, copies: int = 1) -> Tensor:
    return module(**batch).logits.square().mean(dim=1)


def sound_loss(module: nn.Module, batch: Any, copies: int = 1) -> Tensor:
    labels = batch["labels"]
    logits = module(**batch).logits.unflatten(0, labels.shape[::2]).transpose(1, 2)
    return token_loss(logits.flatten(1, 2), labels.flatten(1))


WAVES = [(100,), (400,), (160,)]
FRAMES = [(24, 8), (40, 8), (12, 8)]
KINDS: dict[str, tuple[Callable[[], Any], Callable[[], Rows], str | None, Any]] = {
    # the model, its samples, the input that is padded and masked, and a loss where it has none of its own
    "whisper": (whisper, lambda: spoken("input_features", *[(8, 30)] * 3), None, written_loss),
    "speech_to_text": (
        speech_to_text,
        lambda: spoken("input_features", *FRAMES),
        "input_features",
        written_loss,
    ),
    "qwen3": (qwen3, lambda: embedded(True), "inputs_embeds", None),
    "t5": (t5, lambda: embedded(False), "inputs_embeds", None),
    "bert": (bert, lambda: embedded(True), "inputs_embeds", written_loss),
    "captioner": (captioner, lambda: spoken("pixel_values", *[(3, 8, 8)] * 3), None, None),
    "musicgen": (musicgen, composed, None, sound_loss),
    "pix2struct": (pix2struct, patches, "flattened_patches", None),
    "wav2vec2": (wav2vec2, lambda: spoken("input_values", *WAVES), "input_values", heard_loss),
}
