"""Which runs stand together, and which of two like ones counts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

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
from ecoflap.sweeps.report.settings import fixed_and_varying
from tests.sweeps.report.conftest import write_run

pytestmark = pytest.mark.long


def start(folder: Path, name: str, *overrides: str) -> None:
    (folder / name / ".hydra").mkdir(parents=True)
    (folder / name / ".hydra" / "overrides.yaml").write_text(
        "".join(f"- {override}\n" for override in overrides) or "[]\n"
    )


def test_a_section_per_model_and_tasks(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 70.0)
    write_run(tmp_path, "b", 70.0, model__name="other", model__path="/models/other")
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


def test_the_newer_run_is_the_one_that_finished_later(tmp_path: Path) -> None:
    """Whatever the times of the files, which a copy of a sweep changes; older records have only these."""
    finished = {"a": "2026-11-30T10:00:00.000+00:00", "b": "2026-11-30T09:00:00.000+00:00", "c": None}
    for age, (name, when) in enumerate(finished.items(), 1):
        path = write_run(tmp_path, name, 1.0, record={"finished": when})
        os.utime(path, (age, age))
    (section,) = make_sections(read_runs(tmp_path))
    assert [run.name for run in section.runs] == ["a"]
    assert [run.name for run in read_runs(tmp_path)] == ["c", "b", "a"]


def test_a_few_lines_on_what_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As where a sweep was repeated in another folder."""
    for seed in range(6):
        for age, folder in enumerate(("old", "new"), 1):
            os.utime(write_run(tmp_path, f"{folder}{seed}", float(seed), seed=seed), (age, age))
    (section,) = make_sections(read_runs(tmp_path))
    assert sorted(run.name for run in section.runs) == [f"new{seed}" for seed in range(6)]
    said = capsys.readouterr().err.splitlines()
    assert [line.endswith("the newer one, is shown") for line in said] == [True, True, True, False]
    assert said[-1] == "tiny on vqa: 3 more runs are not shown, as there are newer ones"


@pytest.mark.parametrize(
    ("figures", "samples", "unused", "blocks", "told"),
    [
        ((70.0, 70.0), "aa", False, "aa", True),
        ((70.0, 70.0), "ab", False, "aa", False),
        ((70.0, 70.0), "ab", True, "aa", True),
        ((70.0, 70.0), "ab", True, "ab", False),
        ((70.0, 70.1), "aa", False, "aa", False),
    ],
    ids=["the same", "other samples", "samples that nothing used", "other counts", "other figures"],
)
def test_seeds_that_draw_nothing_are_told(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    figures: tuple[float, float],
    samples: str,
    unused: bool,
    blocks: str,
    told: bool,
) -> None:
    for seed, (figure, drawn, counts) in enumerate(zip(figures, samples, blocks, strict=True)):
        calibration = {"name": "rows", "samples": 4, "fingerprint": drawn}
        record = {"data": {"calibration": calibration | ({"unused": True} if unused else {})}}
        kept = {"text": [0.4, 0.6] if counts == "a" else [0.6, 0.4]}
        write_run(tmp_path, str(seed), figure, seed=seed, record=record, blocks=kept)
    (section,) = make_sections(read_runs(tmp_path))
    assert len(section.runs) == 2
    assert (
        "at sparsity 0.5: seeds 0, 1 have the same counts and figures, from the same samples or none"
        in capsys.readouterr().err
    ) == told


def test_a_sparsity_with_a_rounding_error_is_the_rounded_one(tmp_path: Path) -> None:
    """Older runs recorded the values of a range as they were."""
    write_run(tmp_path, "range", 70.0, sparsity=0.1 * 7)
    write_run(tmp_path, "uniform", 71.0, sparsity=0.7, score={"name": "none"})
    (table,) = make_tables(make_sections(read_runs(tmp_path)))
    assert table.sparsities == [0.7]
    _, varying = fixed_and_varying(table.section.runs)
    assert "sparsity" not in varying


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


def evaluated(folder: Path, name: str, pruned: float, data: dict[str, str], **changes: Any) -> None:
    """A run on the task vqa, of whose data the record holds the given hashes."""
    record = {"data": {"tasks": {"vqa": {"metric": "accuracy", **data}}}}
    write_run(folder, name, pruned, record=record, **changes)


def shown(folder: Path) -> dict[str, list[float]]:
    """{model: figures over seeds}, each of one method."""
    tables = make_tables(make_sections(read_runs(folder)))
    return {
        table.model: [one.pruned for one in row[0.5].values()]
        for table in tables
        for row in table.cells.values()
    }


@pytest.mark.parametrize("kind", ["inputs", "tokens", "choices"])
@pytest.mark.every_run("inputs")
def test_runs_on_other_test_data_share_no_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """The files of a path were replaced between two seeds; nothing in the configs tells it."""
    for seed, data in enumerate(("d7ccbf21", "4f22b54a", "d7ccbf21")):
        evaluated(
            tmp_path, str(seed), 70.0 + seed, {kind: data}, seed=seed, task={"name": "vqa", "path": "/d"}
        )
    assert shown(tmp_path) == {f"tiny (vqa {kind} 4f22b5)": [71.0], f"tiny (vqa {kind} d7ccbf)": [70.0, 72.0]}
    assert main(["report", str(tmp_path)]) == 0
    assert (
        f"| tiny (vqa {kind} d7ccbf) | wanda | zeroth_order | vqa/accuracy | 80.00 | 71.00 ± 1.41 (n=2) |"
        in (capsys.readouterr().out)
    )


def test_test_data_of_several_paths_are_named_by_these(tmp_path: Path) -> None:
    for seed, path in enumerate(("a", "b", "b")):
        task = {"tasks": {"vqa": {"name": "vqa", "path": f"/data/{path}/quiz"}}}
        evaluated(tmp_path, str(seed), 70.0 + seed, {"inputs": path}, seed=seed, task=task)
    assert shown(tmp_path) == {"tiny (vqa from a)": [70.0], "tiny (vqa from b)": [71.0, 72.0]}


def test_data_that_settings_change_or_records_lack_set_no_runs_apart(tmp_path: Path) -> None:
    """A prompt changes the inputs, and names a method."""
    for seed, (data, prompt) in enumerate([("x", None), ("", None), ("x", None), ("y", "Q: {}")]):
        evaluated(tmp_path, str(seed), 70.0, {"inputs": data}, seed=seed, model__prompt=prompt)
    write_run(tmp_path, "old", 70.0, seed=9, model__prompt=None)
    (section,) = make_sections(read_runs(tmp_path))
    assert section.model == "tiny"
    assert sorted(len(runs) for runs in section.by_method.values()) == [1, 4]


def test_of_data_that_vary_together_one_is_named(tmp_path: Path) -> None:
    """Data that are not known stand apart where others differ."""
    for seed, data in enumerate(("data0", "code1")):
        tasks = {name: {"inputs": data} for name in ("gqa", "vqa")}
        write_run(tmp_path, str(seed), 70.0, record={"data": {"tasks": tasks}}, seed=seed)
    write_run(tmp_path, "2", 70.0, record={"data": {"tasks": {}}}, seed=2)
    assert [one.model for one in make_sections(read_runs(tmp_path))] == [
        "tiny (gqa inputs code1)",
        "tiny (gqa inputs data0)",
        "tiny (gqa inputs unknown)",
    ]


def test_the_code_beside_a_task_is_part_of_its_data(tmp_path: Path) -> None:
    for seed, code in enumerate(("", "aaaaaaaa", "bbbbbbbb")):
        evaluated(tmp_path, str(seed), 70.0, {"inputs": f"d7ccbf21 {code}"}, seed=seed)
    names = [one.model for one in make_sections(read_runs(tmp_path))]
    assert len(set(names)) == 3
    assert "tiny (vqa inputs d7ccbf)" in names


def test_runs_and_sweeps_that_were_moved_are_found_by_their_links(tmp_path: Path) -> None:
    """And each run once, whatever else links to it."""
    for name in ("sweep/0", "sweep/1", "disk/2", "disk/more/3", "disk/more/4"):
        write_run(tmp_path, name, 70.0, seed=int(name[-1]))
    sweep = tmp_path / "sweep"
    links = {"2": "disk/2", "more": "disk/more", "latest": "sweep/1", "3": "disk/more/3", "gone": "disk/5"}
    for name, target in links.items():
        (sweep / name).symlink_to(tmp_path / target)
    assert sorted(run.seed for run in read_runs(sweep)) == [0, 1, 2, 3, 4]
    assert {"0", "1", "2"} < {run.name for run in read_runs(sweep)}
