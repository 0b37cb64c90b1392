"""Names and order of the towers of published architectures, and of module trees that transformers doesn't
have.
"""

from __future__ import annotations

import pytest
from torch import nn

from ecoflap.models.core.tower_names import LEFT_DENSE, ORDER, name_towers, tower_kind
from ecoflap.models.core.towers import find_towers, select
from tests.models.meta import architecture, tree

pytestmark = pytest.mark.long

SIGHT = {"vision": "model.vision_tower.encoder.layers"}
LANGUAGE = {"language": "model.language_model.layers"}
QWEN = {"vision": "model.visual.blocks", **LANGUAGE}
QWEN3 = {"vision": "model.visual.blocks", "merger": "model.visual.deepstack_merger_list", **LANGUAGE}
HEARING = {"audio": "model.audio_tower.layers", **LANGUAGE}
IDEFICS3 = {"vision": "model.vision_model.encoder.layers", "language": "model.text_model.layers"}
EXPECTED = {
    "Idefics2ForConditionalGeneration": {
        "vision": "model.vision_model.encoder.layers",
        "perceiver": "model.connector.perceiver_resampler.layers",
        "language": "model.text_model.layers",
    },
    "Idefics3ForConditionalGeneration": IDEFICS3,
    "SmolVLMForConditionalGeneration": IDEFICS3,
    "Qwen2AudioForConditionalGeneration": HEARING,
    "VoxtralForConditionalGeneration": HEARING,
    "GlmAsrForConditionalGeneration": HEARING,
    "FunAsrNanoForConditionalGeneration": {**HEARING, "connector": "model.multi_modal_projector.layers"},
    "GraniteSpeechForConditionalGeneration": {
        "audio": "model.encoder.layers",
        "qformer": "model.projector.qformer.encoder.layer",
        **LANGUAGE,
    },
    "Qwen2_5OmniThinkerForConditionalGeneration": {**QWEN, **HEARING},
    "Qwen3OmniMoeThinkerForConditionalGeneration": {**QWEN, "merger": "model.visual.merger_list", **HEARING},
    "Qwen2_5OmniForConditionalGeneration": {
        "vision": "thinker.model.visual.blocks",
        "audio": "thinker.model.audio_tower.layers",
        "language": "thinker.model.language_model.layers",
        "speech": "talker.model.layers",
        "speech_token2wav": "token2wav.code2wav_dit_model.transformer_blocks",
    },
    "Phi4MultimodalForCausalLM": {
        "vision": "model.embed_tokens_extend.image_embed.img_processor.encoder.layers",
        "audio": "model.embed_tokens_extend.audio_embed.encoder.encoders",
        "language": "model.layers",
    },
    "Qwen2VLForConditionalGeneration": QWEN,
    "Qwen2_5_VLForConditionalGeneration": QWEN,
    "Qwen3VLForConditionalGeneration": QWEN3,
    "Qwen3VLMoeForConditionalGeneration": QWEN3,
    "InternVLForConditionalGeneration": {"vision": "model.vision_tower.encoder.layer", **LANGUAGE},
    "Gemma3ForConditionalGeneration": {**SIGHT, **LANGUAGE},
    "PaliGemmaForConditionalGeneration": {**SIGHT, **LANGUAGE},
    "LlavaForConditionalGeneration": {**SIGHT, **LANGUAGE},
    "LlavaNextForConditionalGeneration": {**SIGHT, **LANGUAGE},
    "LlavaOnevisionForConditionalGeneration": {**SIGHT, **LANGUAGE},
    "AriaForConditionalGeneration": {**SIGHT, **LANGUAGE},
    "VideoLlavaForConditionalGeneration": {
        "vision": "model.image_tower.encoder.layers",
        "video": "model.video_tower.encoder.layers",
        **LANGUAGE,
    },
    "Gemma3nForConditionalGeneration": {"audio": "model.audio_tower.conformer", **LANGUAGE},
    "Mistral3ForConditionalGeneration": {"vision": "model.vision_tower.transformer.layers", **LANGUAGE},
    "MllamaForConditionalGeneration": {
        "vision": "model.vision_model.transformer.layers",
        "vision_global_transformer": "model.vision_model.global_transformer.layers",
        **LANGUAGE,
    },
    "GraniteDoclingForConditionalGeneration": {
        "vision": "model.vision_model.encoder.layers",
        "merger": "model.vision_model.connector.coarse.deepstack_mergers",
        "merger_fine": "model.vision_model.connector.fine.deepstack_mergers",
        "language": "model.text_model.layers",
    },
    "Llama4ForConditionalGeneration": {
        "vision": "vision_model.model.layers",
        "language": "language_model.model.layers",
    },
    "Ernie4_5_VLMoeForConditionalGeneration": {"vision": "model.vision_tower.blocks", **LANGUAGE},
    "Kosmos2ForConditionalGeneration": {
        "vision": "vision_model.model.encoder.layers",
        "language": "text_model.model.layers",
    },
    "Florence2ForConditionalGeneration": {
        "vision": "model.vision_tower.blocks",
        "encoder": "model.language_model.encoder.layers",
        "decoder": "model.language_model.decoder.layers",
    },
    "T5Gemma2ForConditionalGeneration": {
        "vision": "model.encoder.vision_tower.encoder.layers",
        "encoder": "model.encoder.text_model.layers",
        "decoder": "model.decoder.layers",
    },
    "WhisperForConditionalGeneration": {"encoder": "model.encoder.layers", "decoder": "model.decoder.layers"},
    "Pix2StructForConditionalGeneration": {"encoder": "encoder.encoder.layer", "decoder": "decoder.layer"},
    "SeamlessM4TForSpeechToText": {
        "audio": "speech_encoder.encoder.layers",
        "connector": "speech_encoder.adapter.layers",
        "decoder": "text_decoder.layers",
    },
    "BlipForQuestionAnswering": {
        "vision": "vision_model.encoder.layers",
        "encoder": "text_encoder.encoder.layer",
        "decoder": "text_decoder.bert.encoder.layer",
    },
    "MobileViTForImageClassification": {
        "vision_layer_2": "mobilevit.encoder.layer.2.transformer.layer",
        "vision_layer_3": "mobilevit.encoder.layer.3.transformer.layer",
        "vision": "mobilevit.encoder.layer.4.transformer.layer",
    },
    "PerceiverForImageClassificationLearned": {"text": "perceiver.encoder.self_attends"},
    "Wav2Vec2ForCTC": {"audio": "wav2vec2.encoder.layers"},
    "BertForMaskedLM": {"text": "bert.encoder.layer"},
}
# Where transformers had them before its fifth release.
FORMER_ROOTS = {
    "model.language_model.": ("language_model.model.", "model."),
    "model.visual.": ("visual.",),
    "model.audio_tower.": ("audio_tower.",),
    "model.vision_tower.": ("vision_tower.vision_model.", "vision_tower."),
    "model.image_tower.": ("image_tower.vision_model.",),
    "model.video_tower.": ("video_tower.vision_model.",),
    "model.vision_model.": ("vision_model.",),
    "model.multi_modal_projector.": ("multi_modal_projector.",),
    "model.encoder.": ("encoder.",),
    "model.projector.": ("projector.",),
    "thinker.model.": ("thinker.",),
}


def places(path: str) -> set[str]:
    """A path, and where releases of transformers had it before."""
    roots = {
        former + path.removeprefix(root)
        for root, formers in FORMER_ROOTS.items()
        if path.startswith(root)
        for former in formers
    }
    return {path, *roots}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.every_run(
    "Qwen2_5_VL*", "Gemma3n*", "Florence2*", "Kosmos2*", "Llava*", "Blip2*", "T5Gemma*", "Voxtral*", "Phi4*"
)
def test_towers_of_published_architectures(name: str) -> None:
    towers = find_towers(architecture(name))
    assert [tower.name for tower in towers] == sorted(
        EXPECTED[name], key=lambda tower: ORDER.index(tower_kind(tower) or "")
    )
    for tower in towers:
        assert tower.path in places(EXPECTED[name][tower.name])
        assert tower.layers
    dense = {"merger", "merger_fine", "perceiver", "connector", "qformer", "speech", "speech_token2wav"}
    assert [tower.name for tower in select(towers, None)] == [
        tower.name for tower in towers if tower.name not in dense
    ]
    assert select(towers, list(EXPECTED[name])) == towers


LIST = "{}.0.proj"
TREES = {
    # Ultravox
    ("audio_tower.layers", "language_model.model.layers"): ["audio", "language"],
    # The language model stands first in the tree, as in Gemma 3n.
    ("language_model.layers", "audio_tower.layers", "visual.blocks"): ["vision", "audio", "language"],
    # LAVIS
    (
        "visual_encoder.blocks",
        "Qformer.bert.encoder.layer",
        "t5_model.encoder.block",
        "t5_model.decoder.block",
    ): [
        "vision",
        "qformer",
        "encoder",
        "decoder",
    ],
    ("vision_tower.layers", "model.layers", "model.mtp.layers"): ["vision", "language", "mtp"],
    ("thinker.model.layers", "talker.model.layers", "talker.code2wav.layers"): [
        "language",
        "speech",
        "speech_code2wav",
    ],
    ("mm_projector.layers", "vision_tower.layers", "model.layers"): ["vision", "connector", "language"],
    ("resampler.layers", "vpm.encoder.layers", "llm.model.layers"): ["perceiver", "encoder", "language"],
    ("decoder.block", "encoder.block"): ["encoder", "decoder"],
    ("text_model.encoder.layers", "vision_model.encoder.layers"): ["vision", "text"],
    ("a.layers", "b.layers"): ["language", "language_b"],
}


@pytest.mark.parametrize(("paths", "names"), TREES.items(), ids=lambda value: "+".join(value))
def test_towers_of_other_module_trees(paths: tuple[str, ...], names: list[str]) -> None:
    assert [tower.name for tower in find_towers(tree(*map(LIST.format, paths)))] == names


def test_a_tower_keeps_its_kind_under_a_name_of_its_own() -> None:
    paths = ("vision_tower.encoder.layers", "language_model.layers", "vision_tower.late.layers")
    module = tree(*map(LIST.format, paths))
    found = find_towers(module, {"eyes": paths[0], "mouth": paths[1]})
    assert {tower.name: tower.kind for tower in found} == {
        "eyes": "vision",
        "mouth": "language",
        "vision": "vision",
    }


def named(sizes: dict[str, int]) -> dict[str, str]:
    """{path: tower} of block lists with so many weights."""
    lists = {path: nn.ModuleList([nn.Linear(1, size, bias=False)]) for path, size in sizes.items()}
    return {path: tower for tower, path in name_towers(lists).items()}


def test_the_largest_of_the_remaining_lists_is_the_language_model() -> None:
    assert named({"small.layers": 1, "large.layers": 3, "middle.layers": 2}) == {
        "small.layers": "language_small",
        "large.layers": "language",
        "middle.layers": "language_middle",
    }


def test_lists_of_projectors_are_connectors() -> None:
    """Granite 4 Vision's paths, one of which a tiny model makes larger than its language model."""
    sizes = {
        "model.vision_tower.encoder.layers": 3,
        "model.language_model.layers": 4,
        "model.layerwise_projectors": 2,
        "model.spatial_projectors": 5,
    }
    assert named(sizes) == {
        "model.vision_tower.encoder.layers": "vision",
        "model.language_model.layers": "language",
        "model.layerwise_projectors": "connector_layerwise_projectors",
        "model.spatial_projectors": "connector",
    }


def test_names_of_one_kind_are_told_apart_by_as_much_of_their_paths_as_it_takes() -> None:
    sizes = {
        "visual.stages.3.blocks": 5,
        "visual.stages.4.blocks": 9,
        "visual.fast.blocks": 4,
        "visual.fast.late.blocks": 3,
    }
    assert named({**sizes, "high_res_vision_model.blocks": 2, "vision_encoder.blocks": 1}) == {
        "visual.stages.3.blocks": "vision_stages_3",
        "visual.stages.4.blocks": "vision",
        "visual.fast.blocks": "vision_fast",
        "visual.fast.late.blocks": "vision_fast_late",
        "high_res_vision_model.blocks": "vision_high_res_vision_model",
        "vision_encoder.blocks": "vision_encoder",
    }


def test_lists_that_no_word_tells_apart_are_numbered() -> None:
    sizes = {"visual.deep.blocks": 3, "visual.blocks": 2, "visual.deep": 1}
    assert named(sizes) == {
        "visual.deep.blocks": "vision",
        "visual.blocks": "vision_2",
        "visual.deep": "vision_3",
    }


def test_of_two_lists_of_one_size_the_one_less_deep_has_the_plain_name() -> None:
    assert named({"visual.deep.blocks": 1, "visual.blocks": 1}) == {
        "visual.deep.blocks": "vision_deep",
        "visual.blocks": "vision",
    }


def test_towers_that_a_config_names_are_pruned_in_their_place() -> None:
    module = tree(
        "language_model.layers.0.proj", "audio_tower.layers.0.proj", "odd.layers.0.proj", "even.layers.0.proj"
    )
    towers = find_towers(
        module, {"ears": "audio_tower.layers", "vision": "odd.layers", "language": "language_model.layers"}
    )
    assert {tower.name: tower.path for tower in towers} == {
        "vision": "odd.layers",
        "ears": "audio_tower.layers",
        "language": "language_model.layers",
        "language_even": "even.layers",
    }
    assert [tower.name for tower in towers] == ["vision", "ears", "language", "language_even"]


def test_every_kind_that_stays_dense_has_a_place() -> None:
    assert set(LEFT_DENSE) < set(ORDER)
    assert [tower_kind(name) for name in ("merger_fine", "language", "eye")] == ["merger", "language", None]
