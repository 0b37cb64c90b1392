"""The jobs that a sweep has submitted: ``jobs.json``, and the state of each in Slurm."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecoflap.storage.file_names import JOBS
from ecoflap.storage.files import read_json, write_json
from ecoflap.storage.results.record import Result, read_result

if TYPE_CHECKING:  # ecoflap status --help loads no Hydra
    from ecoflap.sweeps.jobs import Job

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED")
ALIVE = (*WAITING, "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "RESIZING")
ENDED_BADLY = ("FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE")


def submitted_jobs(folder: Path) -> list[dict[str, Any]]:
    """What ``jobs.json`` says of each job, {number, overrides, replaces, id}; empty for a single run."""
    jobs: list[dict[str, Any]] = (read_json(folder / JOBS) or {}).get("jobs", [])
    return jobs


def record_jobs(
    folder: Path, launcher: str, ids: Sequence[tuple[Job, str | None]], command: Mapping[str, Any]
) -> None:
    """Write ``jobs.json`` for ``ecoflap status``; jobs of an earlier submission stay in it.

    Those of another command that were neither queued nor started don't, as nothing would start them.

    Args:
        folder: the folder of the sweep.
        launcher: the name of the launcher.
        ids: (job, its id in the queue; None without a queue).
        command: what the sweep was started with, from ``command_to_record``.
    """
    recorded = read_json(folder / JOBS) or {}
    known = {job["number"]: job for job in recorded.get("jobs", [])}
    if recorded.get("command") != command:
        known = {
            number: job for number, job in known.items() if job.get("id") or (folder / str(number)).exists()
        }
    known |= {job.number: {**job._asdict(), "id": id} for job, id in ids}
    jobs = [known[number] for number in sorted(known)]
    write_json(folder / JOBS, {"launcher": launcher, "command": command, "jobs": jobs})


def own_result(run: Path, job: Mapping[str, Any]) -> Result | None:
    """The result of a job; None if it has none yet, perhaps but one that it is to replace.

    Args:
        run: the folder of the job.
        job: what ``jobs.json`` says of it; empty for a run that is not one of a sweep.
    """
    result, replaced = read_result(run), job.get("replaces")
    return None if result is not None and replaced == result.finished is not None else result


def slurm_states(ids: Sequence[str]) -> dict[str, str]:
    """{job: state} from Slurm's accounting and its queue; empty without Slurm."""
    if not ids:
        return {}
    commands = (
        ["sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(ids)],
        ["squeue", "-h", "-r", "-o", "%i|%T", "-j", ",".join(ids)],
    )
    found: dict[str, str] = {}
    for command in commands:
        if shutil.which(command[0]) is None:
            continue
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        found |= {
            job: state
            for job, _, state in (line.partition("|") for line in answer.stdout.split("\n"))
            if state
        }
    return found
