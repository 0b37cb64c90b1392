"""``ecoflap bench``: what is counted is right, every form is there, and the report shows it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import nn

from ecoflap.cli import bench as bench_command
from ecoflap.cli import command
from ecoflap.errors import UserError
from ecoflap.models.core.layers import Layer
from ecoflap.models.sparse import sparsify
from ecoflap.models.sparse.library import products
from ecoflap.run.folder import discard_products
from ecoflap.storage.results import Result
from ecoflap.storage.results.bench import Bench, FormRow, Spread, read_bench
from ecoflap.storage.saved_model import weight_bytes
from ecoflap.sweeps.bench import forms, speed
from ecoflap.sweeps.bench.measure import measure
from tests.cli import forked
from tests.cli.conftest import on_text
from tests.data.caption_folders import one_of_each, shown_at
from tests.storage.test_results import make_result

QUICK = ("--repeats", "2", "--batch-size", "1", "2", "--tokens", "3")


def prune(folder: Path, *overrides: str) -> Path:
    given = ["tracking=none", "device=cpu", "cache_mode=off", "model.save=true", f"hydra.run.dir={folder}"]
    done = forked.main([*given, *overrides], folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def language_runs(
    tiny_llama: Path, token_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path]:
    """Runs of the tiny language model: by rows, 2:4, and by rows again, saved without the zeros."""
    place = tmp_path_factory.mktemp("bench")
    base = [*on_text(tiny_llama, token_file), "score=none", "sparsity=0.5"]
    pairs = [*base, "pruner.mask=2:4"]
    return (
        prune(place / "rows", *base),
        prune(place / "pairs", *pairs),
        prune(place / "small", *base, "model.save=bitmask"),
    )


def test_language_models_side_by_side(
    language_runs: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    assert command.main(["bench", *map(str, language_runs), "--json", str(file), *QUICK]) == 0
    printed = capsys.readouterr().out
    bench = read_bench(language_runs[0])
    assert bench is not None
    assert json.loads(file.read_text()) == json.loads((language_runs[0] / "bench.json").read_text())
    assert [(row.name, row.form) for row in bench.rows] == [
        ("dense", "dense"),
        ("rows", "masked"),
        ("pairs", "2:4"),
        ("small", "masked, stored without zeros"),
    ]
    assert bench.unit == "tokens"
    assert len({(row.parameters, row.operations) for row in bench.rows}) == 1, "zeros count as other numbers"
    assert {(one.low, one.high) for one in bench.rows[0].relative.values()} == {(1.0, 1.0)}
    assert bench.machine["threads"] == torch.get_num_threads()
    result = Result.read(language_runs[0] / "result.json")
    dense, rows, _, small = bench.rows
    assert dense.parameters == result.model["parameters"]
    weights = 4 * result.model["parameters"]
    assert dense.disk_bytes == weights
    assert weights <= dense.memory_bytes == rows.memory_bytes, "zeros take as much memory as other weights"
    assert rows.disk_bytes == (language_runs[0] / "checkpoint" / "model.safetensors").stat().st_size
    assert small.disk_bytes == weight_bytes(language_runs[2] / "checkpoint")
    assert small.memory_bytes == rows.memory_bytes
    assert "ecoflap.load_pruned" in (language_runs[2] / "checkpoint" / "README.md").read_text()
    ((task, metrics),) = result.metrics["pruned"].items()
    name = next(iter(metrics))
    assert bench.metric == f"{task}/{name}"
    assert (dense.metric, rows.metric) == (result.metrics["dense"][task][name], metrics[name])
    for row in bench.rows:
        assert set(row.speed) == {"1", "2"}
        spreads = [*row.speed.values(), *row.relative.values()]
        assert all(0 < one.low <= one.median <= one.high for one in spreads)
        assert row.name in printed
    assert [(row.run, row.record) for row in bench.rows] == [
        (place, Result.read(run / "result.json").digest())
        for place, run in zip(
            (".", ".", "../pairs", "../small"), (language_runs[0], *language_runs), strict=True
        )
    ]
    assert any("2:4 ran as dense matrices" in note for note in bench.notes) == (not torch.cuda.is_available())


def test_a_metric_of_other_data_is_said_to_be_one(
    language_runs: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with another task.limit: the dense figure is that of the first run."""
    other = shutil.copytree(language_runs[0], tmp_path / "other")
    record = json.loads((other / "result.json").read_text())
    (data,) = record["data"]["tasks"].values()
    data["tokens"] = "of another text"
    (other / "result.json").write_text(json.dumps(record))
    assert command.main(["bench", *map(str, (*language_runs[:2], other)), *QUICK]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    (said,) = [note for note in notes if "on other data" in note]
    assert said.startswith("note: other was measured on other data than rows and the dense model")


def test_the_figures_are_written_even_if_nobody_reads_the_table(
    language_runs: tuple[Path, Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    close_output: Callable[[], None],
) -> None:
    file = tmp_path / "figures.json"
    close_output()
    with pytest.raises(BrokenPipeError):
        bench_command.main([str(language_runs[0]), "--json", str(file), *QUICK])
    assert file.exists()
    assert "nothing measured" not in capsys.readouterr().err


def test_the_report_has_a_section(
    language_runs: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, page = language_runs[0], tmp_path / "report" / "index.html"
    (run / "bench.json").unlink(missing_ok=True)
    assert command.main(["report", str(run), "--output", str(page.parent)]) == 0
    assert "Size and speed" not in page.read_text()
    assert command.main(["bench", str(run), *QUICK]) == 0
    assert command.main(["report", str(run), "--output", str(page.parent)]) == 0
    text = page.read_text()
    assert "Size and speed" in text
    assert "tokens/s at 2" in text
    bench = read_bench(run)
    assert bench is not None
    operations = bench.rows[0].operations
    assert f'data-value="{operations}">{operations:,}<' in text, "the column is sorted by number"
    earlier = json.loads((run / "bench.json").read_text())
    for row in earlier["rows"]:
        del row["operations"]
    (run / "bench.json").write_text(json.dumps(earlier))
    assert read_bench(run) is None
    (run / "bench.json").write_text('{"schema": 1, "rows": [3]}')
    assert command.main(["report", str(run), "--output", str(page.parent)]) == 0, (
        "a damaged bench is left out"
    )
    assert "Size and speed" not in page.read_text()


def test_rows_of_runs_that_were_run_anew_are_left_out(tmp_path: Path) -> None:
    spread = {"1": Spread(1.0, 1.0, 1.0)}
    figures: Any = ("masked", 1, 1, 1, 1, 1.0, spread, spread, 0.5)
    first, other = make_result(), make_result(metrics={"pruned": {"task": {"accuracy": 0.75}}})
    for name, result in (("first", first), ("other", other)):
        result.write(tmp_path / name / "result.json")
    rows = [
        FormRow("dense", *figures, ".", first.digest()),
        FormRow("first", *figures, ".", first.digest()),
        FormRow("other", *figures, "../other", other.digest()),
        FormRow("moved", *figures, "../moved", other.digest()),
    ]
    Bench("tiny", "tokens", "work", None, {}, 1, rows).write(tmp_path / "first" / "bench.json")
    assert read_bench(tmp_path / "first") == Bench("tiny", "tokens", "work", None, {}, 1, rows)
    repeated = replace(other, steps={"prune": {"seconds": 3.0, "peak_memory_bytes": 1}})
    repeated.write(tmp_path / "other" / "result.json")
    bench = read_bench(tmp_path / "first")
    assert bench is not None
    assert bench.rows == rows
    first.write(tmp_path / "other" / "result.json")
    bench = read_bench(tmp_path / "first")
    assert bench is not None
    assert [row.name for row in bench.rows] == ["dense", "first", "moved"]
    assert bench.notes == ["other was run anew since and is left out"]


def test_a_run_that_replaces_another_removes_its_bench(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text("{}")
    discard_products(tmp_path)
    assert not (tmp_path / "bench.json").exists()


def test_masked_and_cut_models_that_see(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["model=blip_vqa_mini", "calibration.samples=4", "sparsity=0.3"]
    upop = ["pruner=upop", "pruner.steps=4", "pruner.interval=2", "steps=[calibrate,prune]"]
    masked = ["pruner=magnitude", "allocation=water_filling", "score=none", "steps=[allocate,prune]"]
    cut = prune(tmp_path / "cut", *base, *upop)
    whole = prune(tmp_path / "whole", *base, *masked)
    assert command.main(["bench", str(whole), str(cut), *QUICK]) == 0
    bench = read_bench(whole)
    assert bench is not None
    dense, masked_row, cut_row = bench.rows
    assert (bench.unit, bench.metric, masked_row.metric) == ("images", None, None)
    assert (masked_row.form, cut_row.form) == ("masked", "structured")
    assert cut_row.memory_bytes < 0.9 * dense.memory_bytes <= 0.9 * masked_row.memory_bytes
    assert cut_row.disk_bytes < dense.disk_bytes
    of_dense, of_masked, of_cut = ((row.parameters or 0, row.operations or 0) for row in bench.rows)
    assert of_masked == of_dense
    assert all(0 < own < 0.9 * other for own, other in zip(of_cut, of_dense, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}"], "no result record"),
        (["{run}", "--repeats", "0"], "--repeats 0 must be at least 1"),
        (["{run}", "--batch-size", "0"], "--batch-size 0 must be at least 1"),
        (["{run}", "{tmp}/other"], "the runs pruned different models"),
        (["{tmp}/unsaved"], "run it again with model.save=true"),
        (["{tmp}/python"], "was pruned in Python"),
    ],
)
def test_refusals(
    language_runs: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    record = json.loads((language_runs[0] / "result.json").read_text())
    changes: dict[str, dict[str, Any]] = {
        "other": {"model": {**record["model"], "fingerprint": "of another model"}},
        "unsaved": {"checkpoint": None},
        "python": {"config": {"pruner": record["config"]["pruner"]}},
    }
    for name, change in changes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps({**record, **change}))
    places = {"{tmp}": str(tmp_path), "{run}": str(language_runs[0])}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    assert command.main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_shared_and_sliced_weights_count_once() -> None:
    module = nn.Module()
    module.one, module.other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    module.other.weight = module.one.weight
    module.register_buffer("table", torch.zeros(2, dtype=torch.float16))
    assert forms.memory_bytes(module) == 4 * 16 + 2 * 2
    assert forms.memory_bytes(module, buffers=False) == 4 * 16


def test_a_form_of_ones_own_is_one_function(
    language_runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = forms.read_runs([language_runs[0], language_runs[0]])
    assert [run.name for run in runs] == [str(language_runs[0])] * 2, "two alike go by their paths"
    runs = forms.read_runs([language_runs[0]])
    assert [run.name for run in runs] == ["rows"]

    def twice(run: forms.SavedRun, device: torch.device) -> Iterator[forms.Form]:
        yield from forms.saved(run, device)
        yield from forms.saved(run, device)

    monkeypatch.setattr(forms, "FORMS", (twice,))
    assert [form.kind for form in forms.forms_of(runs)] == ["dense", "masked", "masked"]


def test_an_optional_form_that_cannot_be_loaded_is_left_out(
    language_runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> NoReturn:
        raise UserError("it needs another machine")

    def with_broken(run: forms.SavedRun, device: torch.device) -> Iterator[forms.Form]:
        for form in forms.saved(run, device):
            yield replace(form, name="kernel", load=broken, optional=optional)
            yield form

    monkeypatch.setattr(forms, "FORMS", (with_broken,))
    runs, optional = forms.read_runs([language_runs[0]]), True
    bench = measure(runs, [1], repeats=1, tokens=2)
    assert [row.name for row in bench.rows] == ["dense", "rows"]
    assert bench.notes == ["kernel was not measured: it needs another machine"]
    optional = False
    with pytest.raises(UserError, match="another machine"):
        measure(runs, [1], repeats=1, tokens=2)


def test_a_model_without_zeros_in_memory(
    language_runs: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes less memory than the dense model; where nothing can be left out, that is said."""
    runs = forms.read_runs([language_runs[2]])
    bench = measure(runs, [1], repeats=1, tokens=2)
    assert bench.notes == [
        "small, sparse was not measured: no linear layer is large enough with enough zeros"
    ]
    try:
        products(torch.float32)
    except UserError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(sparsify, "LEAST_WEIGHTS", 1)
    bench = measure(runs, [1], repeats=1, tokens=2)
    assert [(row.name, row.form) for row in bench.rows[1:]] == [
        ("small", "masked, stored without zeros"),
        ("small, sparse", "sparse in memory"),
    ]
    dense, masked, sparse = bench.rows
    assert sparse.disk_bytes == masked.disk_bytes
    assert sparse.metric == masked.metric
    assert (sparse.parameters, sparse.operations) == (None, None), "the counter does not know its kernel"
    assert sparse.memory_bytes < dense.memory_bytes == masked.memory_bytes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the 2:4 kernel needs a CUDA GPU")
def test_the_kernel_of_2_4_gives_what_the_dense_product_gives() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(128, 128, bias=False, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        linear.weight.view(-1, 4)[:, :2] = 0
    inputs = torch.randn(64, 128, device="cuda", dtype=torch.bfloat16)
    expected = linear(inputs)
    dense = forms.memory_bytes(linear)

    class Model:
        layers = (Layer("weight", linear),)

    forms.to_semi_structured(Model())  # type: ignore[arg-type]
    assert torch.allclose(linear(inputs), expected, atol=2e-2, rtol=2e-2)
    assert forms.memory_bytes(linear) < 0.7 * dense


def test_the_kernel_of_2_4_refuses_full_precision() -> None:
    class Model:
        layers = (Layer("weight", nn.Linear(128, 128, bias=False)),)

    with pytest.raises(UserError, match="needs half precision"):
        forms.to_semi_structured(Model())  # type: ignore[arg-type]


def test_a_run_without_calibration_has_no_passes_to_time(language_runs: tuple[Path, Path]) -> None:
    run = forms.read_run(language_runs[0])
    model = forms.dense(run, torch.device("cpu")).load()
    with pytest.raises(UserError, match="no calibration set"):
        speed.passing(model, None)


def test_fewer_samples_than_the_batch_size_fill_the_batch(tmp_path: Path) -> None:
    """Else the speed would be of passes that are smaller than it counts."""
    for picture in one_of_each("train")[:3]:
        file = tmp_path / "few" / f"{picture.target}.png"
        shown_at(file, picture)
        file.with_suffix(".txt").write_text(f"a {picture.target}")
    data = ["model=clip_mini", "calibration=captioned_folder", f"calibration.path={tmp_path / 'few'}"]
    steps = ["pruner=magnitude", "score=none", "allocation=water_filling", "steps=[allocate,prune]"]
    folder = prune(tmp_path / "run", *data, *steps)
    run = forms.read_run(folder)
    model = forms.dense(run, torch.device("cpu")).load()
    workload = speed.workload_for(model, run.record.config["calibration"], tokens=1)
    rows = [len(next(iter(batch.values()))) for batch in workload.prepare(7)]
    assert sum(rows) == 7
    three, six = (speed.operations_of(workload, model, workload.prepare(size)) for size in (3, 6))
    assert six == pytest.approx(2 * three, rel=0.01)


def test_operations_do_not_depend_on_the_kernel_of_attention(language_runs: tuple[Path, Path]) -> None:
    """The counter alone knows no fused kernel of a CPU."""
    model: Any = forms.dense(forms.read_run(language_runs[0]), torch.device("cpu")).load()
    workload = speed.workload_for(model, None, tokens=3)
    counted = []
    for kernel in ("eager", "sdpa"):
        model.module.set_attn_implementation(kernel)
        counted.append(speed.operations_of(workload, model, workload.prepare(2)))
    assert counted[0] == counted[1] > 0
