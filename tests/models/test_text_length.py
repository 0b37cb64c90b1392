"""How long a text a model can read: as long as it has positions, tried on each family's own tables."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import ecoflap
from ecoflap.data.mmlu.reading import Question, prompt
from ecoflap.data.mmlu.task import fitting_prompt
from ecoflap.data.text.calibration import Text
from ecoflap.data.text.perplexity import TextPerplexity
from ecoflap.errors import UserError
from ecoflap.models.core.text_length import at_most, most_tokens
from ecoflap.run.config import package_file
from tests import tiny

SMALL = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 20,
    "max_position_embeddings": 12,
}


def module(family: str) -> nn.Module:
    import transformers as hf

    if family == "bert":
        return hf.BertForMaskedLM(hf.BertConfig(**SMALL))
    if family == "roberta":
        return hf.RobertaForMaskedLM(hf.RobertaConfig(**SMALL))
    return tiny.build(family).module


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "opt", "bert", "roberta"])
def test_one_token_more_than_there_are_positions_fails(family: str) -> None:
    model = module(family).eval()
    most = most_tokens(model)
    assert most is not None
    model(input_ids=torch.full((1, most), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, most + 1), 5))


@pytest.mark.parametrize("family", ["llama", "qwen2", "t5"])
def test_computed_positions_have_no_end(family: str) -> None:
    assert most_tokens(module(family)) is None


def test_positions_of_patches_are_none_of_a_text() -> None:
    model: Any = tiny.build("clip").module
    text, patches = (
        tower.embeddings.position_embedding.num_embeddings for tower in (model.text_model, model.vision_model)
    )
    assert patches < text == most_tokens(model)


SEEN = {**SMALL, "image_size": 8, "patch_size": 4}
HEARD = {
    "num_mel_bins": 8,
    "d_model": 8,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 8,
}
HEARD |= {"max_source_positions": 7}


def of_pictures_or_sounds(family: str) -> nn.Module:
    """Models with a table for four patches and a class, or for seven frames, beside what reads texts."""
    import transformers as hf

    text = {**SMALL, "num_key_value_heads": 1}
    if family == "gemma3":
        gemma = {**text, "head_dim": 4}
        return hf.Gemma3ForConditionalGeneration(hf.Gemma3Config(text_config=gemma, vision_config=SEEN))
    if family == "qwen2_audio":
        config = hf.Qwen2AudioConfig(audio_config=HEARD, text_config={"model_type": "qwen2", **text})
        return hf.Qwen2AudioForConditionalGeneration(config)
    if family == "clip_gpt2":
        gpt2 = hf.GPT2Config(
            n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=12, add_cross_attention=True
        )
        both = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(hf.CLIPVisionConfig(**SEEN), gpt2)
        return hf.VisionEncoderDecoderModel(both)
    decoder = {
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 8,
        "max_target_positions": 12,
    }
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return hf.WhisperForConditionalGeneration(hf.WhisperConfig(vocab_size=20, **HEARD, **decoder, **tokens))


@pytest.mark.parametrize(
    ("family", "most"), [("gemma3", None), ("qwen2_audio", None), ("clip_gpt2", 12), ("whisper", 12)]
)
def test_tables_for_pictures_and_sounds_do_not_limit_texts(family: str, most: int | None) -> None:
    try:
        model = of_pictures_or_sounds(family)
    except (AttributeError, ValueError):  # no such class, or no such pair of them
        pytest.skip(f"{family} is not in the installed transformers")
    assert most_tokens(model) == most


def test_windows_that_are_too_long_are_refused(tmp_path: Path) -> None:
    model = tiny.build("gpt2")
    most = most_tokens(model.module)
    assert most is not None
    with pytest.raises(
        UserError, match=rf"task\.sequence_length={most + 1}: .* has positions for {most} tokens"
    ):
        TextPerplexity(path=str(tmp_path), sequence_length=most + 1).load(model)
    with pytest.raises(
        UserError, match=rf"calibration\.sequence_length={most + 1}: .* has positions for {most} tokens"
    ):
        Text(path=str(tmp_path), sequence_length=most + 1).load(model, 0)


def test_questions_fit_into_the_positions() -> None:
    """Fewer shots where a model reads less than MMLU's prompts, and none that could not be read at all."""
    shots = [Question(f"shot {number}", ("a", "b", "c", "d"), "A") for number in range(5)]
    question = Question("which", ("a", "b", "c", "d"), "A")
    words = SimpleNamespace(length=lambda text: len(text.split()))
    whole = words.length(prompt("s", shots, question))
    assert fitting_prompt(words, "s", shots, question, whole) == prompt("s", shots, question)
    assert fitting_prompt(words, "s", shots, question, whole - 1) == prompt("s", shots[:4], question)
    assert at_most(tiny.build("gpt2"), 2048) == most_tokens(tiny.build("gpt2").module)
    assert at_most(tiny.build("t5"), 2048) == 2048


@pytest.mark.any_release  # old ones can't read this tokenizer
@torch.no_grad()
@pytest.mark.parametrize("limit", [6, 10**30])
def test_a_clip_cuts_texts_at_its_positions_and_at_its_tokenizers_limit(limit: int) -> None:
    import transformers as hf

    folder = package_file("mini/clip")
    module: Any = hf.CLIPModel.from_pretrained(folder).float().eval()
    processor = hf.CLIPProcessor.from_pretrained(folder)
    processor.tokenizer.model_max_length = limit
    model = ecoflap.load(module, processor)
    text, most = "a photo of a red circle . " * 10, module.config.text_config.max_position_embeddings
    ids = processor.tokenizer(text, truncation=True, max_length=min(limit, most), return_tensors="pt")
    pooled = module.text_projection(module.text_model(**ids).pooler_output)
    expected = torch.nn.functional.normalize(pooled, dim=-1)
    torch.testing.assert_close(model.interface.embed_texts(model, [text]), expected)
