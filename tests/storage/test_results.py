"""The result record and its check against the saved weights."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ecoflap.cli.verify import main
from ecoflap.errors import UserError
from ecoflap.run.folder import finished
from ecoflap.storage.bitmask import convert as converting
from ecoflap.storage.masks import load_masks, save_masks
from ecoflap.storage.results import LayerCount, Result, environment, redact, sparsity_section, verify
from ecoflap.storage.results.environment import git_state
from ecoflap.storage.results.record import read_result

pytestmark = pytest.mark.long

LAYER = "model.layers.0.self_attn.q_proj.weight"


def make_result(**changes: Any) -> Result:
    fields: dict[str, Any] = {
        **environment(),
        "config": {"model": {"name": "tiny"}, "sparsity": 0.5},
        "model": {"name": "tiny", "fingerprint": "f", "parameters": 200, "prunable": 100},
        "data": {"calibration": "f"},
        "metrics": {"dense": {"task": {"accuracy": 0.5}}, "pruned": {"task": {"accuracy": 0.25}}},
        "sparsity": sparsity_section(
            {"a": LayerCount("text", 60, 30, 31, 0.1), "b": LayerCount("vision", 40, 20, 20)}, 0.5, 200
        ),
        "steps": {"score": {"seconds": 1.5, "peak_memory_bytes": 7}},
    }
    return Result(**{**fields, **changes})


def make_run(folder: Path, sharded: bool = False) -> Path:
    """A pruned tiny Llama with its masks and its record, as the pipeline leaves them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    masks, layers = {}, {}
    for name, weight in model.named_parameters():
        if ".layers." in name and "norm" not in name:
            masks[name] = torch.rand(weight.shape) < 0.5
            weight.data *= masks[name]
            layers[name] = LayerCount(
                "text", weight.numel(), int(masks[name].sum()), int((weight == 0).sum()), 0.125
            )
    model.save_pretrained(folder / "checkpoint", max_shard_size="4KB" if sharded else "1GB")
    save_masks(folder / "checkpoint" / "masks.bits", masks)
    parameters, prunable = (
        sum(weight.numel() for weight in model.parameters()),
        sum(layer.size for layer in layers.values()),
    )
    model_section = {"name": "tiny", "fingerprint": "f", "parameters": parameters, "prunable": prunable}
    make_result(
        model=model_section, sparsity=sparsity_section(layers, 0.5, parameters), checkpoint="checkpoint"
    ).write(folder / "result.json")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def change_weights(run: Path, name: str, change: Any) -> None:
    file = next(path for path in (run / "checkpoint").glob("model*.safetensors") if name in load_file(path))
    weights = load_file(file)
    weights[name] = change(weights[name].clone())
    save_file(weights, file, metadata={"format": "pt"})


def change_record(run: Path, change: Any) -> None:
    record = json.loads((run / "result.json").read_text())
    change(record)
    (run / "result.json").write_text(json.dumps(record))


def revive(run: Path) -> Any:
    """Sets the first removed weight of ``LAYER`` to 1."""
    mask = load_masks(run / "checkpoint" / "masks.bits")[LAYER]

    def change(weight: torch.Tensor) -> torch.Tensor:
        weight[tuple((~mask).nonzero()[0])] = 1.0
        return weight

    return change


# ---- the record


def test_round_trip_and_schema_first(tmp_path: Path) -> None:
    result = make_result()
    result.write(tmp_path / "new" / "result.json")
    assert Result.read(tmp_path / "new" / "result.json") == result
    assert list(json.loads((tmp_path / "new" / "result.json").read_text()))[:2] == ["schema", "status"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["result.json"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.status = "failed"  # type: ignore[misc]


def test_nan_and_infinity_are_strings_in_the_file_and_floats_in_the_numeric_fields(tmp_path: Path) -> None:
    metrics = {
        "dense": {"task": {"perplexity": math.inf}},
        "pruned": {"task": {"perplexity": math.nan, "delta": -math.inf}},
    }
    make_result(metrics=metrics, config={"name": "nan", "limit": math.inf}).write(tmp_path / "result.json")
    text = (tmp_path / "result.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"bare {name}"))
    read = Result.read(tmp_path / "result.json")
    assert read.metrics["dense"]["task"]["perplexity"] == math.inf
    assert read.metrics["pruned"]["task"]["delta"] == -math.inf
    assert math.isnan(read.metrics["pruned"]["task"]["perplexity"])
    assert read.config == {"name": "nan", "limit": "inf"}


def test_sparsity_figures() -> None:
    section = make_result().sparsity
    assert section["prunable"] == 51 / 100
    assert section["model"] == 51 / 200
    assert section["towers"] == {"text": 31 / 60, "vision": 0.5}
    assert section["layers"]["a"] == {
        "tower": "text",
        "size": 60,
        "kept": 30,
        "zeros": 31,
        "sparsity": 31 / 60,
        "error": 0.1,
    }
    assert sparsity_section({}, None, 0)["prunable"] == 0.0


@pytest.mark.parametrize("content", ["{", "[1]", "{}", '{"schema": "one"}', '{"schema": 1}', "\x00"])
def test_files_that_are_not_ours(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(ValueError, match="result record"):
        Result.read(tmp_path / "result.json")


def test_missing_and_newer_records(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no result record"):
        Result.read(tmp_path / "result.json")
    make_result(schema=99).write(tmp_path / "result.json")
    with pytest.raises(ValueError, match=r"schema 99.*update ecoflap"):
        Result.read(tmp_path / "result.json")


def test_secrets_are_redacted_and_nothing_else(tmp_path: Path) -> None:
    config = {
        "hub": [
            {
                "hf_token": "x",
                "HF_TOKEN": "x",
                "token": "x",
                "api_key": "x",
                "wandb_api_key": "x",
                "password": 1234,
                "client_secret": ["x"],
                "read_token": ["x"],
            }
        ],
        "calibration": {
            "key": "x",
            "max_new_tokens": 5,
            "token": None,
            "password": "",
            "use_token": True,
            "encoder_token": 30523,
            "image_token": "<|image|>",
            "mask_token": "[MASK]",
            "tokens": "x",
            "monkey": "x",
        },
    }
    safe = redact(config)
    assert set(safe["hub"][0].values()) == {"<redacted>"}
    assert safe["calibration"] == config["calibration"]
    make_result(config={"api_key": "hunter2"}).write(tmp_path / "result.json")
    assert "hunter2" not in (tmp_path / "result.json").read_text()


def test_a_result_whose_secrets_are_redacted_is_known_again(tmp_path: Path) -> None:
    config = {"tracking": {}, "model": {"hub_token": "x", "encoder_token": 30523}, "sparsity": 0.5}
    make_result(config=config).write(tmp_path / "result.json")
    assert finished(tmp_path, config) is not None
    with pytest.raises(UserError, match=r"\(sparsity: 0\.5 -> 0\.6\)"):
        finished(tmp_path, {**config, "sparsity": 0.6})


@pytest.mark.parametrize("changes", [{"schema": 99}, {"steps": None}])
def test_a_result_of_another_release_is_not_replaced_by_another_config(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    config, file = {"sparsity": 0.5}, tmp_path / "result.json"
    make_result(config=config).write(file)
    record = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in record.items() if value is not None}))
    assert read_result(tmp_path) is None
    assert finished(tmp_path, config) is None, "the same run is run again"
    with pytest.raises(UserError, match=r"\(sparsity: 0\.5 -> 0\.6\)"):
        finished(tmp_path, {"sparsity": 0.6})


def test_a_token_of_a_vocabulary_makes_another_run(tmp_path: Path) -> None:
    config = {"model": {"image_token": "<image>"}}
    make_result(config=config).write(tmp_path / "result.json")
    assert finished(tmp_path, config) is not None
    with pytest.raises(UserError, match=r"model\.image_token: <image> -> <img>"):
        finished(tmp_path, {"model": {"image_token": "<img>"}})


def test_environment_names_versions_and_only_the_projects_own_commit(tmp_path: Path) -> None:
    assert (
        environment()["versions"]["torch"] == torch.__version__.split("+")[0]
        or environment()["versions"]["torch"] == torch.__version__
    )
    assert git_state(tmp_path) is None

    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t", *arguments],
            check=True,
            capture_output=True,
        )

    git("init")
    assert git_state(tmp_path) is None
    (tmp_path / "file").write_text("1")
    git("add", ".")
    git("commit", "-m", "one")
    state = git_state(tmp_path)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "file").write_text("2")
    assert git_state(tmp_path) == {"commit": state["commit"], "dirty": True}
    (tmp_path / "installed").mkdir()
    assert git_state(tmp_path / "installed") is None


# ---- verify


@pytest.mark.parametrize("sharded", [False, True])
def test_sound_run_is_equal(tmp_path: Path, sharded: bool, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, sharded)
    assert (run / "checkpoint" / "model.safetensors.index.json").exists() == sharded
    assert verify(run) == []
    assert main([str(run)]) == 0
    assert "equal: the zeros and masks of" in (out := capsys.readouterr().out)
    assert "text" in out


@pytest.mark.parametrize("sharded", [False, True])
def test_one_flipped_weight_is_found_from_the_command_line(tmp_path: Path, sharded: bool) -> None:
    run = make_run(tmp_path, sharded)
    change_weights(run, LAYER, revive(run))
    command = [sys.executable, "-m", "ecoflap", "verify", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 1, done.stderr
    differences = [line for line in done.stdout.splitlines() if line.startswith("difference")]
    assert len(differences) == 2
    assert all(LAYER in line for line in differences)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_kept_weight_that_is_not_finite_is_found(run: Path, value: float) -> None:
    mask = load_masks(run / "checkpoint" / "masks.bits")[LAYER]
    change_weights(run, LAYER, lambda weight: weight.masked_fill(mask & (mask.cumsum(1) == 1), value))
    assert verify(run) == [f"{LAYER}: has 16 weights that are NaN or infinite"]


def test_missing_and_reshaped_layers_are_named(run: Path) -> None:
    file = run / "checkpoint" / "model.safetensors"
    weights = load_file(file)
    weights["other"] = weights.pop(LAYER)
    save_file(weights, file)
    assert verify(run) == [f"{LAYER}: is in the record but not in the checkpoint"]
    weights[LAYER] = weights.pop("other").reshape(8, 32)
    save_file(weights, file)
    assert verify(run) == [f"{LAYER}: its mask has shape [16, 16], the weight [8, 32]"]


def test_masks_are_compared(run: Path) -> None:
    path = run / "checkpoint" / "masks.bits"
    masks = load_masks(path)
    save_masks(
        path, {**masks, LAYER: torch.ones_like(masks[LAYER]), "extra": torch.ones(1, dtype=torch.bool)}
    )
    first, second = verify(run)
    assert "mask keeps 256" in first
    assert second == "extra: has a mask but is not in the record"
    del masks[LAYER]
    save_masks(path, masks)
    assert verify(run) == [f"{LAYER}: has no mask in masks.bits"]


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("prunable", "sparsity of prunable"),
        ("model", "sparsity of model"),
        ("towers", "sparsity of tower text"),
        ("layers", f"{LAYER}: sparsity"),
    ],
)
def test_figures_that_are_not_the_sums_are_found(run: Path, field: str, expected: str) -> None:
    def change(record: dict[str, Any]) -> None:
        section = record["sparsity"]
        place, name = {
            "towers": (section["towers"], "text"),
            "layers": (section["layers"].get(LAYER), "sparsity"),
        }.get(field, (section, field))
        place[name] += 1e-4

    change_record(run, change)
    (difference,) = verify(run)
    assert difference.startswith(expected)


def test_another_target_than_what_the_masks_keep_is_found(run: Path) -> None:
    counts = Result.read(run / "result.json").sparsity["layers"].values()
    size, kept = sum(layer["size"] for layer in counts), sum(layer["kept"] for layer in counts)

    def change(total: str | None, target: float, requested: float) -> list[str]:
        def set_figures(record: dict[str, Any]) -> None:
            record["sparsity"] |= {"total": total, "target": target}
            record["config"]["sparsity"] = requested

        change_record(run, set_figures)
        return verify(run)

    met = 1 - kept / size
    assert change("exact", met, met) == []
    assert change("exact", 1 - (kept + 0.5) / size, 1 - (kept + 0.5) / size) == []  # rounded down
    of_masks = f"the masks keep {kept} of {size} weights, which is not the target of "
    assert change("exact", 0.7, 0.7) == [f"{of_masks}0.7"]
    more, fewer = 1 - (kept + 2) / size, 1 - (kept - 1) / size
    assert change("exact", more, more) == [f"{of_masks}{more}"]
    assert change("exact", fewer, fewer) == [f"{of_masks}{fewer}"]
    assert change("groups", 0.7, 0.7) == []
    assert change("as_given", 0.7, 0.6) == []
    assert change("units", 0.7, 0.6) == ["sparsity.target is 0.7 in the record, its config has sparsity=0.6"]


def test_totals_of_the_model_and_unknown_towers(run: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        record["model"]["prunable"] += 1
        record["sparsity"]["towers"]["vision"] = 0.5

    change_record(run, change)
    assert [difference.split(" is ")[0] for difference in verify(run)] == [
        "model.prunable",
        "sparsity of tower vision",
    ]


def test_record_without_layers_is_a_difference(run: Path) -> None:
    result = Result.read(run / "result.json")
    empty = sparsity_section({}, 0.5, result.model["parameters"])
    dataclasses.replace(result, sparsity=empty).write(run / "result.json")
    assert "the record lists no layers" in verify(run)


def test_damaged_checkpoint_is_a_difference(run: Path) -> None:
    file = run / "checkpoint" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert main([str(run)]) == 1
    assert all("cannot be read" in difference for difference in verify(run))


def test_damage_in_files_without_pruned_tensors_is_found(tmp_path: Path) -> None:
    run = make_run(tmp_path, sharded=True)
    index = json.loads((run / "checkpoint" / "model.safetensors.index.json").read_text())["weight_map"]
    pruned = {index[name] for name in Result.read(run / "result.json").sparsity["layers"]}
    name, file = next((name, file) for name, file in index.items() if file not in pruned)
    path = run / "checkpoint" / file
    save_file({"other": load_file(path)[name]}, path)
    assert verify(run) == [f"{name}: is not in {file}, where the index has it"]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (difference,) = verify(run)
    assert difference.startswith(f"{file} cannot be read")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=file):
        verify(run)


def test_a_changed_bit_in_a_shard_without_pruned_tensors_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converting, "SHARD_BYTES", 1000)
    run = make_run(tmp_path)
    (run / "checkpoint").rename(run / "dense")
    converting.convert(run / "dense", run / "checkpoint", "bitmask")
    assert verify(run) == []
    shards = json.loads((run / "checkpoint" / "bitmask.index.json").read_text())["shards"]
    file = next(file for file, shard in shards.items() if "lm_head.weight" in shard["tensors"])
    content = bytearray((run / "checkpoint" / file).read_bytes())
    content[-1] ^= 1
    (run / "checkpoint" / file).write_bytes(content)
    (difference,) = verify(run)
    assert f"{file} is damaged" in difference


@pytest.mark.parametrize("missing", ["result.json", "checkpoint/model.safetensors", "checkpoint/masks.bits"])
def test_missing_files_exit_with_two(run: Path, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / missing).unlink()
    assert main([str(run)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: cannot verify")


def test_missing_shard_no_checkpoint_and_incomplete_layers_exit_with_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, sharded=True)
    next((run / "checkpoint").glob("model-*")).unlink()
    assert main([str(run)]) == 2
    change_record(run, lambda record: record["sparsity"]["layers"][LAYER].pop("tower"))
    assert main([str(run)]) == 2
    assert f"layer {LAYER} lacks tower" in capsys.readouterr().err
    change_record(run, lambda record: record.update(checkpoint=None))
    assert main([str(run)]) == 2
    said = capsys.readouterr().err
    assert said == f"error: cannot verify {run}: it saved no checkpoint; run it again with model.save=true\n"
    assert main([str(run / "result.json")]) == 2
    assert capsys.readouterr().err == f"error: {run / 'result.json'} is a file; give the folder of a run\n"


def test_bad_usage_exits_with_two() -> None:
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
