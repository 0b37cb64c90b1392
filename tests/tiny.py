"""Tiny random models of every family and calibration data for them, each built in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from ecoflap.data.batch import Batch, Sample
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.prunable import Loss, PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.blip import retrieval as blip_retrieval
from ecoflap.models.families.blip import text as blip
from ecoflap.models.families.blip2 import generation as blip2
from ecoflap.models.families.blip2 import matching as blip2_itm
from ecoflap.models.families.clip.clip import DualInterface, dual_loss
from ecoflap.models.families.clip.open_clip import OpenClipInterface
from ecoflap.models.families.language import causal_lm, seq2seq
from ecoflap.models.families.vision import image_classifier
from ecoflap.models.families.vlm import vlm
from ecoflap.models.loading.loader import prunable

torch.set_num_threads(
    1
)  # at this size threads wait for each other, and on a busy machine for a hundred times the work

VOCABULARY = 40
IMAGE_TOKEN = 39
QUERIES = 3
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {
    "vocab_size": VOCABULARY,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    **SIZE,
}
OPT = {
    "vocab_size": VOCABULARY,
    "ffn_dim": 24,
    "word_embed_proj_dim": 16,
    "max_position_embeddings": 32,
    "dropout": 0.0,
    **SIZE,
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_inner": 24,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
GATED_T5 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, **T5}
VISION = {"intermediate_size": 24, "image_size": 8, "patch_size": 4, **SIZE}
SPREAD = {"initializer_range": 0.05}  # some image towers of transformers start at 1e-10, where nothing flows
TEXT = {"vocab_size": VOCABULARY, "intermediate_size": 24, "max_position_embeddings": 32, **SIZE}
BLIP_TEXT = {"encoder_hidden_size": 16, "bos_token_id": 1, "sep_token_id": 2, "pad_token_id": 0, **TEXT}
QFORMER = {
    "vocab_size": VOCABULARY,
    "intermediate_size": 24,
    "encoder_hidden_size": 16,
    "cross_attention_frequency": 2,
    **SIZE,
}

Build = Callable[[], nn.Module]
Choice = TypeVar("Choice")
LANGUAGE: dict[str, Build] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(num_key_value_heads=1, **LLAMA)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(
        hf.Qwen2Config(num_key_value_heads=1, tie_word_embeddings=True, **LLAMA)
    ),
    "mistral": lambda: hf.MistralForCausalLM(
        hf.MistralConfig(num_key_value_heads=2, sliding_window=3, **LLAMA)
    ),
    "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(**OPT)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
}
SEQ2SEQ: dict[str, Build] = {
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**GATED_T5)),
    "bart": lambda: hf.BartForConditionalGeneration(bart_config()),
}
BLIP2: dict[str, Build] = {
    "blip2_t5": lambda: blip2_model(hf.T5Config(**GATED_T5)),
    "blip2_t5_relu": lambda: blip2_model(hf.T5Config(feed_forward_proj="relu", **T5)),
    "blip2_opt": lambda: blip2_model(hf.OPTConfig(**OPT)),
}
DUAL: dict[str, Build] = {
    "clip": lambda: hf.CLIPModel(
        hf.CLIPConfig(text_config={"eos_token_id": 38, **TEXT}, vision_config=VISION, projection_dim=8)
    ),
}
BLIP: dict[str, tuple[Build, Loss]] = {
    "blip_vqa": (lambda: hf.BlipForQuestionAnswering(blip_config()), blip.vqa_loss),
    "blip_caption": (lambda: hf.BlipForConditionalGeneration(blip_config()), blip.caption_loss),
    "blip_retrieval": (
        lambda: hf.BlipForImageTextRetrieval(blip_config()),
        blip_retrieval.match_and_contrastive_loss,
    ),
    "blip2_itm": (
        lambda: hf.Blip2ForImageTextRetrieval(blip2_itm_config()),
        blip2_itm.match_and_contrastive_loss,
    ),
}
CLASSIFIER: dict[str, Build] = {
    "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(num_labels=5, **VISION))
}
VLM: dict[str, Build] = {
    "llava": lambda: hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(
            vision_config=hf.CLIPVisionConfig(**VISION),
            text_config=hf.LlamaConfig(num_key_value_heads=1, **LLAMA),
            image_token_index=IMAGE_TOKEN,
            vision_feature_layer=-2,
        )
    ),
    "smolvlm": lambda: hf.SmolVLMForConditionalGeneration(
        hf.SmolVLMConfig(
            image_token_id=IMAGE_TOKEN,
            vision_config=VISION,
            text_config={"model_type": "llama", **LLAMA},
            scale_factor=2,
            pad_token_id=0,
        )
    ),
    "paligemma": lambda: hf.PaliGemmaForConditionalGeneration(
        hf.PaliGemmaConfig(
            image_token_index=IMAGE_TOKEN,
            projection_dim=16,
            hidden_size=16,
            vision_config={
                "model_type": "siglip_vision_model",
                "projection_dim": 16,
                "vision_use_head": False,
                **VISION,
            },
            text_config={"model_type": "gemma", "num_key_value_heads": 1, "head_dim": 8, **LLAMA},
        )
    ),
    "internvl": lambda: hf.InternVLForConditionalGeneration(
        hf.InternVLConfig(
            image_token_id=IMAGE_TOKEN,
            vision_config={**VISION, "image_size": [8, 8], "patch_size": [4, 4]},
            text_config={"model_type": "qwen2", "num_key_value_heads": 1, **LLAMA},
            downsample_ratio=0.5,
        )
    ),
    "qwen2_5_vl": lambda: hf.Qwen2_5_VLForConditionalGeneration(qwen_config()),
    "instructblip": lambda: hf.InstructBlipForConditionalGeneration(instructblip_config()),
}
PACKED: dict[str, Build] = {
    "torchvision_vit": lambda: torchvision_vit(),
    "torch_encoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 2, enable_nested_tensor=False
    ),
    "torch_encoder_tokens_first": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 24), 2, enable_nested_tensor=False
    ),
    "open_clip": lambda: open_clip_module(
        {"layers": 2, "width": 16, "head_width": 8, "patch_size": 4, "image_size": 8}
    ),
    "open_clip_eva": lambda: open_clip_module(
        {"timm_model_name": "tiny_eva", "timm_pool": "token", "timm_proj": None, "image_size": 8}
    ),
}
OPEN_CLIP = ["open_clip", "open_clip_eva"]
EVERY = [*LANGUAGE, *SEQ2SEQ, *BLIP2, *DUAL, *BLIP, *CLASSIFIER, *VLM, *PACKED]
# LLaVA reads the output of the last block but one.
WITHOUT_EFFECT = ["model.vision_tower.encoder.layers.1", "vision_tower.vision_model.encoder.layers.1"]


def bart_config() -> Any:
    size = {
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 24))
    }
    tokens = {
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
    }
    return hf.BartConfig(vocab_size=VOCABULARY, d_model=16, max_position_embeddings=32, **tokens, **size)


def blip_config() -> Any:
    vision = {**VISION, **SPREAD}
    return hf.BlipConfig(
        text_config={"projection_dim": 8, **BLIP_TEXT},
        vision_config=vision,
        projection_dim=8,
        image_text_hidden_size=8,
    )


def blip2_itm_config() -> Any:
    qformer = {"use_qformer_text_input": True, **QFORMER}
    text = hf.OPTConfig(**OPT).to_dict()
    queries = {"num_query_tokens": QUERIES, "image_text_hidden_size": 8}
    return hf.Blip2Config(
        vision_config={**VISION, **SPREAD}, qformer_config=qformer, text_config=text, **queries
    )


def blip2_model(text: Any) -> nn.Module:
    """A BLIP-2 around a language model. transformers starts its image tower at 1e-10 and its queries at zero,
    where nothing flows.
    """
    config = hf.Blip2Config(
        vision_config={**VISION, **SPREAD},
        qformer_config=QFORMER,
        text_config=text.to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=IMAGE_TOKEN,
    )
    return hf.Blip2ForConditionalGeneration(config)


def instructblip_config() -> Any:
    text = hf.LlamaConfig(num_key_value_heads=2, **LLAMA).to_dict()
    queries = {"num_query_tokens": QUERIES, "image_token_index": IMAGE_TOKEN}
    return hf.InstructBlipConfig(
        vision_config={**VISION, **SPREAD}, qformer_config=QFORMER, text_config=text, **queries
    )


def qwen_config(text: dict[str, Any] | None = None, **tokens: int) -> Any:
    rope = {"mrope_section": [1, 1, 2]}
    settings = {
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, **rope},
        "rope_scaling": {"type": "mrope", "rope_type": "default", **rope},
        **LLAMA,
        **(text or {}),
    }
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 16,
    }
    vision |= {"spatial_merge_size": 2, "fullatt_block_indexes": [1], "window_size": 8, "in_channels": 3}
    tokens = {
        "image_token_id": IMAGE_TOKEN,
        "video_token_id": 38,
        "vision_start_token_id": 37,
        "vision_end_token_id": 36,
    } | tokens
    return hf.Qwen2_5_VLConfig(text_config=settings, vision_config=vision, **tokens)


def torchvision_vit() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=5
    )


def open_clip_module(vision: dict[str, Any]) -> nn.Module:
    """A CLIP of open_clip: its own towers, whose attentions are PyTorch's, or a vision tower of timm with
    fused qkv.
    """
    import open_clip

    if "timm_model_name" in vision:
        register_tiny_eva()
    text = {"context_length": 12, "vocab_size": VOCABULARY, "width": 16, "heads": 2, "layers": 2}
    return open_clip.CustomTextCLIP(8, vision, text)


def register_tiny_eva() -> None:
    from timm.models import Eva, register_model

    def tiny_eva(pretrained: bool = False, **options: Any) -> nn.Module:
        head = {key: value for key, value in options.items() if key in ("num_classes", "global_pool")}
        return Eva(img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_ratio=1.5, **head)

    tiny_eva.__module__ = "timm.models.eva"
    register_model(tiny_eva)


def _exists(family: str) -> bool:
    """Whether the installed transformers has the family; the oldest release lacks most vision-language
    models.
    """
    try:
        with torch.random.fork_rng():
            _module(family)
    except (ImportError, AttributeError, TypeError, ValueError, KeyError):
        return False
    return True


def _module(family: str) -> nn.Module:
    builders = (
        LANGUAGE
        | SEQ2SEQ
        | BLIP2
        | DUAL
        | CLASSIFIER
        | VLM
        | PACKED
        | {name: builder for name, (builder, _) in BLIP.items()}
    )
    return builders[family]()


FAMILIES = [family for family in EVERY if _exists(family)]
# A plain chain; transposed weights; several towers; padded texts; slices of packed weights, and tokens before
# samples.
FEW = [
    family
    for family in ("llama", "gpt2", "blip2_t5", "clip", "torch_encoder_tokens_first")
    if family in FAMILIES
]
# One of each kind, which every run tests where the others are variants (tests/conftest.py): a plain chain,
# transposed weights, an encoder-decoder, two towers, cross-attention, a Q-Former, pictures among the tokens,
# tokens before samples.
REPRESENTATIVES = (
    "llama",
    "gpt2",
    "t5",
    "clip",
    "blip_vqa",
    "blip2_opt",
    "llava",
    "torch_encoder_tokens_first",
)
# In these, a sample's loss depends on the others of its batch; in the second list, so does what its towers
# read (negatives).
COMPARING = [family for family in FAMILIES if family in (*DUAL, *OPEN_CLIP, "blip_retrieval", "blip2_itm")]
MATCHING = [family for family in FAMILIES if family in ("blip_retrieval", "blip2_itm")]
# Lengths for which no text has padding: where samples meet inside a tower, and where a tower fills texts up
# by itself.
UNPADDED = {**dict.fromkeys(MATCHING, (7, 7, 7)), **dict.fromkeys(OPEN_CLIP, (12, 12, 12))}
# Inside their blocks the first dimension is not samples, so several probes can't share a pass.
UNSTACKABLE = ["torch_encoder_tokens_first"]


def pairs(choices: Collection[Choice], everywhere: Collection[Choice]) -> list[tuple[str, Choice]]:
    """(family, choice) for a test whose families and choices don't interact: some choices with every family,
    all others with a few.
    """
    return [(family, one) for one in choices for family in (FAMILIES if one in everywhere else FEW)]


def build(
    family: str, towers: list[str] | None = None, skip_layers: tuple[str, ...] = (), seed: int = 0
) -> PrunableModel:
    """The family's model, the same for the same seed. A test that asks for one that the installed
    transformers lacks is skipped.
    """
    if family not in FAMILIES:
        pytest.skip(f"transformers {hf.__version__} has no {family}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = _module(family)
        with torch.no_grad():
            for (
                parameter
            ) in module.parameters():  # away from 0 and 1, where biases, norms, queries and positions start
                parameter.add_(0.1 * torch.randn_like(parameter))
    interface: Any = None
    if family in DUAL:
        interface = DualInterface(None, None, 0, False)  # type: ignore[arg-type]
    elif family in OPEN_CLIP:
        interface = OpenClipInterface(None, None, False)  # type: ignore[arg-type]
    paths = {"vision": "encoder.layers"} if family == "torchvision_vit" else None
    return prunable(
        family,
        module,
        None,
        loss_of(family, interface),
        Selection(towers, list(skip_layers)),
        paths,
        interface,
    )


def first_output_loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """Of models that are no more than a stack of blocks: how far they are from a target, [batch]."""
    inputs = batch["inputs"]
    tokens_first = isinstance(module, nn.TransformerEncoder) and not module.layers[0].self_attn.batch_first
    output = module(inputs.transpose(0, 1)).transpose(0, 1) if tokens_first else module(inputs)
    return (output.flatten(1) - batch["target"][:, None]).square().mean(dim=1)


def loss_of(family: str, interface: Any) -> Loss:
    if family in LANGUAGE:
        return causal_lm.language_loss
    if family in SEQ2SEQ:
        return seq2seq.continuation_loss
    if family in BLIP2:
        return blip2.answer_loss
    if family in (*DUAL, *OPEN_CLIP):
        return dual_loss("contrastive", interface)
    if family in PACKED:
        return first_output_loss
    if family in CLASSIFIER:
        return image_classifier.classification_loss
    return vlm.answer_loss if family in VLM else BLIP[family][1]


def samples(family: str, lengths: tuple[int, ...] = (5, 7, 5, 7, 5), seed: int = 1) -> CalibrationSet:
    """One sample per length, of all the inputs that the family needs. Families that compare samples get texts
    of one length, some padded.
    """
    generator = torch.Generator().manual_seed(seed)
    made = [_sample(family, length, generator) for length in lengths]
    return CalibrationSet(
        "tiny",
        tuple(_padded(sample, max(lengths)) for sample in made) if family in COMPARING else tuple(made),
    )


def one_by_one(family: str, calibration: CalibrationSet, batch_size: int) -> list[Batch]:
    """What the slow reference runs on: one sample at a time without any padding, or the batches themselves
    where samples meet inside a tower.
    """
    if family in MATCHING:
        return list(calibration.batches(batch_size))
    return [
        {name: tensor[None] for name, tensor in _trimmed(sample).items()} for sample in calibration.samples
    ]


def _trimmed(sample: Sample) -> Sample:
    real = (
        sample["attention_mask"].bool()
        if "attention_mask" in sample and sample["attention_mask"].dim() == 1
        else None
    )
    return {
        name: tensor[real] if real is not None and tensor.shape == real.shape else tensor
        for name, tensor in sample.items()
    }


def _padded(sample: Sample, length: int) -> Sample:
    missing = length - len(sample["input_ids"])
    fill = {name: nn.functional.pad(sample[name], (0, missing)) for name in ("input_ids", "attention_mask")}
    return {**sample, **fill}


def _sample(family: str, length: int, generator: torch.Generator) -> Sample:
    make = SimpleNamespace(
        tokens=lambda count: _tokens(count, generator),
        pixels=lambda: torch.randn(3, 8, 8, generator=generator),
        length=length,
    )
    if family in LANGUAGE:
        return {"input_ids": make.tokens(length)}
    if family in SEQ2SEQ:
        return {**_attended(make.tokens(length)), "labels": make.tokens(length - 2)}
    if family in CLASSIFIER:
        return {"pixel_values": make.pixels(), "labels": torch.randint(0, 5, (), generator=generator)}
    if family in PACKED and family not in OPEN_CLIP:
        inputs = (
            make.pixels() if family == "torchvision_vit" else torch.randn(length, 16, generator=generator)
        )
        return {"inputs": inputs, "target": torch.randn((), generator=generator)}
    if family in (*DUAL, *OPEN_CLIP):
        return {
            "pixel_values": make.pixels(),
            **_attended(torch.cat([make.tokens(length - 1), torch.tensor([38])])),
        }
    if family in BLIP2:
        return _blip2_sample(family, make)
    return _vlm_sample(family, make) if family in VLM else _blip_sample(family, make)


def _attended(input_ids: Tensor) -> Sample:
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def _blip_sample(family: str, make: Any) -> Sample:
    sample = {"pixel_values": make.pixels(), **_attended(make.tokens(make.length))}
    if family == "blip_caption":
        sample["labels"] = torch.cat([torch.full((2,), -100), sample["input_ids"][2:]])
    return sample | ({"labels": make.tokens(make.length - 2)} if family == "blip_vqa" else {})


def _blip2_sample(family: str, make: Any) -> Sample:
    input_ids = torch.cat([torch.full((QUERIES,), IMAGE_TOKEN), make.tokens(make.length)])
    labels = (
        torch.where(input_ids == IMAGE_TOKEN, -100, input_ids)
        if family == "blip2_opt"
        else make.tokens(make.length - 2)
    )
    return {"pixel_values": make.pixels(), **_attended(input_ids), "labels": labels}


def _vlm_sample(family: str, make: Any) -> Sample:
    """As a processor gives it: with a leading dimension of one, or of patches or tiles."""
    count = {
        "llava": 4,
        "smolvlm": 1,
        "paligemma": 4,
        "internvl": 1,
        "qwen2_5_vl": 4,
        "instructblip": QUERIES,
    }[family]
    input_ids = torch.cat([torch.full((count,), IMAGE_TOKEN), make.tokens(make.length)])[None]
    sample = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": torch.where(input_ids == IMAGE_TOKEN, -100, input_ids),
    }
    if family == "qwen2_5_vl":  # 4 x 4 patches of 2 frames of 2 x 2 pixels, merged 2 x 2
        patches = (
            torch.cat([make.pixels().flatten(1)[:, :24].reshape(3, 24) for _ in range(6)])
            .reshape(-1)[: 16 * 24]
            .reshape(16, 24)
        )
        return {
            **sample,
            "pixel_values": patches,
            "image_grid_thw": torch.tensor([[1, 4, 4]]),
            "mm_token_type_ids": (input_ids == IMAGE_TOKEN).long(),
        }
    pixels = make.pixels()[None]
    if family == "paligemma":
        sample["token_type_ids"] = (torch.arange(input_ids.shape[1]) >= count + 2).long()[None]
    if family == "instructblip":
        question = make.tokens(4)[None]
        sample |= {"qformer_input_ids": question, "qformer_attention_mask": torch.ones_like(question)}
    return {**sample, "pixel_values": pixels[None] if family == "smolvlm" else pixels}


def _tokens(length: int, generator: torch.Generator) -> Tensor:
    return torch.randint(3, 36, (length,), generator=generator)
