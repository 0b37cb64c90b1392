"""Tiny models that read a picture in crops, tiles or slices."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.vlms.sizes import HYBRID, SQUARE, TEXT, VISION
from tests.vlms.words import IM, chat, chatml, tokenizer


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
