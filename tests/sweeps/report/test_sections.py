"""Which runs stand together, and which of two like ones counts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ecoflap.cli.command import main
from ecoflap.errors import UserError
from ecoflap.storage.files import write_json
from ecoflap.sweeps.report.blip2_table import collect
from ecoflap.sweeps.report.metrics import make_tables
from ecoflap.sweeps.report.runs import read_runs, read_unfinished
from ecoflap.sweeps.report.sections import make_sections
from tests.sweeps.report.conftest import write_run


def start(folder: Path, name: str, *overrides: str) -> None:
    (folder / name / ".hydra").mkdir(parents=True)
    (folder / name / ".hydra" / "overrides.yaml").write_text(
        "".join(f"- {override}\n" for override in overrides) or "[]\n"
    )


def test_a_section_per_model_and_tasks(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 70.0)
    write_run(tmp_path, "b", 70.0, model__name="other")
    write_run(tmp_path, "c", {"text": {"perplexity": 9.0}, "vqa": {"accuracy": 1.0}}, calibration__name="c4")
    write_run(tmp_path, "d", {}, record={"metrics": {"dense": {"vqa": {"accuracy": 80.0}}}})
    sections = make_sections(read_runs(tmp_path))
    assert [section.title for section in sections] == [
        "other on vqa",
        "tiny, not evaluated",
        "tiny on text, vqa",
        "tiny on vqa",
    ]
    assert {method.label for section in sections for method in section.methods} == {"wanda, zeroth order"}


def test_of_two_like_runs_the_newer_one_counts_and_stderr_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = write_run(tmp_path, "z-old", 1.0), write_run(tmp_path, "a-new", 2.0)
    os.utime(old, (1, 1))
    os.utime(new, (2, 2))
    (section,) = make_sections(read_runs(tmp_path))
    assert [run.name for run in section.runs] == ["a-new"]
    assert "z-old and a-new both have seed 0; only a-new, the newer one, is shown" in capsys.readouterr().err


def test_runs_without_a_result_are_known_by_what_hydra_left(tmp_path: Path) -> None:
    start(tmp_path, "10", "sparsity=0.9", "'+sweep/case=blip2_mini'")
    start(tmp_path, "9")
    start(tmp_path, "8", "sparsity=0.5")
    write_run(tmp_path, "8", 70.0)
    assert [(run.name, run.overrides) for run in read_unfinished(tmp_path)] == [
        ("9", []),
        ("10", ["sparsity=0.9", "+sweep/case=blip2_mini"]),
    ]
    assert [run.name for run in read_runs(tmp_path)] == ["8"]


def test_a_fine_tuned_model_counts_as_it_is_at_the_end(tmp_path: Path) -> None:
    figures = {name: {"vqa": {"accuracy": value}} for name, value in (("dense", 80.0), ("pruned", 60.0))}
    tuned = {"metrics": {**figures, "finetuned": {"vqa": {"accuracy": 75.0}}}}
    write_run(tmp_path, "full", 0.0, record=tuned, finetune={"name": "full"})
    write_run(tmp_path, "lora", 0.0, record=tuned, finetune={"name": "lora"})
    write_run(tmp_path, "plain", 60.0, finetune={"name": "full"})
    (section,) = make_sections(read_runs(tmp_path))
    (table,) = make_tables([section])
    shown = {method.setting: [one.pruned for one in row[0.5].values()] for method, row in table.cells.items()}
    assert shown == {"finetune=full": [75.0], "finetune=lora": [75.0], "": [60.0]}


def test_one_run_is_named_by_its_own_folder(tmp_path: Path) -> None:
    write_run(tmp_path, "run", 70.0)
    assert [run.name for run in read_runs(tmp_path / "run")] == ["run"]
    start(tmp_path, "stopped")
    assert [run.name for run in read_unfinished(tmp_path / "stopped")] == ["stopped"]


def test_a_job_that_never_began_is_without_a_result(tmp_path: Path) -> None:
    """Hydra writes nothing into the folder of a job that fails as it is started."""
    jobs = [{"number": number, "overrides": [f"seed={number}"], "id": None} for number in (-1, 0, 1)]
    write_json(tmp_path / "sweep" / "jobs.json", {"launcher": "local", "jobs": jobs})
    write_run(tmp_path, "sweep/0", 70.0)
    found = read_unfinished(tmp_path)
    assert [(run.name, run.overrides) for run in found] == [("sweep/1", ["seed=1"])]


def test_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no result\.json below"):
        read_runs(tmp_path)
    start(tmp_path, "0", "sparsity=0.9")
    with pytest.raises(UserError, match="1 runs there left no result"):
        read_runs(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        read_runs(tmp_path / "missing")


def test_models_pruned_from_python_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "run", 70.0)
    saved = write_run(tmp_path, "saved", 70.0, record={"checkpoint": "."})
    record = json.loads(saved.read_text())
    del record["config"]["model"]
    write_json(saved, record)
    assert [run.name for run in read_runs(tmp_path)] == ["run"]
    assert f"left out: {saved} is of ecoflap.save" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"no run below .*saved: ecoflap\.save wrote"):
        read_runs(tmp_path / "saved")
    assert list(collect([saved])) == list(collect([]))


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    """A folder with a run that saved its model in ``run``, and the model in another form in ``small``."""
    tasks = {"vqav2": {"accuracy": 60.0}, "vqa": {"accuracy": float("nan")}}
    path = write_run(tmp_path, "run", tasks, record={"checkpoint": "checkpoint"})
    (path.parent / "checkpoint").mkdir()
    save_file({"a": torch.zeros(64, 64)}, path.parent / "checkpoint" / "model.safetensors")
    write_json(
        path.parent / "checkpoint" / "result.json", {**json.loads(path.read_text()), "checkpoint": "."}
    )
    assert main(["convert", str(path.parent), str(tmp_path / "small"), "--to", "coded"]) == 0
    os.utime(tmp_path / "small" / "result.json")
    return tmp_path


def test_a_converted_model_is_no_run(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is newer, but lacks what the run left in its folder; alone it stands for the run."""
    capsys.readouterr()
    assert main(["report", str(converted)]) == 0
    said = capsys.readouterr().err
    assert f"left out: {converted}/small/result.json is beside a copy of the model of {converted}/run" in said
    assert "the newer one" not in said
    assert [run.name for run in read_runs(converted)] == ["run"]
    (converted / "run").rename(converted.with_name("elsewhere"))
    assert [run.name for run in read_runs(converted)] == ["small"]


def test_another_run_in_the_folder_of_a_model_is_shown(converted: Path) -> None:
    """Its record is not that of the run beside it."""
    record = json.loads((converted / "small" / "result.json").read_text())
    write_json(converted / "small" / "result.json", {**record, "config": {**record["config"], "seed": 1}})
    assert [run.name for run in read_runs(converted)] == ["run", "small"]


def test_figures_of_towers_from_a_converted_model_are_its_run_s(converted: Path) -> None:
    measured = {"metrics": {"dense": {"nocaps": {"cider": 100.0}}}}
    source = str(converted / "small")
    write_run(converted, "captions", {}, record=measured, model__vision_from=source)
    rows = collect(sorted(converted.glob("*/result.json")))
    assert rows == {"wanda/zeroth_order/s0.5/seed0": {"VQAv2": 60.0, "CIDEr": 100.0}}


def test_a_record_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = write_run(tmp_path, "a", 70.0)
    text = path.read_text()
    path.write_text(text.replace('"schema": 1', '"schema": 99'))
    with pytest.raises(UserError, match=r"a/result\.json has schema 99, but this version reads up to 1"):
        read_runs(tmp_path)
    path.write_text(text.replace('"pruner": {', '"other": {'))
    with pytest.raises(UserError, match=r"a/result\.json lacks pruner\.name in its config"):
        read_runs(tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_runs(tmp_path)
