"""Models that are one file of weights: torchvision's and open_clip's, from a local file through calibration,
pruning and saving.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.data.easy_vqa.picture_tasks import EasyClassification
from ecoflap.data.easy_vqa.pictures import EasyPictures
from ecoflap.data.easy_vqa.reading import NAMES, read_pictures
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.clip.open_clip import OpenClip
from ecoflap.models.families.vision.image_classifier import ClassifierInterface
from ecoflap.models.families.vision.torchvision import Torchvision
from ecoflap.prune.driver import prune
from ecoflap.prune.wanda import Wanda

pytestmark = pytest.mark.long

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture(scope="session")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real ViT-B/32 of torchvision with random weights."""
    from torchvision import models

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("torchvision") / "vit_b_32.pth"
    torch.save(models.get_model("vit_b_32", weights=None).state_dict(), file)
    return file


def pruned(model: PrunableModel, samples: int = 2) -> PrunableModel:
    if isinstance(model.interface, ClassifierInterface):  # the pictures' classes are not ImageNet's
        model.interface.names[: len(NAMES)] = NAMES
    calibration = EasyPictures(samples=samples).load(model, 0)
    prune(model, calibration, Wanda(), WaterFilling()(model, None, 0.5), 2)
    return model


@pytest.mark.any_release
def test_torchvision_from_a_file(vit_file: Path, tmp_path: Path) -> None:
    model = Torchvision("vit_b_32", str(vit_file)).load(
        CPU, Selection(skip_layers=[r"encoder_layer_([1-9]|10|11)\."])
    )
    assert [tower.name for tower in model.towers] == ["vision"]
    names = [layer.name for layer in model.layers]
    prefix = "encoder.layers.encoder_layer_0."
    assert names == [
        f"{prefix}{name}"
        for name in (
            "self_attention.in_proj_weight",
            "self_attention.out_proj.weight",
            "mlp.0.weight",
            "mlp.3.weight",
        )
    ]
    pruned(model).save(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert all((saved[name] == 0).float().mean() == pytest.approx(0.5, abs=1e-3) for name in names)
    again = Torchvision("vit_b_32", str(tmp_path / "model.safetensors")).load(CPU, Selection())
    assert again.fingerprint() == model.fingerprint()
    assert again.interface.classify(again, read_pictures("test")[:1]).shape == (1, 1000)


def test_torchvision_inspects_without_weights() -> None:
    model = Torchvision("vit_b_16").load(META, Selection())
    assert sum(layer.size for layer in model.layers) == 12 * 12 * 768**2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda file: Torchvision("vit_b_61"),
            r"model\.architecture=vit_b_61 is not known to torchvision; did you mean vit_b_16",
        ),
        (
            lambda file: Torchvision("vit_b_32", "NEWEST"),
            r"model\.weights=NEWEST is neither a file nor one of torchvision's tags \(IMAGENET1K_V1\)",
        ),
        (lambda file: Torchvision("vit_b_16", str(file)), "is of another model"),
    ],
)
def test_torchvision_refusals(make: Callable[[Path], Torchvision], message: str, vit_file: Path) -> None:
    with pytest.raises(UserError, match=message):
        make(vit_file).load(CPU, Selection())


open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A small architecture that open_clip learns to know, and a checkpoint of it."""
    folder = tmp_path_factory.mktemp("open_clip")
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    (folder / "tiny-clip.json").write_text(
        json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text})
    )
    open_clip.add_model_config(folder / "tiny-clip.json")
    torch.manual_seed(0)
    save_file(open_clip.create_model("tiny-clip").state_dict(), folder / "tiny-clip.safetensors")
    return "tiny-clip", folder / "tiny-clip.safetensors"


@pytest.mark.parametrize("loss", ["classification", "contrastive"])
def test_open_clip_from_a_file(clip_file: tuple[str, Path], tmp_path: Path, loss: str) -> None:
    name, file = clip_file
    towers = ["vision"] if loss == "classification" else None
    model = OpenClip(name, str(file), loss=loss).load(CPU, Selection(towers))
    assert [tower.name for tower in model.every_tower] == ["vision", "text"]
    text = copy.deepcopy(
        {name: tensor for name, tensor in model.module.state_dict().items() if not name.startswith("visual")}
    )
    pruned(model, samples=8).save(tmp_path)
    again = OpenClip(name, str(tmp_path / "model.safetensors"), loss=loss).load(CPU, Selection())
    assert again.fingerprint() == model.fingerprint()
    unchanged = all(
        torch.equal(tensor, text[name]) for name, tensor in model.module.state_dict().items() if name in text
    )
    assert unchanged == (loss == "classification")
    task = EasyClassification(limit=30).load(again)
    assert task(again) == task(model)


def test_architectures_of_the_same_weights_are_told_apart(clip_file: tuple[str, Path]) -> None:
    """By what cached values belong to: they have other activations, as ViT-B-32 and ViT-B-32-quickgelu."""
    name, file = clip_file
    settings = json.loads(file.with_suffix(".json").read_text())
    file.with_name("tiny-quick.json").write_text(json.dumps({**settings, "quick_gelu": True}))
    open_clip.add_model_config(file.with_name("tiny-quick.json"))
    models = [OpenClip(one, str(file)).load(CPU, Selection()) for one in (name, "tiny-quick", name)]
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        usual, quick, again = (model.module.encode_image(pixels) for model in models)
    assert not torch.allclose(usual, quick, atol=1e-4)
    assert usual.equal(again)
    assert models[0].fingerprint() != models[1].fingerprint()
    assert models[0].fingerprint() == models[2].fingerprint()


def test_classification_is_at_the_true_temperature(clip_file: tuple[str, Path]) -> None:
    model = OpenClip(clip_file[0], str(clip_file[1])).load(CPU, Selection(["vision"]))
    batch = EasyPictures(samples=3).load(model, 0).batches(3)[0]
    features = model.interface.image_features(model.module, batch["pixel_values"])
    logits = model.module.logit_scale.exp() * features @ model.interface.classes.t()
    torch.testing.assert_close(
        model.loss(batch), torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
    )
    assert float(model.module.logit_scale.exp()) > 10


WORDS = ["<s>", "<pad>", "</s>", "a", "photo", "of", "red", "blue", "square", "zebra"]
TEXT_TOWERS: dict[str, dict[str, Any]] = {
    "siglip": {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    "worldwide": {"pool_type": "eos", "eos_id": 2},
    "roberta": {"hf_pooler_type": "mean_pooler"},
}


@torch.no_grad()
@pytest.mark.parametrize("tower", TEXT_TOWERS)
def test_texts_by_a_tokenizer_of_transformers(tower: str, tmp_path: Path) -> None:
    """They are padded as the tokenizer does it, whatever the number of the end token is."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, RobertaConfig

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, "<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **tokens).save_pretrained(tmp_path)
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 20}
    size = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 24}
    RobertaConfig(**size, **layers, pad_token_id=1).save_pretrained(tmp_path)
    text = {"context_length": 8, "vocab_size": len(WORDS), "width": 16, "heads": 2, "layers": 2}
    text |= {"hf_tokenizer_name": str(tmp_path), **TEXT_TOWERS[tower]}
    text |= {"hf_model_name": str(tmp_path)} if tower == "roberta" else {}
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    file = tmp_path / f"tiny-{tower}.json"
    settings = {"embed_dim": 16, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    file.write_text(json.dumps(settings))
    open_clip.add_model_config(file)
    torch.manual_seed(0)
    state = open_clip.create_model(file.stem, pretrained_hf=False).state_dict()
    save_file(state, file.with_suffix(".safetensors"))
    model = OpenClip(file.stem, str(file.with_suffix(".safetensors"))).load(CPU, Selection(["vision"]))
    texts = ["a photo of a zebra square", "red", "a blue square"]
    read = open_clip.get_tokenizer(file.stem)(texts)
    expected = torch.nn.functional.normalize(model.module.encode_text(read), dim=-1)
    torch.testing.assert_close(model.interface.embed_texts(model, texts), expected, rtol=1e-4, atol=1e-5)
    alone = torch.cat([model.interface.embed_texts(model, [one]) for one in texts])
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)
    counted = [int(sample["attention_mask"].sum()) for sample in model.interface._tokens(texts)]
    assert counted == ([8, 8, 8] if tower == "siglip" else [7, 2, 4])


def test_open_clip_refusals(clip_file: tuple[str, Path]) -> None:
    with pytest.raises(
        UserError, match=r"model\.architecture=EVA01-g-41 is not known to open_clip; did you mean EVA01-g-14"
    ):
        OpenClip("EVA01-g-41", "x").load(META, Selection())
    with pytest.raises(UserError, match="could not be loaded"):
        OpenClip(clip_file[0], "no_such_tag").load(CPU, Selection())
