"""LAVIS' BLIP-2 and BLIP-NLVR, built from sizes alone: no downloads, and on the meta device no weights.

Parameters, names and computations are LAVIS' own, so its checkpoints fit. Only to be imported where LAVIS is;
see ``parts.require_lavis``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lavis.models import eva_vit, vit
from lavis.models.blip2_models import Qformer
from lavis.models.blip2_models.blip2 import LayerNorm
from lavis.models.blip2_models.blip2_t5 import Blip2T5
from lavis.models.blip2_models.modeling_t5 import T5Config, T5ForConditionalGeneration
from lavis.models.blip_models import nlvr_encoder
from lavis.models.blip_models.blip_nlvr import BlipNLVR
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import BertConfig, PretrainedConfig

from ecoflap.models.families.lavis.parts import write_checkpoint

Sizes = Mapping[str, Any]
Norm = partial(nn.LayerNorm, eps=1e-6)


class OpenAttention(eva_vit.Attention):
    """The same attention with ``qkv`` called as a module, so that a hook can capture its inputs.

    LAVIS passes its weight to a function.
    """

    def forward(self, x: Tensor, rel_pos_bias: Tensor | None = None) -> Tensor:
        """[batch, tokens, features] to the same."""
        projected = self.qkv(x)
        if self.q_bias is not None:
            projected = projected + torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        q, k, v = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        context = scaled_dot_product_attention(q, k, v, rel_pos_bias, scale=self.scale)
        return self.proj(context.transpose(1, 2).flatten(2))


def eva_tower(image_size: int, sizes: Sizes) -> Any:
    """BLIP-2's image tower, [batch, 3, height, width] to [batch, tokens, features]."""
    widths = {"num_heads": sizes["num_heads"], "qkv_bias": True}
    # Without blocks first: LAVIS' constructor reads numbers from a tensor for each, which the meta device
    # can't do.
    tower = eva_vit.VisionTransformer(
        img_size=image_size,
        patch_size=sizes["patch_size"],
        embed_dim=sizes["embed_dim"],
        depth=0,
        norm_layer=Norm,
        use_mean_pooling=False,
        **widths,
    )
    for _ in range(sizes["depth"]):
        block = eva_vit.Block(sizes["embed_dim"], mlp_ratio=sizes["mlp_ratio"], norm_layer=Norm, **widths)
        block.attn = OpenAttention(sizes["embed_dim"], **widths)
        tower.blocks.append(block)
    return tower


def blip_tower(image_size: int, sizes: Sizes) -> Any:
    """BLIP's image tower, [batch, 3, height, width] to [batch, tokens, features]."""
    tower = vit.VisionTransformerEncoder(
        img_size=image_size,
        patch_size=sizes["patch_size"],
        embed_dim=sizes["embed_dim"],
        depth=0,
        num_heads=sizes["num_heads"],
        norm_layer=Norm,
    )
    tower.blocks.extend(
        vit.Block(sizes["embed_dim"], sizes["num_heads"], qkv_bias=True, norm_layer=Norm)
        for _ in range(sizes["depth"])
    )
    return tower


class BareBlip2T5(Blip2T5):
    """LAVIS' ``Blip2T5``; its tokenizer is given to it afterwards."""

    def __init__(self, architecture: Sizes) -> None:
        """Args: architecture: image_size, queries, and the sizes of vision, qformer (over BERT's) and t5."""
        nn.Module.__init__(self)
        self.config = PretrainedConfig(**architecture)
        queries, vision_width = architecture["queries"], architecture["vision"]["embed_dim"]
        self.visual_encoder = eva_tower(architecture["image_size"], architecture["vision"])
        self.ln_vision = LayerNorm(vision_width)
        self.Qformer: Any = query_transformer(queries, vision_width, architecture["qformer"])
        query_width = self.Qformer.config.hidden_size
        self.query_tokens = nn.Parameter(torch.zeros(1, queries, query_width))
        config = T5Config(**architecture["t5"])
        config.dense_act_fn = "gelu"  # LAVIS' choice, whatever the checkpoint of the language model says
        self.t5_model = T5ForConditionalGeneration(config)
        self.t5_proj = nn.Linear(query_width, config.d_model)
        self.t5_tokenizer, self.prompt, self.max_txt_len, self._apply_lemmatizer = None, "", 32, False

    def save_pretrained(self, folder: Path) -> None:
        """Write a checkpoint in LAVIS' format."""
        write_checkpoint(self, folder)


def query_transformer(queries: int, vision_width: int, sizes: Sizes) -> Any:
    """The Q-Former without its text half, which BLIP-2's second stage does not use."""
    config = BertConfig(
        **sizes,
        encoder_width=vision_width,
        add_cross_attention=True,
        cross_attention_freq=2,
        query_length=queries,
    )
    transformer = Qformer.BertLMHeadModel(config)
    transformer.cls = transformer.bert.embeddings.word_embeddings = (
        transformer.bert.embeddings.position_embeddings
    ) = None
    for layer in transformer.bert.encoder.layer:
        layer.output = layer.intermediate = None
    return transformer


class BareNlvr(BlipNLVR):
    """LAVIS' ``BlipNLVR``; its tokenizer is given to it afterwards."""

    def __init__(self, architecture: Sizes) -> None:
        """Args: architecture: image_size, and the sizes of vision and text (over BERT's)."""
        nn.Module.__init__(self)
        self.config = PretrainedConfig(**architecture)
        self.visual_encoder = blip_tower(architecture["image_size"], architecture["vision"])
        config = BertConfig(
            **architecture["text"],
            encoder_width=architecture["vision"]["embed_dim"],
            add_cross_attention=True,
        )
        self.text_encoder = nlvr_encoder.BertModel(config, add_pooling_layer=False)
        width = config.hidden_size
        self.cls_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
        self.tokenizer = None

    def save_pretrained(self, folder: Path) -> None:
        """Write a checkpoint in LAVIS' format."""
        write_checkpoint(self, folder)
