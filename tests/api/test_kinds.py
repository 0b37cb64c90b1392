"""What a model is taken for, in memory and in its folder: that which its class is made for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import ecoflap
from ecoflap.errors import UserError
from ecoflap.models.families.language.interface import LanguageInterface
from ecoflap.models.families.vlm.interface import VlmInterface
from ecoflap.models.loading.kinds import option_for_config
from tests import tiny
from tests.api.conftest import llama, picture, word_tokenizer
from tests.api.test_loading import OPTIONS
from tests.vlms.folders import MODELS


def saved(module: Any, folder: Path) -> Path:
    module.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


@pytest.mark.parametrize("family", [family for family in OPTIONS if family in tiny.FAMILIES])
def test_the_kind_of_a_folder_is_told_by_the_class_that_wrote_it(family: str, tmp_path: Path) -> None:
    tiny.build(family).module.save_pretrained(tmp_path)
    assert option_for_config(settings(tmp_path)) == OPTIONS[family]


@pytest.mark.parametrize("name", ["qwen3_5_vl", "gemma3", "mllama"])
def test_a_folder_with_a_vision_tower_is_loaded_with_it(name: str, tmp_path: Path) -> None:
    module, _ = MODELS[name].build()
    MODELS[name].save(tmp_path)
    loaded = ecoflap.load(tmp_path, device="cpu")
    assert type(loaded.module) is type(module)
    assert "vision" in {tower.name for tower in loaded.towers}
    assert loaded.module.state_dict().keys() == module.state_dict().keys()


@pytest.mark.parametrize("name", ["qwen3_5_vl", "mllama"])
def test_a_vision_tower_is_not_left_out_without_a_word(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    MODELS[name].save(tmp_path)
    loaded = ecoflap.load(tmp_path, kind="causal_lm", device="cpu")
    assert {tower.name for tower in loaded.towers} == {"language"}
    assert f"as {type(loaded.module).__name__}: its vision tower is neither pruned nor saved" in caplog.text


def test_a_language_model_under_the_config_of_the_whole_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    MODELS["qwen3_5_vl"].save(tmp_path)
    language = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    given = {**settings(tmp_path), "architectures": [type(language).__name__]}
    language.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(given))
    assert type(ecoflap.load(tmp_path, device="cpu").module) is type(language)
    assert "vision tower" not in caplog.text


def test_an_encoder_decoder_of_a_type_with_a_decoder_alone_is_loaded_whole(tmp_path: Path) -> None:
    module = hf.BartForConditionalGeneration(tiny.bart_config())
    loaded = ecoflap.load(saved(module, tmp_path), device="cpu")
    weights = loaded.module.state_dict()
    assert type(loaded.module) is hf.BartForConditionalGeneration
    assert all(torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (hf.BertForMaskedLM, lambda: hf.BertConfig(**tiny.TEXT)),
        (hf.LlamaForSequenceClassification, lambda: llama().module.config),
    ],
)
def test_a_folder_of_another_task_is_refused_as_in_memory(make: Any, config: Any, tmp_path: Path) -> None:
    folder = saved(make(config()), tmp_path)
    words = rf"{make.__name__}.* is not of a known kind; say which with kind=, one of causal_lm, "
    with pytest.raises(UserError, match=words):
        ecoflap.load(folder, device="cpu")
    with pytest.raises(UserError, match=words):
        ecoflap.load(make(config()), word_tokenizer())


def test_a_kind_that_is_named_wins(tmp_path: Path) -> None:
    folder = saved(hf.BertForMaskedLM(hf.BertConfig(**tiny.TEXT)), tmp_path)
    named = ecoflap.load(folder, kind="causal_lm", device="cpu")
    assert type(named.module) is hf.BertLMHeadModel


def test_a_folder_that_names_no_class_is_told_by_its_type(tmp_path: Path) -> None:
    folder = saved(llama().module, tmp_path)
    kept = {name: value for name, value in settings(folder).items() if name != "architectures"}
    (folder / "config.json").write_text(json.dumps(kept))
    assert type(ecoflap.load(folder, device="cpu").module) is hf.LlamaForCausalLM
    assert option_for_config({"model_type": "gemma3", "vision_config": {}}) == "vlm"
    assert option_for_config({"model_type": "bart", "architectures": None}) == "causal_lm"


def test_a_class_of_language_models_that_reads_pictures_is_given_pictures() -> None:
    module, processor = MODELS["gemma3"].build()
    model = ecoflap.load(module, processor)
    assert isinstance(model.interface, VlmInterface)
    rows = [{"image": picture(0), "text": "what is there ?", "target": "a circle"}]
    assert "pixel_values" in ecoflap.calibrate(model, rows).samples[0]
    alone = hf.Gemma3ForCausalLM(module.config.text_config)
    assert isinstance(ecoflap.load(alone, processor.tokenizer).interface, LanguageInterface)


TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
needs_siglip2 = pytest.mark.skipif(not hasattr(hf, "Siglip2ForImageClassification"), reason="a newer model")


@needs_siglip2
@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
@torch.no_grad()
def test_a_classifier_of_a_vision_tower_takes_its_image_processor(kind: str) -> None:
    size = {"height": 8, "width": 8}
    tower = {**TOWER, "image_size": 8, "patch_size": 4}
    config = getattr(hf, f"{kind}Config")(vision_config=tower, num_labels=5)
    module = getattr(hf, f"{kind}ForImageClassification")(config).eval()
    more = {"crop_size": size} if kind == "CLIP" else {}
    processor = getattr(hf, f"{kind}ImageProcessor")(size=size, **more)
    model = ecoflap.load(module, processor)
    found = ecoflap.calibrate(model, [{"image": picture(0), "label": 3}], samples=1)
    pixels = processor(images=picture(0).convert("RGB"), return_tensors="pt")["pixel_values"]
    expected = module(pixel_values=pixels, labels=torch.tensor([3])).loss
    torch.testing.assert_close(model.loss(found.batches(1)[0])[0], expected)


@needs_siglip2
def test_a_classifier_that_reads_more_than_pixels_is_refused() -> None:
    config = hf.Siglip2Config(vision_config={**TOWER, "num_patches": 16, "patch_size": 4}, num_labels=5)
    processor = hf.Siglip2ImageProcessor(patch_size=4, max_num_patches=16)
    with pytest.raises(UserError, match="makes pixel_attention_mask, pixel_values, spatial_shapes of a"):
        ecoflap.load(hf.Siglip2ForImageClassification(config), processor)
