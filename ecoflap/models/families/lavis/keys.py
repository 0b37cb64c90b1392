"""Names of BLIP-2's weights in salesforce-lavis and in transformers, and files in LAVIS' format.

Both hold the same tensors but for one bias: in the image tower's attention LAVIS keeps those of queries and
values (keys have none), transformers one for all three, zero for the keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ecoflap.errors import UserError
from ecoflap.models.loading.state_dict import read_tensors

State = dict[str, Tensor]


class Part(NamedTuple):
    """A part of the model: its path in both, and what is called differently inside it."""

    lavis: str
    transformers: str
    inside: tuple[tuple[str, str], ...] = ()

    def reversed(self) -> Part:
        """The other way round."""
        return Part(self.transformers, self.lavis, tuple((other, one) for one, other in self.inside))


PARTS = (
    Part("query_tokens", "query_tokens"),
    Part("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    Part("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    Part("visual_encoder.patch_embed.proj", "vision_model.embeddings.patch_embedding"),
    Part(
        "visual_encoder.blocks",
        "vision_model.encoder.layers",
        (
            ("norm1", "layer_norm1"),
            ("norm2", "layer_norm2"),
            ("attn.qkv", "self_attn.qkv"),
            ("attn.proj", "self_attn.projection"),
        ),
    ),
    Part("ln_vision", "vision_model.post_layernorm"),
    Part("Qformer.bert.embeddings.LayerNorm", "qformer.layernorm"),
    Part(
        "Qformer.bert.encoder.layer", "qformer.encoder.layer", (("attention.self.", "attention.attention."),)
    ),
    Part("t5_proj", "language_projection"),
    Part("t5_model", "language_model"),
)
POSITIONS = "Qformer.bert.embeddings.position_ids"  # 0, 1, 2, ...: no weights, and not in transformers


def read_lavis_checkpoint(file: str | Path, option: str = "model.checkpoint") -> State:
    """Read the tensors of a checkpoint in LAVIS' format, with or without ``{"model": ...}`` around them.

    Nothing but tensors is unpickled.

    Args:
        file: a .pth or .safetensors file.
        option: the option that names it, for the message.

    Raises:
        UserError: if there is no such file, or it is no file of tensors.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(
            f"{option}={file}: there is no such file; give a .pth or .safetensors file in LAVIS' format"
        )
    content = read_tensors(path, option)
    state = content.get("model", content) if isinstance(content, dict) else content
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(tensor, Tensor) for tensor in state.values())
    ):
        raise UserError(
            f'{option}={file} holds no state dict; LAVIS writes {{"model": {{name: tensor}}}}, or the tensors'
            " alone"
        )
    return dict(state)


def to_transformers(state: Mapping[str, Tensor]) -> State:
    """A state dict of LAVIS' BLIP-2, complete or partial, with transformers' names.

    Raises:
        UserError: if BLIP-2 with T5 has no such name, or one of a pair of biases is missing.
    """
    renamed: State = {}
    for name, tensor in state.items():
        stem, _, last = name.rpartition(".")
        if last == "q_bias":
            if f"{stem}.v_bias" not in state:
                raise UserError(f"the checkpoint has {name} and no {stem}.v_bias; it is damaged")
            bias = torch.cat([tensor, torch.zeros_like(tensor), state[f"{stem}.v_bias"]])
            renamed[_rename(f"{stem}.qkv.bias", PARTS)] = bias
        elif last == "v_bias" and f"{stem}.q_bias" not in state:
            raise UserError(f"the checkpoint has {name} and no {stem}.q_bias; it is damaged")
        elif last != "v_bias" and name != POSITIONS:
            renamed[_rename(name, PARTS)] = tensor
    return renamed


def to_lavis(state: Mapping[str, Tensor]) -> State:
    """A state dict of transformers' BLIP-2, complete or partial, with LAVIS' names.

    Raises:
        UserError: if BLIP-2 with T5 has no such name, or keys have a bias, which LAVIS can't hold.
    """
    backwards, renamed = [part.reversed() for part in PARTS], dict[str, Tensor]()
    for name, tensor in state.items():
        if not name.endswith("self_attn.qkv.bias"):
            renamed[_rename(name, backwards)] = tensor
            continue
        queries, keys, values = tensor.chunk(3)
        if keys.any():
            raise UserError(
                f"{name} holds a bias of the keys, which LAVIS' image tower doesn't have; save in"
                " transformers' format instead"
            )
        stem = _rename(name, backwards).removesuffix("qkv.bias")
        renamed |= {f"{stem}q_bias": queries.clone(), f"{stem}v_bias": values.clone()}
    return renamed


def _rename(name: str, parts: Iterable[Part]) -> str:
    for old, new, inside in parts:
        if name == old or name.startswith(f"{old}."):
            rest = name[len(old) :]
            for one, other in inside:
                rest = rest.replace(one, other)
            return new + rest
    raise UserError(f"{name} is not a weight of a BLIP-2 with T5; the state dict is of another model")
