"""The five lines and the one call on models in memory."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn

import ecoflap
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.score.protocol import Scorer
from ecoflap.score.scores import Scores
from ecoflap.storage.masks import MaskFile
from tests.abandoned import abandoned
from tests.api.conftest import MODELS, QUICK, Given, llama, llava


def outputs(module: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found = module(**inputs)
    return found.logits if "logits" in found else found.logits_per_image


def assert_zeros(module: nn.Module, masks: Any) -> None:
    parameters = dict(module.named_parameters())
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        assert mask.shape == parameters[name].shape
        assert not parameters[name][~mask].any()


def test_one_call_prunes_in_place_and_saves_what_plain_transformers_loads(
    given: Given, tmp_path: Path
) -> None:
    inputs, dense = given.inputs(), outputs(given.module, given.inputs())
    result = ecoflap.prune(given.module, given.processor, data=given.data, sparsity=0.6, **QUICK)
    assert result.model is given.module
    assert_zeros(given.module, result.masks)
    removed = sum(int((~mask).sum()) for mask in result.masks.values())
    total = sum(mask.numel() for mask in result.masks.values())
    assert removed == total - int(total * 2 / 5)
    assert not torch.equal(outputs(given.module, inputs), dense)
    folder = ecoflap.save(result, tmp_path / "pruned")
    again = given.again.from_pretrained(folder).eval()
    torch.testing.assert_close(outputs(again, inputs), outputs(given.module, inputs))
    weights = given.module.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.state_dict().items())
    assert_zeros(again, result.masks)
    with MaskFile(folder / "masks.bits") as file:
        for name, mask in result.masks.items():
            assert torch.equal(file[file.names.get(name, name)], mask)


def test_the_steps_give_what_the_one_call_gives(given: Given, tmp_path: Path) -> None:
    name = next(name for name, make in MODELS.items() if type(make().module) is type(given.module))
    same = MODELS[name]()
    one_call = ecoflap.prune(given.module, given.processor, given.data, sparsity=0.5, pruner="wanda", **QUICK)

    model = ecoflap.load(same.module, same.processor)
    data = ecoflap.calibrate(model, same.data)
    scores = ecoflap.score(model, data, method="zeroth_order", samples=4, batch_size=4)
    allocation = ecoflap.allocate(model, scores, sparsity=0.5)
    result = ecoflap.prune(model, data=data, allocation=allocation)

    assert scores.importance == one_call.scores.importance
    assert allocation == one_call.allocation
    assert result.masks.keys() == one_call.masks.keys()
    assert all(torch.equal(result.masks[name], one_call.masks[name]) for name in result.masks)
    assert result.record.model == one_call.record.model
    # What an allocation was made from is not in the allocation.
    assert result.record.sparsity == {**one_call.record.sparsity, "coarse": None}


def test_the_result_is_json_with_what_a_run_writes(tmp_path: Path) -> None:
    one = llama()
    result = ecoflap.prune(one.module, one.processor, one.data, sparsity=0.5, **QUICK)
    value = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert value["sparsity"]["target"] == 0.5
    assert value["sparsity"]["prunable"] == pytest.approx(result.sparsity)
    assert set(value["steps"]) == {"calibrate", "score", "allocate", "prune"}
    assert value["versions"]["torch"] == torch.__version__.split("+")[0] or value["versions"]["torch"]
    assert value["scores"]["importance"] == result.scores.importance
    assert value["allocation"]["keep"] == result.allocation.keep
    folder = ecoflap.save(result, tmp_path / "pruned")
    assert json.loads((folder / "allocation.json").read_text()) == value["allocation"]
    assert json.loads((folder / "scores.json").read_text()) == value["scores"]
    assert json.loads((folder / "result.json").read_text())["sparsity"] == value["sparsity"]


def test_options_that_no_config_holds_are_plain_or_refused(tmp_path: Path) -> None:
    one = llama()
    ecoflap.save(ecoflap.load(one.module, one.processor), tmp_path / "out")
    loaded = ecoflap.load(tmp_path / "out", device="cpu", dtype=torch.bfloat16)
    assert {weight.dtype for weight in loaded.module.parameters()} == {torch.bfloat16}
    with pytest.raises(ecoflap.UserError, match=r"pruner\.damping can't be used .*Tensor.* give a number"):
        ecoflap.prune(loaded, data=one.data, sparsity=0.5, pruner="sparsegpt", damping=torch.tensor(0.1))
    (tmp_path / "test.txt").write_text(" ".join(one.data))
    options = {"path": str(tmp_path / "test.txt"), "sequence_length": np.int64(16)}
    assert ecoflap.evaluate(loaded, "text", **options)["rows"] > 1


def test_numbers_of_numpy_are_recorded_as_those_of_python(tmp_path: Path) -> None:
    one, two = llama(), np.int64(2)
    scorer = ecoflap.ZerothOrder(noises=two, samples=4)
    result = ecoflap.prune(
        one.module,
        one.processor,
        one.data,
        sparsity=np.float32(0.5),
        score=scorer,
        pruner="sparsegpt",
        block=np.int64(8),
        seed=two,
        batch_size=two,
    )
    folder = ecoflap.save(result, tmp_path)
    config = json.loads((folder / "result.json").read_text())["config"]
    assert (config["seed"], config["batch_size"], config["sparsity"]) == (2, 2, 0.5)
    assert (config["pruner"]["block"], config["score"]["noises"]) == (8, 2)
    with pytest.raises(ecoflap.UserError, match=r"seed=2\.0 is a float; give a whole number"):
        ecoflap.prune(one.module, pruner="magnitude", sparsity=0.5, score="none", seed=2.0)
    with pytest.raises(ecoflap.UserError, match=r"batch_size=True is a bool; give a whole number"):
        ecoflap.prune(one.module, pruner="magnitude", sparsity=0.5, score="none", batch_size=True)


@pytest.mark.parametrize("sparsity", [0.1 * 6, np.float32(0.6)])
def test_rounding_errors_of_a_sparsity_change_nothing(sparsity: Any) -> None:
    """As on the command line; the ramp of in-context allocation ended with two more steps at 0.6."""
    one = llama()
    model, steps = ecoflap.load(one.module, one.processor), ecoflap.InContext(samples=2, steps=2)
    data = ecoflap.calibrate(model, one.data)
    wanted, found = (
        ecoflap.allocate(model, sparsity=target, method=steps, data=data) for target in (0.6, sparsity)
    )
    assert found == wanted
    result = ecoflap.prune(model, data=data, sparsity=sparsity, allocation="er")
    assert result.record.config["sparsity"] == result.record.sparsity["target"] == 0.6


class Ranks(Scorer):
    """Gives the numbers of another library."""

    name, samples, batch_size = "ranks", 4, 4

    def __init__(self, number: Callable[[float], Any]) -> None:
        self.number = number

    def identity(self) -> dict[str, Any]:
        return {}

    def __call__(self, model: PrunableModel, calibration: Any, seed: int) -> Scores:
        ranks = {layer.name: self.number(1.5 + rank) for rank, layer in enumerate(model.layers)}
        return Scores("ranks", ranks, dict.fromkeys(ranks, self.number(0.25)), {"first": self.number(1.5)})


@dataclass(frozen=True)
class Named(ecoflap.Magnitude):
    """Has options that JSON has no values for."""

    table: Path = Path("a/table")
    dtype: torch.dtype = torch.bfloat16
    limits: Any = ()


@pytest.mark.parametrize("number", [np.float32, torch.tensor])
def test_what_own_parts_have_and_give_is_recorded(number: Callable[[float], Any], tmp_path: Path) -> None:
    one = llama()
    pruner = Named(limits=number([0.5, 2.0]))
    scorer = Ranks(number)
    result = ecoflap.prune(one.module, one.processor, one.data, sparsity=0.5, pruner=pruner, score=scorer)
    ecoflap.save(result, tmp_path / "first")
    record = json.loads((tmp_path / "first" / "result.json").read_text())
    own = {name: record["config"]["pruner"][name] for name in ("table", "dtype", "limits")}
    assert own == {"table": "a/table", "dtype": "torch.bfloat16", "limits": [0.5, 2.0]}
    assert record["scores"]["details"] == {"first": 1.5}
    file = tmp_path / "first" / "allocation.json"
    again = llama()
    result = ecoflap.prune(again.module, pruner="magnitude", allocation=ecoflap.FromFile(file), sparsity=0.5)
    ecoflap.save(result, tmp_path / "second")
    assert str(file) in (tmp_path / "second" / "recipe.yaml").read_text()


def test_a_saved_model_replaces_the_weights_of_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    one = llama()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model-00001-of-00002.safetensors").write_text("of an earlier checkpoint")
    (tmp_path / "adapter_model.safetensors").write_text("mine too")
    ecoflap.save(ecoflap.load(one.module, one.processor), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert {file.name for file in tmp_path.glob("*.safetensors")} == {
        "adapter_model.safetensors",
        "model.safetensors",
    }
    assert list(tmp_path.glob(".tmp-*")) == []
    assert outputs(one.again.from_pretrained(tmp_path), one.inputs()).shape[-1]


def test_a_saved_tokenizer_replaces_every_file_of_an_earlier_processor(tmp_path: Path) -> None:
    earlier, one = llava(), llama()
    ecoflap.save(ecoflap.load(earlier.module, earlier.processor), tmp_path)
    (tmp_path / "additional_chat_templates").mkdir()
    written = {  # by earlier releases, or a tokenizer of another kind
        "special_tokens_map.json": '{"eos_token": "circle", "pad_token": "circle"}',
        "added_tokens.json": '{"ZZZ": 40}',
        "preprocessor_config.json": "{}",
        "additional_chat_templates/tool.jinja": "no",
        "tokenizer.model": "no",
    }
    for name, text in {**written, "notes.json": "mine"}.items():
        (tmp_path / name).write_text(text)
    ecoflap.save(ecoflap.load(one.module), tmp_path)
    assert (tmp_path / "chat_template.jinja").is_file()
    assert all((tmp_path / name).read_text() == text for name, text in written.items())
    ecoflap.save(ecoflap.load(one.module, one.processor), tmp_path)
    alone = ecoflap.save(ecoflap.load(one.module, one.processor), tmp_path / "alone")
    files = {file.name for file in tmp_path.rglob("*") if file.is_file() and alone not in file.parents}
    assert files == {file.name for file in alone.iterdir()} | {"notes.json"}
    loaded = hf.AutoProcessor.from_pretrained(tmp_path)
    assert loaded.get_vocab() == one.processor.get_vocab()
    assert loaded.special_tokens_map == one.processor.special_tokens_map
    assert loaded.chat_template is None


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    one, left = llama(), abandoned(tmp_path)
    for folder in (left, left.with_name(f"{left.name}.dense")):
        folder.mkdir()
        (folder / "model.safetensors").write_text("half")
    ecoflap.save(ecoflap.load(one.module, one.processor), tmp_path, "bitmask")
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_dense_model_takes_the_record_of_a_pruned_one_away(tmp_path: Path) -> None:
    one = llama()
    result = ecoflap.prune(one.module, one.processor, pruner="magnitude", score="none", sparsity=0.5)
    ecoflap.save(result, tmp_path)
    record = {"result.json", "recipe.yaml", "allocation.json", "README.md", "masks.bits"}
    assert record <= {file.name for file in tmp_path.iterdir()}
    ecoflap.save(ecoflap.load(one.module, one.processor), tmp_path)
    assert not record & {file.name for file in tmp_path.iterdir()}


def test_a_folder_on_another_disk_and_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = llama()
    model = ecoflap.load(one.module, one.processor)
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=memory) as other:
        (tmp_path / "link").symlink_to(other)
        for _ in range(2):
            ecoflap.save(model, tmp_path / "link")
        assert (Path(other) / "model.safetensors").is_file()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    ecoflap.save(model, ".")
    assert (tmp_path / "here" / "model.safetensors").is_file()


def test_a_checkpoint_that_can_not_be_replaced_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = llama()
    model = ecoflap.load(one.module, one.processor)

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ecoflap.api.saving.os.replace", fail)
    with pytest.raises(ecoflap.UserError, match="the new one is in"):
        ecoflap.save(model, tmp_path)
    (partial,) = tmp_path.glob(".tmp-*")
    assert (partial / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("pruner", "options"),
    [
        ("sparsegpt", {"damping": 0.1}),
        ("magnitude", {"mask": "row"}),
        (ecoflap.Wanda(mask="2:4"), {}),
        ("global_magnitude", {"scope": "tower"}),
        (ecoflap.GlobalGradient(iterations=1, batch_size=4), {}),
    ],
)
def test_pruners_go_by_name_with_options_or_as_objects(pruner: Any, options: dict[str, Any]) -> None:
    one = llama()
    result = ecoflap.prune(
        one.module, one.processor, one.data, sparsity=0.5, pruner=pruner, allocation=None, **options
    )
    assert_zeros(one.module, result.masks)
    assert result.sparsity == pytest.approx(0.5, abs=1e-3)
    written = result.record.config["pruner"]
    assert options.items() <= written.items()
    assert written["_target_"].rpartition(".")[2].lower() == (
        pruner.replace("_", "") if isinstance(pruner, str) else type(pruner).__name__.lower()
    )


def test_magnitude_at_one_sparsity_needs_no_data() -> None:
    one = llama()
    result = ecoflap.prune(one.module, pruner="magnitude", score="none", sparsity=0.5)
    assert result.scores is None
    assert result.record.data == {}
    assert_zeros(one.module, result.masks)


@pytest.mark.parametrize(
    ("options", "unread"),
    [
        ({"propagate": "layer"}, ["propagate=layer"]),
        ({"tokens": "text", "propagate": "dense"}, ["propagate=dense", "tokens=text"]),
        ({"propagate": "layer", "repair": True}, []),
        ({}, []),
    ],
    ids=["propagate", "both", "repair", "none"],
)
def test_choices_about_inputs_that_nothing_reads_are_warned_of(
    options: dict[str, Any], unread: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    one = llama()
    data = one.data if options.get("repair") else None
    ecoflap.prune(one.module, one.processor, data, sparsity=0.5, pruner="magnitude", score="none", **options)
    said = [record.message for record in caplog.records if "changes nothing" in record.message]
    expected = [f"{choice} changes nothing: pruner=magnitude reads no inputs of layers" for choice in unread]
    assert said == expected


def test_zeros_that_the_masks_keep_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    one = llama()
    options = {"pruner": "magnitude", "score": "none", "allocation": None}
    ecoflap.prune(one.module, sparsity=0.5, **options)
    assert "the model had zeros before" not in caplog.text
    result = ecoflap.prune(one.module, sparsity=0.3, **options)
    assert result.sparsity == pytest.approx(0.5, abs=1e-3)
    assert re.search(r"0\.3\d* of the prunable weights were to go, and 0\.5\d* are zero", caplog.text)


def test_zeros_that_a_pruner_made_are_not_the_models(caplog: pytest.LogCaptureFixture) -> None:
    class Zeroing(ecoflap.Magnitude):
        def __call__(self, *args: Any) -> Any:
            found = super().__call__(*args)
            return found._replace(weight=found.weight * 0)

    result = ecoflap.prune(llama().module, sparsity=0.5, pruner=Zeroing(), score="none", allocation=None)
    assert result.sparsity == 1
    assert "pruner=magnitude set 0.5000 of the prunable weights to zero that its masks keep" in caplog.text
    assert "the model had zeros before" not in caplog.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_one_dtype_and_device_stay(dtype: torch.dtype) -> None:
    one = llama()
    one.module.to(dtype)
    result = ecoflap.prune(one.module, one.processor, one.data, sparsity=0.5, **QUICK)
    assert {parameter.dtype for parameter in one.module.parameters()} == {dtype}
    assert_zeros(one.module, result.masks)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_where_the_caller_takes_none(mode: Any) -> None:
    one = llama()
    wanted = ecoflap.prune(one.module, one.processor, one.data, sparsity=0.5, score="first_order")
    other = llama()
    with mode():
        found = ecoflap.prune(other.module, other.processor, other.data, sparsity=0.5, score="first_order")
        assert not torch.is_grad_enabled()
    assert found.scores.importance == wanted.scores.importance


def test_the_autocast_of_a_caller_changes_nothing() -> None:
    one, other = llama(), llama()
    wanted = ecoflap.prune(one.module, one.processor, one.data, sparsity=0.5, score="first_order")
    with torch.autocast("cpu", torch.bfloat16):
        found = ecoflap.prune(other.module, other.processor, other.data, sparsity=0.5, score="first_order")
        assert torch.is_autocast_enabled("cpu")
    assert found.scores.importance == wanted.scores.importance
    assert all(torch.equal(found.masks[name], mask) for name, mask in wanted.masks.items())


@dataclass
class Sizes:
    """A config as modules outside transformers have one."""

    width: int = 16


@pytest.mark.parametrize(
    "config", [None, Sizes(), {"width": 16}, SimpleNamespace(width=16), "tiny"], ids=repr
)
def test_any_module_with_a_loss_of_its_own(config: Any) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    module: Any = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    module.config = config

    def loss(module: nn.Module, batch: Any, copies: int = 1) -> torch.Tensor:
        return (module(batch["inputs"]) - batch["inputs"]).square().mean(dim=(1, 2))

    model = ecoflap.load(module, loss=loss)
    before = {name: type(child) for name, child in module.named_modules()}
    batches = ({"inputs": torch.randn(4, 5, 16)} for _ in range(3))
    result = ecoflap.prune(model, data=batches, sparsity=0.5, **QUICK)
    assert len(result.masks) == 8
    assert_zeros(module, result.masks)
    assert result.record.data["calibration"]["samples"] == 12
    assert before == {name: type(child) for name, child in module.named_modules()}


def test_blocks_of_which_much_stays_dense_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    class Doubled(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(inputs)

    module = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), Doubled(8, 24)) for _ in range(2)))
    model = ecoflap.load(module, loss=lambda *_: torch.zeros(1))
    result = ecoflap.prune(model, pruner="magnitude", score="none", sparsity=0.5)
    assert len(result.masks) == 2
    assert (
        "only 25.0 % of the weights in the blocks can be pruned (most of the rest, 384 weights: forward of"
        " Doubled isn't the plain product)" in caplog.text
    )


def test_an_allocation_without_scores() -> None:
    made = llama()
    model = ecoflap.load(made.module, made.processor)
    data = ecoflap.calibrate(model, made.data)
    with pytest.raises(ecoflap.UserError, match="allocation=owl runs samples through the model; give data="):
        ecoflap.allocate(model, sparsity=0.7, method="owl")
    with pytest.raises(ecoflap.UserError, match="batch_size=0 must be at least 1"):
        ecoflap.allocate(model, sparsity=0.7, method="owl", data=data, batch_size=0)
    with pytest.raises(ecoflap.UserError, match="which 5 does not divide"):
        ecoflap.allocate(model, sparsity=0.7, method="owl", data=data, pruner=ecoflap.Wanda(mask="n:5"))
    found = ecoflap.allocate(model, sparsity=0.7, method="owl", data=data, spread="auto")
    assert found.details["losses"][f"{found.details['spread']:g}"] == min(found.details["losses"].values())
    chosen = ecoflap.OWL(spread=found.details["spread"])
    result = ecoflap.prune(model, data=data, allocation=chosen, sparsity=0.7)
    assert result.allocation.keep == found.keep
    record = result.to_json()
    assert record["sparsity"]["coarse"] == "owl"
    assert result.scores is None


def test_counts_of_ones_own_need_not_meet_the_target_if_they_say_so() -> None:
    made = llama()
    model = ecoflap.load(made.module, made.processor)
    even = ecoflap.allocate(model, sparsity=0.5)
    first = next(iter(even.keep))
    own = replace(even, keep={**even.keep, first: even.sizes[first]}, granularity="layer")
    with pytest.raises(ecoflap.UserError, match=r'says target 0\.5, .* its total="as_given"'):
        ecoflap.prune(model, allocation=own, pruner="magnitude")
    result = ecoflap.prune(model, allocation=replace(own, total="as_given"), pruner="magnitude")
    assert result.masks[first].all()
    assert sum(int(mask.sum()) for mask in result.masks.values()) == sum(own.keep.values())
    assert result.to_json()["sparsity"]["total"] == "as_given"
