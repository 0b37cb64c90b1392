"""Runs that ``wandb agent`` starts, and reports in W&B; offline, with the agent's variables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ecoflap.cli import report
from tests.cli import forked
from tests.console.test_tracking import exit_codes, load_reader, run_file
from tests.sweeps.report.conftest import write_run

pytestmark = pytest.mark.long

EXAMPLE = Path(__file__).parents[2] / "examples" / "wandb_sweep.yaml"
SHORT = ["task.limit=40", "calibration.samples=16", "device=cpu", "tracking.mode=offline"]


def command(chosen: dict[str, Any]) -> list[str]:
    """The arguments of ecoflap that the agent makes of the example's command."""
    sweep = yaml.safe_load(EXAMPLE.read_text())
    assert {
        name: value in sweep["parameters"][name]["values"] for name, value in chosen.items()
    } == dict.fromkeys(sweep["parameters"], True)
    program, verb, *arguments, last = sweep["command"]
    assert (program, verb, last) == ("ecoflap", "run", "${args_no_hyphens}")
    return [*arguments, *(f"{name}={value}" for name, value in chosen.items())]


def test_a_run_of_an_agent_belongs_to_its_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"pruner": "wanda", "score": "none", "sparsity": 0.6}
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(
        yaml.safe_dump({"wandb_version": 1, **{k: {"value": v} for k, v in chosen.items()}})
    )
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SWEEP_ID": "sweep123",
        "WANDB_RUN_ID": "run45678",
        "WANDB_PROJECT": "theirs",
        "WANDB_SWEEP_PARAM_PATH": str(parameters),
    }.items():
        monkeypatch.setenv(name, value)
    arguments = [*command(chosen), *SHORT, f"hydra.run.dir={tmp_path / 'run'}", f"cache={tmp_path / 'cache'}"]
    done = forked.main(arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    file = run_file(tmp_path / "run")
    assert file.name == "run-run45678.wandb"
    reader = load_reader()
    (started,) = [one.run for one in reader.records(str(file)) if one.WhichOneof("record_type") == "run"]
    assert (started.sweep_id, started.project) == ("sweep123", "theirs")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (
        reader.read(str(file))["summary"]["headline"] == result["metrics"]["pruned"]["easy_vqa"]["accuracy"]
    )


def test_a_report_in_wandb_has_the_plots_the_table_and_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    for seed in (0, 1):
        write_run(tmp_path / "sweep", str(seed), 70.0 + seed, seed=seed)
    assert report.main([str(tmp_path / "sweep"), "--wandb", "offline", "--project", "ours"]) == 0
    output = tmp_path / "sweep" / "report"
    file = run_file(output)
    assert exit_codes(load_reader(), file) == [0]
    plots = {path.stem for path in output.glob("*.png")}
    logged = file.parent.glob("files/media/images/report/*.png")
    assert {path.stem.rsplit("_", 2)[0] for path in logged} == plots
    (table,) = file.parent.glob("files/media/table/*.json")
    content = json.loads(table.read_text())
    assert content["data"][0][content["columns"].index("mean")] == 70.5
    (artifact,) = [
        one.artifact
        for one in load_reader().records(str(file))
        if one.WhichOneof("record_type") == "artifact" and one.artifact.type == "report"
    ]
    files = {entry.path for entry in artifact.manifest.contents}
    assert {"index.html", "table.csv"} <= files
    assert not any(path.startswith("wandb") for path in files)
