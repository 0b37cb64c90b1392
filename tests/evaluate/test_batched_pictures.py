"""What a model answers about a picture doesn't depend on the other questions and pictures of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from ecoflap.data.example import Example, Generation
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.vlm.interface import VlmInterface
from ecoflap.models.families.vlm.vlm import VisionLanguage
from tests.vlms.folders import MODELS, Tiny
from tests.vlms.sizes import SQUARE, VISION
from tests.vlms.words import tokenizer

QUESTIONS = {
    "what shape is there ?": (16, 16),
    "is there a red circle in the image and what color is it ?": (64, 24),
    "what ?": (24, 64),
    "what color ?": (48, 48),
}
GENERATION = Generation(max_new_tokens=6)


def kosmos2() -> tuple[Any, Any]:
    """A Kosmos-2, whose decoder counts padding in the positions of what it writes."""
    words = tokenizer(["<unk>"], unk_token="<unk>")
    processor = hf.Kosmos2Processor(hf.CLIPImageProcessor(size=SQUARE, crop_size=SQUARE), words, 4)
    config = hf.Kosmos2Config(
        text_config={
            "vocab_size": len(words),
            "max_position_embeddings": 512,
            "embed_dim": 32,
            "layers": 2,
            "ffn_dim": 48,
            "attention_heads": 4,
            "dropout": 0.0,
            "init_std": 0.4,
            "pad_token_id": words.pad_token_id,
        },
        vision_config=VISION,
        latent_query_num=processor.num_image_tokens,
    )
    return hf.Kosmos2ForConditionalGeneration(config), processor


def examples(folder: Path) -> list[Example]:
    found = []
    for seed, (text, (width, height)) in enumerate(QUESTIONS.items()):
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
        found.append(Example(text=text, target="", image=str(folder / f"{seed}.png")))
    return found


def built(name: str) -> tuple[Any, VlmInterface]:
    """The model, and the interface to its module."""
    module, processor = (Tiny(kosmos2, "Kosmos2") if name == "kosmos2" else MODELS[name]).build()
    prompt = "{}" if name == "kosmos2" else None
    chat = {"enable_thinking": False} if "enable_thinking" in (processor.chat_template or "") else {}
    made = VisionLanguage("anything", prompt=prompt, chat=chat)
    model: Any = made.from_module(module.eval(), processor, Selection())
    return model, model.interface


@pytest.mark.parametrize("name", ["kosmos2", *MODELS])
@pytest.mark.every_run("kosmos2", "smolvlm2")
def test_as_if_each_question_were_alone(name: str, tmp_path: Path) -> None:
    model, interface = built(name)
    rows = examples(tmp_path)
    alone = [interface.answer(model, [row], GENERATION)[0] for row in rows]
    assert interface.answer(model, rows, GENERATION) == alone


@torch.no_grad()
def test_the_plain_batch_differs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, interface = built("kosmos2")
    rows = examples(tmp_path)
    inputs = interface.inputs.of_batch(
        [Image.open(str(row.image)).convert("RGB") for row in rows], [row.text for row in rows]
    )
    tokens = model.module.generate(**inputs, **GENERATION.options())[:, inputs["input_ids"].shape[1] :]
    plain = interface.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    assert [text.strip() for text in plain] != interface.answer(model, rows, GENERATION)
    assert "answers depend on the padding of a batch" in caplog.text
