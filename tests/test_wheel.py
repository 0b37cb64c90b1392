"""The wheel, unpacked where no checkout is: what it holds, and that it runs in a foreign folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = (
    "calibration.samples=8",
    "score.samples=4",
    "task.limit=20",
    "device=cpu",
    "tracking=none",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = "import os, sys; from hatchling.build import build_wheel;print(build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("ecoflap-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


def ecoflap(installed: Path, elsewhere: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-m", "ecoflap", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=elsewhere,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def below(folder: Path, *, without: tuple[str, ...] = ()) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.parts[len(folder.parts)] not in without
    }


def test_it_holds_the_package_its_configs_and_its_sweeps(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    expected = {f"ecoflap/{name}" for name in below(ROOT / "ecoflap")}
    expected |= {f"ecoflap/conf/{name}" for name in below(ROOT / "conf", without=("sweep",))}
    expected |= {f"ecoflap/conf/sweep/{name}" for name in below(ROOT / "sweeps")}
    expected |= {"hydra_plugins/ecoflap_launcher.py"}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert "ecoflap/py.typed" in names


def test_a_run_and_its_record(installed: Path, elsewhere: Path) -> None:
    done = ecoflap(installed, elsewhere, "run", *SMALL, "model.save=true")
    assert "accuracy" in done.stdout
    (run,) = (elsewhere / "outputs" / "runs").iterdir()
    record = json.loads((run / "result.json").read_text())
    assert record["git"] is None
    assert record["versions"]["ecoflap"] == installed_version(installed)
    assert record["metrics"]["pruned"]["easy_vqa"]
    ecoflap(installed, elsewhere, "verify", str(run))
    assert "1 done" in ecoflap(installed, elsewhere, "status", str(run)).stdout
    ecoflap(installed, elsewhere, "report", str(run))
    assert (run / "report" / "index.html").is_file()
    assert "entries" in ecoflap(installed, elsewhere, "cache", "ls").stdout


@pytest.mark.variant
def test_a_sweep_of_processes_runs_the_installed_code(installed: Path, elsewhere: Path) -> None:
    options = (*SMALL, "score=none", "steps=[calibrate,allocate,prune]", "cluster=local")
    ecoflap(installed, elsewhere, "run", "-m", "sparsity=0.5", *options, "hydra.sweep.dir=sweep")
    assert "1 done" in ecoflap(installed, elsewhere, "status", "sweep").stdout
    assert not list((elsewhere / "sweep").glob("code-*"))
    (elsewhere / "sweep" / "0" / "result.json").unlink()
    again = ecoflap(installed, elsewhere, "status", "sweep", "--rerun-failed")
    assert json.loads(again.stdout.splitlines()[0])[1:5] == ["-m", "ecoflap", "run", "-m"]
    assert (elsewhere / "sweep" / "0" / "result.json").is_file()


def installed_version(installed: Path) -> str:
    (metadata,) = installed.glob("ecoflap-*.dist-info")
    return metadata.name.removeprefix("ecoflap-").removesuffix(".dist-info")
