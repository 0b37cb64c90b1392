"""One folder per model, as its authors' is made up, with a model of a few thousand weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from tests.vlms.words import IM, chat, chatml, tokenizer

WIDTH = 32
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
PATCHES = {
    "depth": 2,
    "num_heads": 4,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "in_channels": 3,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "out_hidden_size": WIDTH,
    "num_position_embeddings": 16,
}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
HYBRID = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0},
}
PICTURE = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
SQUARE = {"height": 16, "width": 16}


def qwen_tokens(words: Any) -> dict[str, int]:
    """The ids of the tokens around and in the place of pictures."""
    names = ("vision_start", "vision_end", "image", "video")
    return {
        f"{name}_token_id": words.convert_tokens_to_ids(token)
        for name, token in zip(names, PICTURE, strict=True)
    }


def qwen_processor(words: Any, template: str) -> Any:
    """The processor of Qwen3-VL and Qwen3.5, for pictures of 16 x 16 patches at most."""
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    limits = {"shortest_edge": 64, "longest_edge": 1024}
    return hf.Qwen3VLProcessor(
        hf.Qwen2VLImageProcessor(**sizes, size=limits),
        words,
        hf.Qwen3VLVideoProcessor(**sizes, size=limits),
        chat_template=template,
    )


def qwen(
    kind: str, text: dict[str, Any], vision: dict[str, Any], asks: str = ""
) -> Callable[[], tuple[Any, Any]]:
    """A model of the line from Qwen3-VL to Qwen3.5.

    Args:
        kind: how transformers' classes are called.
        text: settings of the language model.
        vision: settings of the image tower.
        asks: what the chat template writes behind the opening of the answer.
    """

    def made() -> tuple[Any, Any]:
        special = ["<|endoftext|>", *IM, *PICTURE, "<think>", "</think>"]
        words = tokenizer(special, eos_token="<|im_end|>", pad_token="<|endoftext|>")
        config = getattr(hf, f"{kind}Config")(
            text_config={**TEXT, "vocab_size": len(words), **text},
            vision_config={**PATCHES, **vision},
            **qwen_tokens(words),
        )
        template = chatml("<|vision_start|><|image_pad|><|vision_end|>", asks)
        return getattr(hf, f"{kind}ForConditionalGeneration")(config), qwen_processor(words, template)

    return made


def internvl3_5() -> tuple[Any, Any]:
    """An InternVL of a vision transformer and a Qwen3, with its tiles."""
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    words = tokenizer([*IM, *named.values()], named, eos_token="<|im_end|>")
    config = hf.InternVLConfig(
        vision_config={**VISION, "image_size": [16, 16], "patch_size": [4, 4]},
        text_config={"model_type": "qwen3", **TEXT, "vocab_size": len(words)},
        image_token_id=words.context_image_token_id,
        downsample_ratio=0.5,
        image_seq_length=4,
    )
    images = hf.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = hf.InternVLProcessor(
        images,
        words,
        hf.InternVLVideoProcessor(size=SQUARE),
        image_seq_length=4,
        chat_template=chatml("<IMG_CONTEXT>\n"),
    )
    return hf.InternVLForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    """A Gemma 3 of a SigLIP and blocks that attend to a window or to everything."""
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    words = tokenizer(
        ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", *named.values()],
        named,
        bos_token="<bos>",
        eos_token="<eos>",
    )
    words._tokenizer.post_processor = beginning("<bos>", words.bos_token_id)
    config = hf.Gemma3Config(
        vision_config={"model_type": "siglip_vision_model", **VISION, "vision_use_head": False},
        text_config={
            "model_type": "gemma3_text",
            **TEXT,
            "vocab_size": len(words),
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 16,
        },
        image_token_index=words.image_token_id,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
        mm_tokens_per_image=4,
    )
    role = "{{ 'model' if message['role'] == 'assistant' else message['role'] }}"
    template = chat(
        f"<start_of_turn>{role}\n",
        "<start_of_image>",
        "<end_of_turn>\n",
        "<start_of_turn>model\n",
        "{{ bos_token }}",
    )
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessor(size=SQUARE), words, image_seq_length=4, chat_template=template
    )
    return hf.Gemma3ForConditionalGeneration(config), processor


def beginning(token: str, index: int) -> Any:
    """What makes a tokenizer begin each text with a token."""
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, index)]
    )


def llava_onevision() -> tuple[Any, Any]:
    """A LLaVA-OneVision of a SigLIP and a Qwen2, with its crops."""
    words = tokenizer(
        [*IM, "<image>", "<video>"],
        {"image_token": "<image>", "video_token": "<video>"},
        eos_token="<|im_end|>",
    )
    pinpoints = [[16, 16], [16, 32], [32, 16]]
    config = hf.LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", **VISION, "vision_use_head": False},
        text_config={"model_type": "qwen2", **TEXT, "vocab_size": len(words)},
        image_token_index=words.image_token_id,
        video_token_index=words.video_token_id,
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=pinpoints),
        words,
        hf.LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=chatml("<image>\n"),
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def smolvlm2() -> tuple[Any, Any]:
    """A SmolVLM2 of a SigLIP and a LLaMA, with its splits."""
    named = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    rows = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    words = tokenizer(
        ["<|im_start|>", "<video>", *named.values(), *rows], named, eos_token="<end_of_utterance>"
    )
    config = hf.SmolVLMConfig(
        vision_config=VISION,
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(words)},
        image_token_id=words.image_token_id,
        scale_factor=2,
        pad_token_id=0,
    )
    images = hf.SmolVLMImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    video = hf.SmolVLMVideoProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    template = chat(
        "{{ message['role'] | capitalize }}: ",
        "<image>",
        "<end_of_utterance>\n",
        "Assistant:",
        "<|im_start|>",
    )
    processor = hf.SmolVLMProcessor(images, words, video, image_seq_len=4, chat_template=template)
    return hf.SmolVLMForConditionalGeneration(config), processor


def minicpm_v() -> tuple[Any, Any]:
    """A MiniCPM-V 4.6 of a SigLIP and a Qwen3.5, with its slices."""
    named = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    words = tokenizer([*IM, *named.values()], named, eos_token="<|im_end|>")
    config = hf.MiniCPMV4_6Config(
        vision_config=VISION,
        text_config={"model_type": "qwen3_5_text", **TEXT, "vocab_size": len(words), **HYBRID},
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
        insert_layer_id=0,
        image_size=16,
    )
    sizes = {"patch_size": 4, "scale_resolution": 32, "max_slice_nums": 4}
    processor = hf.MiniCPMV4_6Processor(
        hf.MiniCPMV4_6ImageProcessor(**sizes),
        hf.MiniCPMV4_6VideoProcessor(**sizes),
        words,
        chat_template=chatml("<|image_pad|>"),
    )
    return hf.MiniCPMV4_6ForConditionalGeneration(config), processor


THINKING = (
    "<think>\n{% if enable_thinking is defined and enable_thinking is false %}\n</think>\n\n{% endif %}"
)


@dataclass(frozen=True)
class Tiny:
    """A tiny model of a choice of ``model``.

    Attributes:
        make: returns module and processor.
        kind: what the names of its classes in transformers begin with.
        package: that its processor needs beside transformers.
    """

    make: Callable[[], tuple[Any, Any]]
    kind: str
    package: str | None = None

    def build(self) -> tuple[Any, Any]:
        """The module and the processor; skips a test of a model that the installed packages lack."""
        kind = f"{self.kind}ForConditionalGeneration"
        if not hasattr(hf, kind):
            pytest.skip(f"transformers {hf.__version__} has no {kind}")
        if hf.__version__ < "5":
            pytest.skip(f"transformers {hf.__version__} builds the parts of processors by other arguments")
        if self.package is not None:
            pytest.importorskip(self.package)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.make()

    def save(self, folder: Path) -> None:
        """Write the folder."""
        module, processor = self.build()
        module.save_pretrained(folder)
        processor.save_pretrained(folder)


DEEPSTACK = {"depth": 3, "deepstack_visual_indexes": [0, 1]}
MODELS = {
    "qwen3_vl": Tiny(
        qwen("Qwen3VL", {"num_hidden_layers": 3, "rope_parameters": ROPE}, DEEPSTACK), "Qwen3VL"
    ),
    "qwen3_vl_moe": Tiny(
        qwen("Qwen3VLMoe", {"num_hidden_layers": 3, "rope_parameters": ROPE, **EXPERTS}, DEEPSTACK),
        "Qwen3VLMoe",
    ),
    "qwen3_5_vl": Tiny(qwen("Qwen3_5", HYBRID, {"deepstack_visual_indexes": []}, THINKING), "Qwen3_5"),
    "qwen3_5_vl_moe": Tiny(
        qwen(
            "Qwen3_5Moe",
            {**HYBRID, **EXPERTS, "shared_expert_intermediate_size": 24},
            {"deepstack_visual_indexes": []},
            THINKING,
        ),
        "Qwen3_5Moe",
    ),
    "internvl3_5": Tiny(internvl3_5, "InternVL"),
    "gemma3": Tiny(gemma3, "Gemma3"),
    "llava_onevision": Tiny(llava_onevision, "LlavaOnevision"),
    "smolvlm2": Tiny(smolvlm2, "SmolVLM", "num2words"),
    "minicpm_v": Tiny(minicpm_v, "MiniCPMV4_6"),
}
