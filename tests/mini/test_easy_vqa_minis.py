"""The embedded models that know Easy-VQA's images: small, right, fed as they were trained, and hurt by
pruning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import easy_vqa
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoProcessor, ViTImageProcessor

from ecoflap.run.config import package_file
from tests.mini.conftest import cut
from tools.train_mini import blip_caption as train_blip_caption
from tools.train_mini import blip_retrieval as train_blip_retrieval
from tools.train_mini import blip_vqa as train_blip_vqa
from tools.train_mini import clip as train_clip
from tools.train_mini import vit as train_vit
from tools.train_mini.pictures import CLASSES, Pictures


@dataclass(frozen=True)
class Mini:
    """An embedded model, and how its training measures it."""

    kind: str
    measure: Callable[[Any, Any, Pictures], float]
    dense: float
    pruned: float

    def load(self, folder: Path) -> Any:
        return getattr(transformers, self.kind).from_pretrained(folder, torch_dtype=torch.float32).eval()


def answered(model: Any, processor: Any, held_out: Pictures) -> float:
    texts, answers, images = easy_vqa.get_test_questions()
    return train_blip_vqa.accuracy(
        model, train_blip_vqa.Data((texts[:500], answers[:500], images[:500]), held_out, processor)
    )


def matched(model: Any, processor: Any, held_out: Pictures) -> float:
    return train_blip_retrieval.recall(model, processor, held_out).matching_to_text


MINIS = {
    "vit": Mini(
        "ViTForImageClassification", lambda model, _, held_out: train_vit.accuracy(model, held_out), 0.9, 0.5
    ),
    "clip": Mini("CLIPModel", train_clip.zero_shot, 0.9, 0.5),
    "blip_caption": Mini("BlipForConditionalGeneration", train_blip_caption.named_right, 0.9, 0.5),
    "blip_vqa": Mini("BlipForQuestionAnswering", answered, 0.9, 0.75),
    "blip_retrieval": Mini("BlipForImageTextRetrieval", matched, 0.9, 0.5),
}


def folder_of(name: str) -> Path:
    return Path(package_file(f"mini/{name}"))


@pytest.mark.parametrize("name", MINIS)
def test_it_is_right_on_held_out_images_and_wrong_without_nine_tenths_of_its_weights(
    name: str, held_out: Pictures
) -> None:
    mini, folder = MINIS[name], folder_of(name)
    model, processor = mini.load(folder), None if name == "vit" else AutoProcessor.from_pretrained(folder)
    assert mini.measure(model, processor, held_out) >= mini.dense
    cut(model, 0.9)
    assert mini.measure(model, processor, held_out) <= mini.pruned


@pytest.mark.parametrize("name", MINIS)
def test_its_processor_makes_the_images_of_its_training(name: str, held_out: Pictures) -> None:
    loaded = (
        ViTImageProcessor.from_pretrained(folder_of(name))
        if name == "vit"
        else AutoProcessor.from_pretrained(folder_of(name)).image_processor
    )
    pixels = loaded(Image.open(easy_vqa.get_test_image_paths()[7]), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels[0], held_out.images[7], atol=1e-6, rtol=0)


def test_vit_names_its_classes() -> None:
    config = transformers.AutoConfig.from_pretrained(folder_of("vit"))
    assert [config.id2label[i] for i in range(len(CLASSES))] == CLASSES


def test_clip_reads_one_token_per_word_between_start_and_end() -> None:
    processor, config = (
        AutoProcessor.from_pretrained(folder_of("clip")),
        transformers.AutoConfig.from_pretrained(folder_of("clip")),
    )
    ids = processor.tokenizer(train_clip.captions(train_clip.PROMPT))["input_ids"]
    assert {len(row) for row in ids} == {2 + 7}
    assert {row[0] for row in ids} == {config.text_config.bos_token_id}
    assert all(row.index(config.text_config.eos_token_id) == len(row) - 1 for row in ids)
    assert config.text_config.eos_token_id != 2, (
        "CLIP's text tower takes 2 for a configuration from before it had an end"
    )


@pytest.mark.parametrize("name", ["blip_caption", "blip_vqa", "blip_retrieval"])
def test_blip_reads_one_token_per_word_and_starts_after_the_last(name: str) -> None:
    processor, config = (
        AutoProcessor.from_pretrained(folder_of(name)),
        transformers.AutoConfig.from_pretrained(folder_of(name)),
    )
    texts = easy_vqa.get_test_questions()[0] if name == "blip_vqa" else train_blip_caption.CAPTIONS
    ids = processor(text=texts)["input_ids"]
    assert all(
        len(row) == 2 + len(text.replace("?", " ?").split()) for row, text in zip(ids, texts, strict=True)
    )
    assert processor.tokenizer.unk_token_id not in {i for row in ids for i in row}
    assert config.text_config.bos_token_id == len(processor.tokenizer) == config.text_config.vocab_size - 1


def test_blip_captions_with_and_without_a_prompt(held_out: Pictures) -> None:
    model, processor = (
        MINIS["blip_caption"].load(folder_of("blip_caption")),
        AutoProcessor.from_pretrained(folder_of("blip_caption")),
    )
    for prompt in (None, train_blip_caption.PROMPT):
        assert train_blip_caption.named_right(model, processor, held_out, prompt) >= 0.9


def test_blip_retrievals_scores_are_the_models_own(held_out: Pictures) -> None:
    model, processor = (
        MINIS["blip_retrieval"].load(folder_of("blip_retrieval")),
        AutoProcessor.from_pretrained(folder_of("blip_retrieval")),
    )
    texts, images = (
        processor(text=train_blip_retrieval.CAPTIONS[:4], return_tensors="pt"),
        held_out.images[:4],
    )
    with torch.inference_mode():
        vision = model.vision_model(images).last_hidden_state
        itc = train_blip_retrieval.contrast(model, vision, texts["input_ids"])
        itm = train_blip_retrieval.matching(model, vision, texts["input_ids"])
        torch.testing.assert_close(itc, model(**texts, pixel_values=images, use_itm_head=False).itm_score)
        torch.testing.assert_close(itm, model(**texts, pixel_values=images, use_itm_head=True).itm_score)
