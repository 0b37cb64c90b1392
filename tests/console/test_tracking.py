"""Tracking: nothing, or W&B offline."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from ecoflap.console.tracking import Nothing, Tracker, Wandb, WandbTracker, run_id
from ecoflap.errors import UserError
from tests.scripts import loaded

pytestmark = pytest.mark.long

READER = Path(__file__).parents[3] / "shared" / "tools" / "wandb_read.py"
CONFIG = {"model": {"name": "tiny"}, "sparsity": 0.5, "seed": 0, "data": {"hf_token": "hf_private"}}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def run_file(folder: Path) -> Path:
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return file


def load_reader() -> Any:
    if not READER.is_file():
        pytest.skip(f"{READER} is needed to read W&B's own file format")
    return loaded(READER)


def picture() -> bytes:
    """A PNG file of one grey dot."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1), 128).save(buffer, "png")
    return buffer.getvalue()


def no_picture() -> bytes:
    raise AssertionError("nobody looks at this picture, so nobody should draw it")


def exit_codes(reader: Any, file: Path) -> list[int]:
    """Exit codes in a run's file; W&B's own process may write the end of the file a moment after ``finish``
    returns.
    """
    deadline = time.monotonic() + 20
    while not (found := read_exit_codes(reader, file)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def read_exit_codes(reader: Any, file: Path) -> list[int]:
    return [
        record.exit.exit_code
        for record in reader.records(str(file))
        if record.WhichOneof("record_type") == "exit"
    ]


def track_a_run(folder: Path, failed: bool) -> None:
    tracker = Wandb(project="test", group="sweep", tags=["tiny"]).start(CONFIG, "tiny/wanda", folder)
    try:
        tracker.log_table(
            "blocks",
            ["block", "sparsity", "error"],
            [["layers.0", 0.5, 1], ["layers.1", 0.5, None], ["layers.2", 0.5, 0.25]],
        )
        tracker.log_image("allocation", picture)
        tracker.log_point("finetune", {"step": 50.0, "loss": 0.5})
        tracker.log_point("finetune", {"step": 100.0, "loss": 0.125})
        tracker.summary({"pruned": {"task": {"accuracy": 0.75}}, "n": 3})
    finally:
        tracker.close(failed)


def test_offline_run_holds_config_table_and_summary(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="ecoflap"):
        track_a_run(tmp_path / "new", failed=False)
    assert capfd.readouterr() == ("", "")
    file = run_file(tmp_path / "new")
    assert run_id({**CONFIG, "group": "sweep"}) in file.name
    assert f"wandb sync {file.parent}" in caplog.text
    assert list(file.parent.glob("files/media/table/*.json"))
    (image,) = file.parent.glob("files/media/images/allocation_*.png")
    assert Image.open(image).getpixel((0, 0)) == 128
    reader = load_reader()
    assert exit_codes(reader, file) == [0]
    assert b"hf_private" not in file.read_bytes()
    read = reader.read(str(file))
    assert read["config"]["model"] == {"name": "tiny"}
    assert read["config"]["data"] == {"hf_token": "<redacted>"}
    assert read["summary"]["n"] == 3
    (logged,) = [row for row in read["history"] if any(key.startswith("allocation") for key in row)]
    assert image.name in str(logged)
    assert 0.75 in str_values(read["summary"])
    curve = [row["finetune/loss"] for row in read["history"] if "finetune/loss" in row]
    assert curve == [0.5, 0.125]


def test_the_command_is_uploaded_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [
        "main.py",
        "sparsity=0.6",
        "+data.hf_token=hf_private",
        "+model.chat={api_key: sk-private, a: b}",
    ]
    monkeypatch.setattr(sys, "argv", given)
    track_a_run(tmp_path, failed=False)
    assert sys.argv == given
    file = run_file(tmp_path)
    assert exit_codes(load_reader(), file) == [0]
    written = file.read_bytes()
    assert b"sparsity=0.6" in written
    assert b", a: b}" in written
    assert b"private" not in written


def test_the_project_of_a_team(tmp_path: Path) -> None:
    Wandb(entity="team", project="theirs").start(CONFIG, "name", tmp_path).close(failed=False)
    reader, file = load_reader(), run_file(tmp_path)
    assert exit_codes(reader, file) == [0]
    (started,) = [one.run for one in reader.records(str(file)) if one.WhichOneof("record_type") == "run"]
    assert (started.entity, started.project) == ("team", "theirs")


def str_values(nested: Any) -> list[Any]:
    """Every leaf of nested mappings."""
    return (
        [leaf for value in nested.values() for leaf in str_values(value)]
        if isinstance(nested, dict)
        else [nested]
    )


def test_failed_run_is_closed_as_failed(tmp_path: Path) -> None:
    track_a_run(tmp_path, failed=True)
    assert exit_codes(load_reader(), run_file(tmp_path)) == [1]


def test_two_runs_in_one_process_stay_apart(tmp_path: Path) -> None:
    track_a_run(tmp_path / "a", failed=False)
    track_a_run(tmp_path / "b", failed=False)
    assert run_file(tmp_path / "a").name == run_file(tmp_path / "b").name


def test_disabled_mode_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tracker = Wandb(mode="disabled").start(CONFIG, "name", tmp_path)
    tracker.log_table("blocks", ["a"], [[1]])
    tracker.log_point("finetune", {"step": 1.0})
    tracker.summary({"a": 1})
    tracker.close(failed=False)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_telemetry_of_wandb_warns_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It may be shut down twice when a process ends."""
    track_a_run(tmp_path, failed=False)
    logging.getLogger("opentelemetry.sdk.metrics").warning("shutdown can only be called once")
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


def test_a_folder_that_goes_is_not_offered_for_upload(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="ecoflap"):
        Wandb().start(CONFIG, "name", tmp_path).close(failed=True, kept=False)
    assert "wandb sync" not in caplog.text
    run_file(tmp_path)


def test_failure_to_start_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tracking=none"):
        WandbTracker("test", mode="sideways", folder=tmp_path)


def test_nothing_tracks_nothing(tmp_path: Path) -> None:
    tracker: Tracker = Nothing().start(CONFIG, "name", tmp_path)
    tracker.log_table("blocks", ["a"], [[1]])
    tracker.log_image("allocation", no_picture)
    tracker.summary({"a": 1})
    tracker.close(failed=True)
    assert not list(tmp_path.iterdir())


def test_run_id_counts_what_is_computed_and_nothing_else() -> None:
    assert run_id(CONFIG) == run_id(
        {**dict(reversed(CONFIG.items())), "tracking": {"mode": "online"}, "cache": "/elsewhere"}
    )
    assert run_id(CONFIG) != run_id({**CONFIG, "seed": 1})
    assert len(run_id(CONFIG)) == 16


def test_factories_are_structured_configs_that_hydra_can_build() -> None:
    config = OmegaConf.merge(OmegaConf.structured(Wandb), {"group": "sweep", "tags": ["a", "b"]})
    built = instantiate({"_target_": "ecoflap.console.tracking.Wandb", **config})
    assert built == Wandb(group="sweep", tags=["a", "b"])
    assert instantiate({"_target_": "ecoflap.console.tracking.Nothing"}) == Nothing()


def test_import_does_not_load_the_heavy_libraries() -> None:
    script = (
        "import sys, ecoflap.console.tracking, ecoflap.console.logs, ecoflap.console.telemetry,"
        " ecoflap.storage.cache.store, ecoflap.storage.results, ecoflap.storage.masks,"
        " ecoflap.sweeps.report.table;print([name for name in ('torch', 'wandb', 'transformers', 'rich',"
        " 'numpy') if name in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert output.stdout.strip() == "[]"
