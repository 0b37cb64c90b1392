"""The published models of conf on the meta device: towers, layers and weights that the papers and the
hub count.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
import transformers
from omegaconf import DictConfig, OmegaConf

from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.run.instantiate import build
from ecoflap.run.tables import rows
from tests.cli.conftest import ROOT, composed

pytestmark = pytest.mark.long

NAMES = sorted([*(file.stem for file in (ROOT / "conf/model").glob("*.yaml")), *rows("models")])
CLASSES = {  # what each loader needs of transformers
    "Blip2": "Blip2ForConditionalGeneration",
    "Blip2Itm": "Blip2ForImageTextRetrieval",
    "BlipVqa": "BlipForQuestionAnswering",
    "BlipCaption": "BlipForConditionalGeneration",
    "BlipRetrieval": "BlipForImageTextRetrieval",
    "Clip": "CLIPModel",
    "CausalLM": "AutoModelForCausalLM",
    "Seq2Seq": "AutoModelForSeq2SeqLM",
    "ImageClassifier": "AutoModelForImageClassification",
    "VisionLanguage": "AutoModelForImageTextToText",
}
# Parameters in all, as published; and the size of a language model's head where some releases of transformers
# tie it to the embedding.
TOTALS = {
    "blip2_flan_t5_xl": (3_942_446_592, 32128 * 2048),
    "blip2_flan_t5_xl_coco": (3_943_037_952, 32128 * 2048),
    "blip2_flan_t5_xxl": (12_229_596_672, 32128 * 4096),
    "blip2_opt_2_7b": (3_744_761_856, 0),
    "blip2_opt_6_7b": (7_752_869_376, 0),
    "blip2_itm": (1_172_032_258, 0),
    "blip2_itm_coco": (1_172_623_618, 0),
    "flan_t5_small": (76_961_152, 32128 * 512),
    "flan_t5_base": (247_577_856, 32128 * 768),
    "flan_t5_large": (783_150_080, 32128 * 1024),
    "flan_t5_xl": (2_849_757_184, 32128 * 2048),
    "flan_t5_xxl": (11_135_332_352, 32128 * 4096),
    "clip_vit_b16": (149_620_737, 0),
    "clip_vit_b32": (151_277_313, 0),
    "clip_vit_l14": (427_616_513, 0),
    "blip_vqa": (384_672_572, 30524 * 768),
    "blip_vqa_capfilt_large": (384_921_404, 30524 * 768),
    "blip_caption": (247_414_076, 30524 * 768),
    "blip_retrieval": (223_744_258, 0),
    "blip_retrieval_flickr": (223_744_258, 0),
    "vit": (86_567_656, 0),
    "llama_7b": (6_738_415_616, 0),
    "llama_13b": (13_015_864_320, 0),
    "llama_30b": (32_528_943_616, 0),
    "llama_65b": (65_285_660_672, 0),
    "llama_2_7b": (6_738_415_616, 0),
    "llama_2_13b": (13_015_864_320, 0),
    "llama_2_70b": (68_976_648_192, 0),
    "llama_3_8b": (8_030_261_248, 0),
    "llama_3_70b": (70_553_706_496, 0),
    "llava_1_5_7b": (7_063_427_072, 0),
    "qwen2_5_vl_3b": (3_754_622_976, 0),
    "qwen2_5_vl_7b": (8_292_166_656, 0),
    "smolvlm_256m": (256_484_928, 0),
    "smolvlm_2b": (2_246_272_880, 0),
    "internvl3_2b": (2_088_957_440, 0),
    "paligemma_3b": (2_923_466_480, 0),
    "instructblip_flan_t5_xl": (4_022_969_088, 32128 * 2048),
    "instructblip_vicuna_7b": (7_913_726_720, 0),
    "gemma3_4b": (4_300_079_472, 0),
    "internvl3_5_8b": (8_528_318_464, 0),
    "qwen3_vl_8b": (8_767_123_696, 0),
    "qwen3_vl_30b_a3b": (31_070_754_032, 0),
    "qwen3_vl_235b_a22b": (235_670_022_896, 0),
    "mixtral_8x7b": (46_702_792_704, 0),
    "qwen3_30b_a3b": (30_532_122_624, 0),
    "deepseek_v3": (671_026_404_352, 0),  # without the head that guesses a second token ahead
}


@cache
def config_of(name: str) -> DictConfig:
    """A model's config for inspect=true, with something in the place of what a user has to say about the
    model.
    """
    overrides = [f"model={name}", "inspect=true", "tracking=none"]
    config = composed(overrides)
    missing = [key for key in config.model if OmegaConf.is_missing(config.model, key)]
    return composed([*overrides, *(f"model.{key}=anything" for key in missing)]) if missing else config


@cache
def inspected(name: str) -> PrunableModel:
    """The model as inspect=true shows it; releases with a module per expert take long to build it."""
    config = config_of(name)
    known = CLASSES.get(str(config.model._target_).rpartition(".")[2])
    if known is not None and not hasattr(transformers, known):
        pytest.skip(f"transformers {transformers.__version__} has no {known}")
    try:
        return build("model", config.model).load(
            torch.device("meta"), Selection(config.towers, list(config.skip_layers))
        )
    except UserError as error:
        if "is not known to transformers" in str(error):
            pytest.skip(str(error))
        raise


def counts(name: str) -> dict[str, tuple[int, int, int]]:
    """{tower: (blocks, layers, weights)} of what is pruned by default."""
    towers = inspected(name).towers
    return {
        tower.name: (len(tower.blocks), len(tower.layers), sum(layer.size for layer in tower.layers))
        for tower in towers
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.every_run(
    "llama_3_8b",
    "flan_t5_xl",
    "clip_vit_l14",
    "blip2_flan_t5_xl",
    "blip_*",
    "*qwen3_vl",
    "smolvlm_256m",
    "paligemma_3b",
    "internvl3_2b",
    "eva_clip_g",
    "vit*",
    "smollm2_135m",
    "causal_lm",
    "seq2seq",
    "vlm",
)
def test_every_config_builds_its_model(name: str) -> None:
    config = config_of(name).model
    try:
        loader = build("model", config)
    except UserError as error:
        if "newer transformers" not in str(error):
            raise
        pytest.skip(f"the installed transformers does not know {name}")
    assert loader.name == name


@pytest.mark.parametrize("name", TOTALS)
@pytest.mark.every_run(
    "llama_3_8b", "qwen2_5_vl_7b", "blip2_opt_2_7b", "blip_vqa", "flan_t5_xl", "clip_vit_l14", "paligemma_3b"
)
def test_parameters_in_all(name: str) -> None:
    total, head = TOTALS[name]
    assert inspected(name).parameter_count() in (total, total - head)


@pytest.mark.any_release
def test_every_published_model_is_counted() -> None:
    described = {name for name in NAMES if OmegaConf.is_dict(config_of(name).model.get("architecture"))}
    assert {name for name in described if "lavis" not in config_of(name).model._target_} == set(TOTALS)


def test_blip2_flan_t5_xl_has_588_layers_in_87_blocks() -> None:
    found = counts("blip2_flan_t5_xl")
    assert found == {
        "vision": (39, 156, 984_023_040),
        "encoder": (24, 168, 1_157_627_904),
        "decoder": (24, 264, 1_560_281_088),
    }
    assert sum(blocks for blocks, _, _ in found.values()) == 87
    assert sum(layers for _, layers, _ in found.values()) == 588


def test_flan_t5_xl_has_432_layers() -> None:
    assert counts("flan_t5_xl") == {"encoder": (24, 168, 1_157_627_904), "decoder": (24, 264, 1_560_281_088)}


def test_eva_clip_g_has_160_layers() -> None:
    pytest.importorskip("open_clip")
    assert counts("eva_clip_g") == {"vision": (40, 160, 1_009_254_400)}
    assert inspected("eva_clip_g").parameter_count() == 1_136_435_841


def test_clip_vit_b16_has_122_7_million_prunable_weights() -> None:
    assert counts("clip_vit_b16") == {"vision": (12, 72, 84_934_656), "text": (12, 72, 37_748_736)}


def test_blip_base_has_84_9_million_weights_in_its_vision_tower() -> None:
    assert counts("blip_vqa")["vision"] == (12, 48, 84_934_656)


def test_llama_7b_has_224_layers() -> None:
    assert counts("llama_7b") == {"language": (32, 224, 32 * (4 * 4096**2 + 3 * 4096 * 11008))}


def test_open_clip_says_nothing_about_weights_that_nobody_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("open_clip", reason="pip install -e '.[open-clip]'")
    with caplog.at_level("INFO"):
        build("model", composed(["model=eva_clip_g"]).model).load(
            torch.device("meta"), Selection(["vision"], [])
        )
    assert caplog.messages == []
