"""Cards and recipes from records: nothing is invented, and nothing belongs to one machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import save_file

from ecoflap.run import config as run_config
from ecoflap.storage.bitmask.convert import convert
from ecoflap.storage.file_names import BITMASK_INDEX
from ecoflap.storage.installation import PACKAGE
from ecoflap.storage.results import Result
from ecoflap.storage.sharing.base_model import describe_base, model_name
from ecoflap.storage.sharing.card import MASKED, model_card, write_card
from ecoflap.storage.sharing.recipe import read_recipe, recipe_of, write_recipe

PRUNER = {"_target_": "ecoflap.prune.wanda.Wanda", "name": "wanda", "mask": "row"}
LAYER = {"tower": "vision", "size": 8, "kept": 4, "zeros": 4, "error": None, "sparsity": 0.5}


def record(**changes: Any) -> Result:
    """A record of a model of one layer, whose run knew little."""
    values: dict[str, Any] = {
        "config": {"pruner": PRUNER, "seed": 3},
        "versions": {"ecoflap": "9.9", "wandb": None, "code": "abc"},
        "git": None,
        "model": {"name": "tiny", "fingerprint": "f", "parameters": 16, "prunable": 8, "block_weights": 8},
        "data": {},
        "metrics": {},
        "sparsity": {
            "target": 0.5,
            "total": "exact",
            "allocated_by": "allocation",
            "coarse": "none",
            "prunable": 0.5,
            "model": 0.25,
            "towers": {"vision": 0.5},
            "layers": {"w": LAYER},
        },
        "steps": {},
        "checkpoint": ".",
    }
    return Result(**{**values, **changes})


def head(card: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(card.split("---")[1])
    return values


def test_what_is_unknown_is_left_out(tmp_path: Path) -> None:
    card = model_card(record(), tmp_path)
    assert head(card) == {"tags": ["ecoflap", "pruned", "sparse", "wanda"]}
    assert "Not evaluated." in card
    assert "Calibration: none." in card
    assert "license of the dense model was not found" in card
    assert "None" not in card
    assert "wandb" not in card
    assert "| whole model | 16 | 4 | 25.00 % |" in card


def test_a_card_and_a_recipe_name_what_ecoflap_does_not_have(tmp_path: Path) -> None:
    known: dict[str, Any] = {"model": PRUNER, "calibration": PRUNER, "score": PRUNER, "allocation": PRUNER}
    card = model_card(record(config={**known, "pruner": PRUNER, "task": PRUNER}), tmp_path)
    assert "- To repeat it: `ecoflap run --config recipe.yaml`." in card
    assert "not part of ecoflap" not in card

    own = {
        **known,
        "pruner": {"_target_": "softw.Soft"},
        "task": {"tasks": {"a": {"_target_": "cloze.Cloze"}}},
    }
    sources = {"parts": {"pruner": {"name": "softw.Soft", "hash": "a1"}}, "files": {}}
    card = model_card(record(config=own, sources=sources), tmp_path)
    assert "- It needs `softw.Soft` (source `a1`), `cloze.Cloze`, not part of ecoflap:" in card
    assert "`--config-dir FOLDER`" in card
    assert "# It needs softw, cloze, not part of ecoflap" in write_recipe(tmp_path, own, "9.9").read_text()

    script = {"pruner": {"_target_": "__main__.Soft"}, "score": PRUNER, "allocation": PRUNER}
    card = model_card(record(config=script), tmp_path)
    given = "model=CHOICE calibration=CHOICE pruner=CHOICE task=CHOICE"
    assert f"`ecoflap run --config recipe.yaml {given}`, as these were objects in Python." in card
    assert "__main__" not in write_recipe(tmp_path, script, "9.9").read_text()


def test_license_task_and_origin_come_from_the_dense_models_own_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "README.md").write_text(
        "---\nlicense: other\nlicense_name: some-terms\npipeline_tag: text-generation\n---\n# Dense\n"
    )
    base = describe_base({"path": str(source)}, tmp_path)
    assert base.id is None, "a folder is no id"
    assert base.license == {"license": "other", "license_name": "some-terms"}
    assert base.pipeline_tag == "text-generation"

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(source / "README.md"))
    card = model_card(record(config={"pruner": PRUNER, "model": {"path": "org/dense"}}), tmp_path)
    assert head(card)["base_model"] == "org/dense"
    assert head(card)["license"] == "other"
    assert "was not found" not in card

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    assert describe_base({"path": "org/dense"}, tmp_path).license == {}


@pytest.mark.parametrize(
    "text", ["", "# no head", "---\nlicense: [\n---\n", "---\n- a\n---\n", "---\nlicense: mit"]
)
def test_a_card_without_a_head_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert describe_base({"path": str(tmp_path)}, tmp_path).license == {}


def test_metrics_with_and_without_errors(tmp_path: Path) -> None:
    dense, pruned = (
        {"acc": 0.75, "questions": 3000},
        {"acc": float("nan"), "questions": 3000},
    )
    metrics, errors = {"dense": {"t|x": dense}, "pruned": {"t|x": pruned}}, {"dense": {"t|x": {"acc": 0.01}}}
    card = model_card(record(metrics=metrics, standard_errors=errors), tmp_path)
    assert "| t/x | acc | 0.75 ± 0.02 | nan |" in card
    assert "| t/x | questions | 3,000 | 3,000 |" in card
    assert "±: 95 % intervals over the items of a task; one run, seed 3." in card
    card = model_card(record(metrics={"pruned": {"t": {"acc": 0.5}}}), tmp_path)
    assert "| task | metric | pruned |" in card
    assert "No standard errors are known; one run, seed 3." in card


def test_an_int_is_a_count(tmp_path: Path) -> None:
    metrics = {
        "dense": {"t": {"acc": 50.0, "guesses": 25000}},
        "pruned": {"t": {"acc": 25000.0, "guesses": 0}},
    }
    card = model_card(record(metrics=metrics), tmp_path)
    assert "| t | acc | 50 | 2.5e+04 |" in card
    assert "| t | guesses | 25,000 | 0 |" in card


def test_files_are_named_without_their_folders(tmp_path: Path) -> None:
    config = {
        "pruner": PRUNER,
        "model": {"name": "causal_lm", "path": "/home/me/my-model"},
        "calibration": {"name": "text", "path": "/home/me/train.txt", "sequence_length": 64},
        "task": {"name": "text", "path": "/home/me/test.txt", "sequence_length": 128},
    }
    data = {"calibration": {"name": "text", "samples": 32, "fingerprint": "c"}}
    card = model_card(record(config=config, data=data), tmp_path)
    assert "- Dense model: `my-model`, fingerprint `f`." in card
    assert "- Calibration: 32 samples of `text`, `train.txt`, sequence_length=64, fingerprint `c`." in card
    assert "- Task `text`: `test.txt`, sequence_length=128." in card
    assert "/home/me" not in card
    on_the_hub = config | {"model": {"name": "causal_lm", "path": "facebook/opt-125m"}}
    assert "- Dense model: `facebook/opt-125m`, f" in model_card(record(config=on_the_hub), tmp_path)
    bare = model_card(record(data=data), tmp_path)
    assert "- Dense model: fingerprint `f`." in bare
    assert "- Calibration: 32 samples of `text`, fingerprint `c`." in bare
    assert "- Task" not in bare


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (None, "choice"),
        ("/elsewhere/site-packages/ecoflap/mini/blip_vqa", "choice"),  # embedded in another installation
        ("Salesforce/blip-vqa-base", "Salesforce/blip-vqa-base"),
        ("/models/my-blip", "my-blip"),
        ("../my-blip", "my-blip"),
        ("~/my-blip", "my-blip"),
        ("../checkpoint", "checkpoint"),
        ("/runs/first/checkpoint", "first/checkpoint"),
    ],
)
def test_a_model_is_named_by_its_path_unless_it_is_embedded(path: str | None, name: str) -> None:
    assert model_name({"path": path}, "choice") == name


def test_samples_that_no_step_looked_at_are_no_calibration(tmp_path: Path) -> None:
    data = {"calibration": {"name": "text", "samples": 2000, "fingerprint": "c", "unused": True}}
    card = model_card(record(data=data), tmp_path)
    assert "- Calibration: none; 2,000 samples were drawn, and no step looked at them.\n" in card


def test_a_card_names_the_data_of_a_pruner_that_trains_and_of_the_fine_tuning(tmp_path: Path) -> None:
    drawn = {"name": "chat", "samples": 8, "fingerprint": "c", "unused": True}
    data = {
        "calibration": drawn,
        **{step: {"name": "chat", "samples": 38575} for step in ("prune", "finetune")},
    }
    config = {"pruner": {"name": "upop"}, "calibration": {"name": "chat", "path": "chats.jsonl"}}
    card = model_card(record(config=config, data=data), tmp_path)
    assert (
        "- Training by the pruner: 38,575 samples of `chat`, `chats.jsonl`.\n"
        "- Fine-tuning: 38,575 samples of `chat`, `chats.jsonl`.\n"
    ) in card
    assert "pruned and trained by `upop`." in card
    assert "pruned in one shot by" in model_card(record(), tmp_path)


def test_a_card_says_how_inputs_were_measured_and_how_many_samples_were_scored(tmp_path: Path) -> None:
    config = {"pruner": PRUNER, "propagate": "layer", "tokens": "text"}
    data = {"calibration": {"name": "text", "samples": 2000, "fingerprint": "c"}}
    scores = {"method": "zeroth_order", "importance": {}, "details": {"samples": 1024}}
    measured = {**record().sparsity, "errors": "uncorrelated"}
    card = model_card(record(config=config, data=data, scores=scores, sparsity=measured), tmp_path)
    assert (
        "- Calibration: 2,000 samples of `text`, fingerprint `c`.\n"
        "- Scores: `zeroth_order` on 1,024 samples.\n"
        "- Inputs of layers: propagate=layer, tokens=text.\n"
    ) in card
    blind = model_card(record(config=config), tmp_path)
    assert "propagate" not in blind, "a pruner without data measures none"
    assert "Scores" not in blind


def test_n_of_m_and_whole_units_are_told_apart(tmp_path: Path) -> None:
    card = model_card(record(config={"pruner": {**PRUNER, "mask": "2:4"}}), tmp_path)
    assert "2:4" in head(card)["tags"]
    assert "Its zeros lie in the pattern 2:4." in card

    (tmp_path / "config.json").write_text(json.dumps({"kept_units": {"a": 1}}))
    units = {**record().sparsity, "total": "units"}
    card = model_card(record(sparsity=units, config={"pruner": {"name": "upop"}}), tmp_path)
    assert head(card)["tags"] == ["ecoflap", "pruned", "structured", "upop"]
    assert "16 parameters remain" in card
    assert "not with plain `from_pretrained`" in card
    assert "does less work" in card
    assert "runs as fast" not in card


@pytest.mark.parametrize("files", ["model.safetensors", BITMASK_INDEX])
def test_a_token_reaches_as_many_experts_as_before(files: str, tmp_path: Path) -> None:
    (tmp_path / files).touch()
    found = {"details": {"experts": {"layers.0.mlp.experts": {"kept": [0, 2]}}}}
    units = {**record().sparsity, "total": "units"}
    card = model_card(record(sparsity=units, allocation=found), tmp_path)
    assert "takes less" in card
    assert "less work" not in card
    assert "as many experts as in the dense model" in card


def test_a_card_of_someone_else_stays(tmp_path: Path) -> None:
    assert write_card(tmp_path, record()) is not None
    assert write_card(tmp_path, replace(record(), checkpoint=None)) is not None, "ours is replaced"
    (tmp_path / "README.md").write_text("# My own words\n")
    assert write_card(tmp_path, record()) is None
    assert (tmp_path / "README.md").read_text() == "# My own words\n"


@pytest.mark.parametrize("total", ["exact", "units"])
@pytest.mark.parametrize("form", ["bitmask", "coded"])
def test_a_converted_model_has_the_card_of_its_form(tmp_path: Path, form: str, total: str) -> None:
    made = record(sparsity={**record().sparsity, "total": total})
    dense, small, again = (tmp_path / name for name in ("dense", "small", "again"))
    dense.mkdir()
    save_file({"w": torch.zeros(2, 2)}, dense / "model.safetensors")
    write_card(dense, made)
    convert(dense, small, form)
    card = (small / "README.md").read_text()
    assert card == model_card(made, small)
    assert "ecoflap.load_pruned(FOLDER)" in card
    assert "ecoflap convert FOLDER OUT --to dense" in card
    assert "stored as zeros" not in card
    assert "special format" not in card
    convert(small, again, "dense")
    assert (again / "README.md").read_text() == (dense / "README.md").read_text()


def test_a_card_in_the_words_of_another_version_is_adapted(tmp_path: Path) -> None:
    (dense := tmp_path / "dense").mkdir()
    save_file({"w": torch.zeros(2, 2)}, dense / "model.safetensors")
    write_card(dense, made := record())
    card = (dense / "README.md").read_text()
    (dense / "README.md").write_text(card.replace(MASKED, "The zeros are stored.\nIt is as large as before."))
    convert(dense, tmp_path / "small", "coded")
    assert (tmp_path / "small" / "README.md").read_text() == model_card(made, tmp_path / "small")


def test_the_card_of_a_dense_form_names_the_way_to_store_it_without_zeros(tmp_path: Path) -> None:
    card = model_card(record(), tmp_path)
    assert "stored as zeros" in card
    assert "ecoflap convert FOLDER OUT --to coded" in card


def test_running_without_zeros_is_named_where_a_layer_is_large_and_sparse_enough(tmp_path: Path) -> None:
    way = "ecoflap.load_pruned(FOLDER, sparse=True)"
    assert way in model_card(with_layer(2**15, 10_000), tmp_path)
    assert way not in model_card(with_layer(2**15, 9_000), tmp_path)
    assert way not in model_card(with_layer(2**14, 10_000), tmp_path)
    (dense := tmp_path / "dense").mkdir()
    save_file({"w": torch.zeros(2, 2)}, dense / "model.safetensors")
    write_card(dense, with_layer(2**15, 10_000))
    convert(dense, tmp_path / "small", "bitmask")
    assert (tmp_path / "small" / "README.md").read_text().count(way) == 1


def with_layer(size: int, zeros: int) -> Result:
    """A record of a model with one more layer."""
    layer = {**LAYER, "size": size, "kept": size - zeros, "zeros": zeros, "sparsity": zeros / size}
    return record(sparsity={**record().sparsity, "layers": {"w": LAYER, "v": layer}})


def test_a_card_of_someone_else_is_converted_as_it_is(tmp_path: Path) -> None:
    (dense := tmp_path / "dense").mkdir()
    save_file({"w": torch.zeros(2, 2)}, dense / "model.safetensors")
    (dense / "README.md").write_text(f"# My own words\n\n{MASKED}\n")
    convert(dense, tmp_path / "small", "bitmask")
    assert (tmp_path / "small" / "README.md").read_text() == (dense / "README.md").read_text()


def test_a_recipe_is_of_no_machine(tmp_path: Path) -> None:
    config = {
        "model": {"_target_": "x.Y", "path": str(PACKAGE / "mini" / "blip2"), "hub_token": "hf_secret"},
        "task": {"_target_": "x.Z", "prompt": "${not} {}", "rate": 1e-5, "files": ["/data/a"]},
        "tracking": {"_target_": "x.W"},
        "score": None,
        "allocation": {"_target_": "x.A"},
        "pruner": {"name": "given as an object"},
        "towers": None,
        "sparsity": 0.5,
        "device": "cuda",
        "cache": "/home/me/cache",
        "runtime": {"offload": "disk"},
    }
    file = write_recipe(tmp_path, config, None)
    text = file.read_text()
    assert not any(word in text for word in ("hf_secret", "cuda", "/home/me", "offload", str(PACKAGE)))
    assert "Not known here, to be given beside it: calibration, pruner" in text
    values = read_recipe(file)
    assert set(values) == {"model", "task", "score", "allocation", "towers", "sparsity"}
    assert values["score"] == {"name": "none"}
    run_config.register()
    resolved: Any = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    assert resolved["model"]["path"] == str(PACKAGE / "mini" / "blip2")
    assert resolved["task"] == config["task"]
    assert recipe_of(resolved) == recipe_of(config)


@pytest.mark.parametrize(
    "text", ["${x}", "\\${x}", "C:\\${x}\\", "\\\\${a}\\b ${c}", "a\\", "???", "1e-4", "# ~"]
)
def test_texts_of_a_recipe_come_back(text: str, tmp_path: Path) -> None:
    file = write_recipe(tmp_path, {"model": {"_target_": "x.Model", "prompt": text}}, None)
    read: Any = OmegaConf.to_container(OmegaConf.create(read_recipe(file)), resolve=True)
    assert read["model"]["prompt"] == text
