"""Weights that stay on the disk are those that from_pretrained loads, whatever release named them."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ecoflap.errors import UserError
from ecoflap.models.core.wide_parts import DTYPE_OPTION
from ecoflap.models.loading.checkpoint_folder import stored_in
from ecoflap.models.loading.conversion import match_tensors
from ecoflap.models.loading.skeleton import read_generation_config, without_weights
from ecoflap.storage.stored_tensor import StoredTensor
from tests import tiny

MOE = {"num_key_value_heads": 1, "head_dim": 8, **tiny.LLAMA}
GEMMA = {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4, **tiny.LLAMA}
SIGLIP = {**tiny.VISION, "vision_use_head": False, "projection_dim": 16}
DINO = {"image_size": 8, "patch_size": 4, **tiny.SIZE}
Rename = Callable[[str], str]


def vision_first(name: str) -> str:
    """The names of LLaVA, PaliGemma and Gemma 3 before transformers 4.52."""
    name = re.sub(r"^model\.language_model", "language_model.model", name)
    name = re.sub(r"^model\.(vision_tower|multi_modal_projector|image_newline)", r"\1", name)
    return re.sub(r"^lm_head", "language_model.lm_head", name)


def as_it_is(name: str) -> str:
    return name


MODELS: dict[str, tuple[Callable[[], nn.Module], Rename]] = {
    "llava": (tiny.VLM["llava"], vision_first),
    "llava_onevision": (
        lambda: hf.LlavaOnevisionForConditionalGeneration(
            hf.LlavaOnevisionConfig(
                vision_config=hf.SiglipVisionConfig(**SIGLIP),
                text_config=hf.Qwen2Config(num_key_value_heads=1, **tiny.LLAMA),
                image_token_index=tiny.IMAGE_TOKEN,
                video_token_index=tiny.IMAGE_TOKEN - 1,
            )
        ),
        vision_first,
    ),
    "gemma3": (
        lambda: hf.Gemma3ForConditionalGeneration(
            hf.Gemma3Config(
                text_config=hf.Gemma3TextConfig(**GEMMA),
                vision_config=hf.SiglipVisionConfig(**{**SIGLIP, "image_size": 32}),
                mm_tokens_per_image=4,
                image_token_index=tiny.IMAGE_TOKEN,
            )
        ),
        vision_first,
    ),
    "paligemma": (tiny.VLM["paligemma"], vision_first),
    "smolvlm": (tiny.VLM["smolvlm"], as_it_is),
    "mixtral": (
        lambda: hf.MixtralForCausalLM(hf.MixtralConfig(num_local_experts=3, num_experts_per_tok=2, **MOE)),
        as_it_is,
    ),
    "qwen2_moe": (
        lambda: hf.Qwen2MoeForCausalLM(
            hf.Qwen2MoeConfig(
                num_experts=3,
                num_experts_per_tok=2,
                moe_intermediate_size=8,
                shared_expert_intermediate_size=8,
                **MOE,
            )
        ),
        as_it_is,
    ),
    "deepseek_v3": (
        lambda: hf.DeepseekV3ForCausalLM(
            hf.DeepseekV3Config(
                n_routed_experts=4,
                num_experts_per_tok=2,
                n_group=2,
                topk_group=1,
                moe_intermediate_size=8,
                first_k_dense_replace=1,
                q_lora_rank=8,
                kv_lora_rank=8,
                qk_rope_head_dim=4,
                qk_nope_head_dim=4,
                v_head_dim=8,
                num_key_value_heads=2,
                **tiny.LLAMA,
            )
        ),
        as_it_is,
    ),
    "longcat_flash": (
        lambda: hf.LongcatFlashForCausalLM(
            hf.LongcatFlashConfig(
                n_routed_experts=3,
                zero_expert_num=1,
                moe_topk=2,
                ffn_hidden_size=24,
                expert_ffn_hidden_size=8,
                q_lora_rank=8,
                kv_lora_rank=8,
                qk_rope_head_dim=4,
                qk_nope_head_dim=4,
                v_head_dim=8,
                **tiny.LLAMA,
            )
        ),
        as_it_is,
    ),
    "gptj": (lambda: hf.GPTJForCausalLM(hf.GPTJConfig(rotary_dim=8, **tiny.GPT2)), as_it_is),
    "phi3": (lambda: hf.Phi3ForCausalLM(hf.Phi3Config(num_key_value_heads=1, **tiny.LLAMA)), as_it_is),
    "vit": (tiny.CLASSIFIER["vit"], as_it_is),
    "dinov2_swiglu": (
        lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(use_swiglu_ffn=True, num_labels=5, **DINO)),
        as_it_is,
    ),
    "llama": (
        lambda: hf.LlamaForCausalLM(
            hf.LlamaConfig(tie_word_embeddings=True, num_key_value_heads=1, **tiny.LLAMA)
        ),
        lambda name: name.removeprefix("model."),  # as its base model is saved
    ),
    "qwen2": (tiny.LANGUAGE["qwen2"], as_it_is),
}
RENAMED = [kind for kind, (_, rename) in MODELS.items() if rename is not as_it_is]


def make(build: Callable[[], nn.Module]) -> nn.Module:
    """The model; a test of one that the installed transformers lacks is skipped."""
    try:
        return build()
    except AttributeError as error:
        if "module transformers" not in str(error):
            raise
        pytest.skip(f"transformers {hf.__version__}: {error}")


def resave(folder: Path, rename: Rename) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {rename(name): tensor for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def entries(module: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def randomise(module: nn.Module) -> None:
    """Give buffers that a checkpoint holds values that no fresh model has."""
    saved = module.state_dict()
    for name, buffer in module.named_buffers():
        if name in saved and buffer.is_floating_point():
            buffer.uniform_(1, 2)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("kind", "names"), [*((kind, "saved") for kind in MODELS), *((kind, "old") for kind in RENAMED)]
)
@pytest.mark.every_run("bfloat16")
def test_what_is_read_is_what_from_pretrained_loads(
    kind: str, names: str, dtype: str, tmp_path: Path
) -> None:
    build, rename = MODELS[kind]
    torch.manual_seed(0)
    made: Any = make(build)
    randomise(made)
    made.to(getattr(torch, dtype)).save_pretrained(tmp_path, safe_serialization=True)
    if names == "old":
        resave(tmp_path, rename)
    model_class: Any = type(made)
    expected, report = model_class.from_pretrained(
        tmp_path, output_loading_info=True, **{DTYPE_OPTION: "auto"}
    )
    assert not report["missing_keys"]
    expected = entries(expected)
    module = without_weights(
        model_class, model_class.config_class.from_pretrained(tmp_path), getattr(torch, dtype)
    )
    places = match_tensors(str(tmp_path), module, stored_in(tmp_path))
    assert places.unused == []
    found = entries(module)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        read = tensor if name not in places.found else places.found[name].read().to(tensor.dtype)
        assert torch.equal(read, expected[name]), name
        assert read.dtype == expected[name].dtype, name


def test_whole_numbers_stay_whole_in_a_part_that_is_kept_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf.CLIPModel, "_keep_in_fp32_modules", ["embeddings"])
    module = without_weights(hf.CLIPModel, tiny.DUAL["clip"]().config, torch.float16)
    found = dict(module.named_buffers())
    assert found
    assert {buffer.dtype for buffer in found.values()} == {torch.int64}
    assert module.get_parameter("text_model.embeddings.token_embedding.weight").dtype == torch.float32


@pytest.mark.parametrize("place", ["generation_config.json", "config.json"])
def test_how_to_generate_is_what_from_pretrained_reads(place: str, tmp_path: Path) -> None:
    """Old checkpoints have no file for it; their config.json says it."""
    made: Any = tiny.SEQ2SEQ["bart"]()
    made.save_pretrained(tmp_path)
    if place == "config.json":
        (tmp_path / "generation_config.json").unlink()
    settings = {"num_beams": 3, "no_repeat_ngram_size": 2, "max_length": 17}
    content = json.loads((tmp_path / place).read_text())
    (tmp_path / place).write_text(json.dumps({**content, **settings}))
    expected = type(made).from_pretrained(tmp_path)
    module: Any = without_weights(type(made), type(made.config).from_pretrained(tmp_path), torch.float32)
    read_generation_config(module, tmp_path)
    found = module.generation_config.to_dict()
    assert found == expected.generation_config.to_dict()
    assert settings.items() <= found.items()


@pytest.mark.parametrize("lost", [True, False])
def test_a_buffer_that_is_saved_is_not_made_up(lost: bool, tmp_path: Path) -> None:
    """Such as the bias that DeepSeek's router chooses experts by."""
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    made: Any = hf.ResNetForImageClassification(config)
    made.save_pretrained(tmp_path, safe_serialization=True)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("running_mean"))
    if lost:
        del tensors[name]
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    module = without_weights(type(made), made.config, torch.float32)
    if not lost:
        assert name in match_tensors(str(tmp_path), module, stored_in(tmp_path)).found
        return
    with pytest.raises(UserError, match=rf"lacks 1 weights of its model, such as {name}; .* is damaged"):
        match_tensors(str(tmp_path), module, stored_in(tmp_path))


@pytest.mark.parametrize("experts", [[1], [0, 1, 2]])
@pytest.mark.parametrize("matrix", ["w1", "w2", "w3"])
@pytest.mark.parametrize("change", ["missing", "of another shape"])
def test_experts_that_make_no_parameter(change: str, matrix: str, experts: list[int], tmp_path: Path) -> None:
    made: Any = make(MODELS["mixtral"][0])
    made.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in [f"model.layers.1.block_sparse_moe.experts.{one}.{matrix}.weight" for one in experts]:
        whole = tensors.pop(name)
        if change == "of another shape":
            tensors[name] = whole[:-1].clone()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    module = without_weights(hf.MixtralForCausalLM, hf.MixtralConfig.from_pretrained(tmp_path), torch.float32)
    with pytest.raises(UserError, match=r"lacks|has the shape|don't fit together") as caught:
        match_tensors(str(tmp_path), module, stored_in(tmp_path))
    assert "\n" not in str(caught.value)
    assert "model.layers.1." in str(caught.value)


def test_one_parameter_reads_its_own_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: Any = make(MODELS["mixtral"][0])
    made.save_pretrained(tmp_path)
    module = without_weights(hf.MixtralForCausalLM, hf.MixtralConfig.from_pretrained(tmp_path), torch.float32)
    read: list[str] = []
    original = StoredTensor.read
    monkeypatch.setattr(StoredTensor, "read", lambda self: read.append(self.name) or original(self))
    places = match_tensors(str(tmp_path), module, stored_in(tmp_path)).found
    assert read == [], "names and shapes are enough to find them"
    name = next(
        name
        for name in places
        if name.startswith("model.layers.1.") and name.endswith(("experts.down_proj", "experts.2.w2.weight"))
    )
    places[name].read()
    assert read
    assert all("layers.1." in one and one.endswith("w2.weight") for one in read)


@pytest.mark.parametrize("way", ["read", "parts"])
@pytest.mark.parametrize("name", ["experts.gate_up_proj", "experts.down_proj"])
def test_experts_are_merged_one_at_a_time(
    name: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Any = make(MODELS["qwen2_moe"][0])
    made.save_pretrained(tmp_path)
    module = without_weights(hf.Qwen2MoeForCausalLM, made.config, torch.float32)
    places = match_tensors(str(tmp_path), module, stored_in(tmp_path)).found
    place = next((places[one] for one in places if one.endswith(name)), None)
    if place is None:
        pytest.skip(f"transformers {hf.__version__} has a module per expert")
    alive: list[weakref.ref[Tensor]] = []
    most, original = [0], StoredTensor.read

    def read(self: StoredTensor) -> Tensor:
        tensor = original(self)
        alive.append(weakref.ref(tensor))
        most[0] = max(most[0], sum(one().nbytes for one in alive if one() is not None))  # type: ignore[union-attr]
        return tensor

    monkeypatch.setattr(StoredTensor, "read", read)
    whole = place.read() if way == "read" else torch.cat(list(place.parts()))
    experts = made.config.num_experts
    assert len(alive) >= experts
    assert most[0] == whole.nbytes // experts, "the parts of one expert"
    expected = next(tensor for one, tensor in made.named_parameters() if one.endswith(name))
    assert torch.equal(whole.view_as(expected), expected)
