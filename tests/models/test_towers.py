from collections.abc import Callable

import pytest
from torch import Tensor, nn

from ecoflap.errors import UserError
from ecoflap.models.core.towers import block_lists, find_towers, select
from tests import tiny

T5_TOWERS = {
    "vision": ("vision_model.encoder.layers", 8),
    "qformer": ("qformer.encoder.layer", 16),
    "encoder": ("language_model.encoder.block", 12),
    "decoder": ("language_model.decoder.block", 20),
}
BLIP_VISION = {"vision": ("vision_model.encoder.layers", 8)}
EXPECTED = {
    "llama": {"language": ("model.layers", 14)},
    "qwen2": {"language": ("model.layers", 14)},
    "mistral": {"language": ("model.layers", 14)},
    "opt": {"language": ("model.decoder.layers", 12)},
    "gpt2": {"language": ("transformer.h", 8)},
    "blip2_t5": (
        T5_TOWERS
        | {
            "encoder": ("language_model.encoder.block", 14),
            "decoder": ("language_model.decoder.block", 22),
        }
    ),
    "blip2_t5_relu": T5_TOWERS,
    "blip2_opt": {
        **dict(list(T5_TOWERS.items())[:2]),
        "language": ("language_model.model.decoder.layers", 12),
    },
    "t5": {"encoder": ("encoder.block", 14), "decoder": ("decoder.block", 22)},
    "bart": {"encoder": ("model.encoder.layers", 12), "decoder": ("model.decoder.layers", 20)},
    "clip": {"vision": ("vision_model.encoder.layers", 12), "text": ("text_model.encoder.layers", 12)},
    "blip_vqa": {
        **BLIP_VISION,
        "encoder": ("text_encoder.encoder.layer", 20),
        "decoder": ("text_decoder.bert.encoder.layer", 20),
    },
    "blip_caption": {**BLIP_VISION, "decoder": ("text_decoder.bert.encoder.layer", 20)},
    "blip_retrieval": {**BLIP_VISION, "text": ("text_encoder.encoder.layer", 20)},
    "blip2_itm": {**BLIP_VISION, "qformer": ("qformer.encoder.layer", 20)},
    "vit": {"vision": ("vit.layers", 12)},
    "llava": {
        "vision": ("model.vision_tower.encoder.layers", 12),
        "language": ("model.language_model.layers", 14),
    },
    "smolvlm": {
        "vision": ("model.vision_model.encoder.layers", 12),
        "language": ("model.text_model.layers", 14),
    },
    "paligemma": {
        "vision": ("model.vision_tower.encoder.layers", 12),
        "language": ("model.language_model.layers", 14),
    },
    "internvl": {
        "vision": ("model.vision_tower.encoder.layer", 12),
        "language": ("model.language_model.layers", 14),
    },
    "qwen2_5_vl": {"vision": ("model.visual.blocks", 10), "language": ("model.language_model.layers", 14)},
    "torchvision_vit": {"vision": ("encoder.layers", 8)},
    "torch_encoder": {"language": ("layers", 8)},
    "torch_encoder_tokens_first": {"language": ("layers", 8)},
    "open_clip": {"vision": ("visual.transformer.resblocks", 8), "text": ("text.transformer.resblocks", 8)},
    "open_clip_eva": {"vision": ("visual.trunk.blocks", 8), "text": ("text.transformer.resblocks", 8)},
    "instructblip": {
        **BLIP_VISION,
        "qformer": ("qformer.encoder.layer", 20),
        "language": ("language_model.model.layers", 14),
    },
}
# Where transformers had them before its fifth release.
FORMER_PATHS = {
    "vit.layers": "vit.encoder.layer",
    "model.vision_tower.encoder.layers": "vision_tower.vision_model.encoder.layers",
    "model.vision_tower.encoder.layer": "vision_tower.encoder.layer",
    "model.language_model.layers": "language_model.model.layers",
    "model.visual.blocks": "visual.blocks",
}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_towers_of_every_family_in_the_order_that_data_flows(family: str) -> None:
    model = tiny.build(family)
    for tower in model.every_tower:
        path, layers = EXPECTED[family][tower.name]
        assert tower.path in (path, FORMER_PATHS.get(path))
        assert len(tower.layers) == layers
    assert [tower.name for tower in model.every_tower] == list(EXPECTED[family])
    assert [tower.name for tower in model.towers] == [name for name in EXPECTED[family] if name != "qformer"]
    assert all(len(tower.blocks) == 2 for tower in model.every_tower)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_layer_names_are_state_dict_names(family: str) -> None:
    model = tiny.build(family)
    state = model.module.state_dict()
    layers = [layer for tower in model.every_tower for layer in tower.layers]
    assert len({layer.name for layer in layers}) == len(layers)
    for layer in layers:
        assert state[layer.name].data_ptr() == layer.weight.data_ptr()


def test_qformer_is_pruned_when_it_is_named() -> None:
    model = tiny.build("blip2_t5", towers=["decoder", "qformer", "vision"])
    assert [tower.name for tower in model.towers] == ["vision", "qformer", "decoder"]
    assert not any("tower qformer" in skipped.reason for skipped in model.skipped)
    assert any(skipped.reason == "tower encoder is left dense" for skipped in model.skipped)


def test_a_config_may_name_some_of_the_towers() -> None:
    module = tiny.build("blip2_t5").module
    towers = find_towers(
        module, {"eye": "vision_model.encoder.layers", "mouth": "language_model.decoder.block"}
    )
    assert [(tower.name, tower.path, len(tower.layers)) for tower in towers] == [
        ("eye", "vision_model.encoder.layers", 8),
        ("qformer", "qformer.encoder.layer", 16),
        ("encoder", "language_model.encoder.block", 14),
        ("mouth", "language_model.decoder.block", 22),
    ]


def test_lists_of_heads_are_no_towers() -> None:
    module = nn.Module()
    module.heads = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    module.norms = nn.ModuleList([nn.LayerNorm(2)])
    module.blocks = nn.ModuleList([nn.Sequential(nn.ModuleList([nn.Sequential(nn.Linear(2, 2))]))])
    assert list(block_lists(module)) == ["blocks"]
    del module.blocks
    with pytest.raises(UserError, match="Module has no list of blocks"):
        find_towers(module)


class Scaled(nn.Linear):
    """Not the plain product."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input * 2)


def test_layers_of_another_forward_are_named_where_nothing_is_left() -> None:
    module = nn.ModuleDict({"blocks": nn.ModuleList([nn.Sequential(Scaled(2, 2))])})
    with pytest.raises(UserError, match="linear weights; the forward of Scaled isn't the plain product"):
        find_towers(module)


def test_blocks_of_a_list_of_lists_are_those_of_its_stages() -> None:
    stages = [nn.ModuleList(nn.Sequential(nn.Linear(width, width)) for _ in range(2)) for width in (2, 3)]
    (tower,) = find_towers(nn.ModuleDict({"blocks": nn.ModuleList(stages)}))
    assert [block.name for block in tower.blocks] == ["blocks.0.0", "blocks.0.1", "blocks.1.0", "blocks.1.1"]
    assert [layer.name for layer in tower.layers] == [f"{block.name}.0.weight" for block in tower.blocks]


def test_a_model_may_be_a_list_of_blocks() -> None:
    """The paths of its blocks, which may hold lists of blocks of their own, are the names in the model."""
    parts = [nn.ModuleList([nn.Sequential(nn.Linear(2, 2))]) for _ in range(2)]
    module = nn.Sequential(*(nn.ModuleDict({"parts": part}) for part in parts))
    (tower,) = find_towers(module)
    assert [block.name for block in tower.blocks] == ["0", "1"]
    assert [layer.name for layer in tower.layers] == ["0.parts.0.0.weight", "1.parts.0.0.weight"]


def test_a_bare_layer_among_blocks_has_the_name_of_its_parameter() -> None:
    blocks = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)])
    module = nn.ModuleDict({"layers": blocks})
    (tower,) = find_towers(module)
    assert [layer.name for layer in tower.layers] == ["layers.0.0.weight", "layers.1.weight"]
    assert {layer.name for layer in tower.layers} <= dict(module.named_parameters()).keys()


@pytest.mark.parametrize("stem", [nn.Identity, lambda: nn.Conv2d(2, 2, 1)])
def test_a_list_may_begin_with_a_block_without_layers(stem: Callable[[], nn.Module]) -> None:
    """As that of a model whose first stages are convolutions."""
    blocks = nn.ModuleList([stem(), *(nn.Sequential(nn.Linear(2, 2), nn.Tanh()) for _ in range(2))])
    (tower,) = find_towers(nn.ModuleDict({"blocks": blocks}))
    assert [block.name for block in tower.blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    assert [layer.name for layer in tower.layers] == ["blocks.1.0.weight", "blocks.2.0.weight"]
    mlp = nn.ModuleList([stem(), nn.Linear(2, 2), nn.Linear(2, 2)])
    parts = nn.ModuleList([stem(), nn.ModuleDict({"layers": blocks[1:]}), nn.Sequential(nn.Linear(2, 2))])
    assert list(block_lists(nn.ModuleDict({"mlp": mlp, "parts": parts}))) == ["parts.1.layers"]


def test_lists_of_lists_of_heads_are_no_towers() -> None:
    heads = nn.ModuleList(nn.ModuleList(nn.Linear(2, 2) for _ in range(2)) for _ in range(2))
    blocks = nn.ModuleList([nn.Sequential(nn.Linear(2, 2))])
    assert list(block_lists(nn.ModuleDict({"heads": heads, "blocks": blocks}))) == ["blocks"]


def test_wrong_path() -> None:
    module = tiny.build("llama").module
    with pytest.raises(
        UserError,
        match=(
            r"model\.towers\.language=model\.layer is not a list of blocks of LlamaForCausalLM; found:"
            r" model\.layers"
        ),
    ):
        find_towers(module, {"language": "model.layer"})


def test_wrong_tower() -> None:
    with pytest.raises(
        UserError,
        match=r"no tower 'visoin'; did you mean vision\? the choices are vision, qformer, encoder, decoder",
    ):
        tiny.build("blip2_t5", towers=["visoin"])


def test_pattern_that_matches_nothing_names_the_nearest() -> None:
    wrong = "model.layers.1.self_attn.q_prj.weight"
    with pytest.raises(
        UserError,
        match=r"matches none of the 14 layers; the nearest: model\.layers\.1\.self_attn\.q_proj\.weight",
    ):
        tiny.build("llama", skip_layers=(wrong,))


def test_pattern_that_is_like_no_layer() -> None:
    with pytest.raises(UserError, match=r"'head' matches none of the 14 layers, such as model\.layers\.0\."):
        tiny.build("llama", skip_layers=("head",))


def test_pattern_of_a_tower_that_is_not_pruned_matches_nothing() -> None:
    with pytest.raises(UserError, match="matches none"):
        tiny.build("blip2_t5", towers=["decoder"], skip_layers=("vision",))


def test_bad_regular_expression() -> None:
    with pytest.raises(UserError, match=r"'\[' is not a regular expression"):
        tiny.build("llama", skip_layers=("[",))


@pytest.mark.parametrize(("towers", "skip"), [([], ()), (None, (".",)), (["decoder"], ("decoder",))])
def test_nothing_left(towers: list[str] | None, skip: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="leave no layer to prune"):
        tiny.build("blip2_t5", towers=towers, skip_layers=skip)


def test_skipped_layers_leave_their_blocks_in_place() -> None:
    model = tiny.build("opt", skip_layers=(r"layers\.0\.", "fc2"))
    assert [len(block.layers) for block in model.towers[0].blocks] == [0, 5]
    assert [layer.name for layer in model.layers][-1] == "model.decoder.layers.1.fc1.weight"
    assert [s.name for s in model.skipped if s.reason == "matches skip_layers"][
        -1
    ] == "model.decoder.layers.1.fc2.weight"


def test_reasons() -> None:
    reasons = {skipped.name: skipped.reason for skipped in tiny.build("blip2_t5").skipped}
    assert reasons["language_model.shared.weight"] == "embedding"
    assert reasons["language_projection.weight"] == "outside the blocks"
    assert (
        reasons["language_model.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        == "embedding"
    )
    assert reasons["vision_model.embeddings.patch_embedding.weight"] == "convolution"
    assert reasons["query_tokens"] == "parameter of Blip2ForConditionalGeneration"
    assert (
        reasons["qformer.encoder.layer.0.attention.attention.query.weight"] == "tower qformer is left dense"
    )


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_matrix_is_pruned_or_skipped_and_none_is_both(family: str) -> None:
    model = tiny.build(family)
    pruned, skipped = [layer.name for layer in model.layers], [skipped.name for skipped in model.skipped]
    matrices = {
        name: parameter.numel() for name, parameter in model.module.named_parameters() if parameter.ndim > 1
    }
    assert sorted(pruned + skipped) == sorted(matrices)
    assert {skipped.name: skipped.size for skipped in model.skipped}.items() <= matrices.items()


def test_tied_weights_are_one_layer() -> None:
    module = tiny.build("llama").module
    first, second = module.model.layers
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    tower = find_towers(module)[0]
    names = [layer.name for layer in tower.layers]
    assert len(names) == 13
    assert "model.layers.0.mlp.up_proj.weight" in names
    assert "model.layers.1.mlp.up_proj.weight" not in names


def test_tied_head_is_an_embedding() -> None:
    assert [(s.name, s.reason) for s in tiny.build("qwen2").skipped] == [
        ("model.embed_tokens.weight", "embedding")
    ]


def test_selection_keeps_the_order_of_the_model() -> None:
    towers = tiny.build("blip2_t5").every_tower
    assert [tower.name for tower in select(towers, ["decoder", "vision"])] == ["vision", "decoder"]
    assert [tower.name for tower in select(towers, None)] == ["vision", "encoder", "decoder"]
