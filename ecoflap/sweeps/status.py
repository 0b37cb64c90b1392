"""Show how far the runs of a sweep are: queued, running, done, failed with the reason, and the time left.

    ecoflap status outputs/sweeps/SWEEP
    ecoflap status outputs/sweeps/SWEEP --rerun-failed

``--rerun-failed`` starts the sweep's command again in the same folder: finished jobs are not run again, and
the others resume where they stopped. The folder of a single run works too.
Exit code 0: no run has failed. 1: a run failed or died. 2: wrong usage.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecoflap.console.arguments import ArgumentParser, complain, given_path
from ecoflap.console.pace import seconds_in_words
from ecoflap.console.tables import table
from ecoflap.errors import UserError, written
from ecoflap.storage.file_names import HYDRA, JOBS, LEASE, RESULT, STATUS
from ecoflap.storage.files import read_json
from ecoflap.storage.lease import is_held
from ecoflap.storage.results.record import read_result
from ecoflap.sweeps.rerun import rerun
from ecoflap.sweeps.submitted import ALIVE, ENDED_BADLY, WAITING, own_result, slurm_states, submitted_jobs

FAILED = ("failed", "died")


@dataclass(frozen=True)
class Line:
    """A line about a run.

    Attributes:
        name: the name of its folder.
        state: queued, running, stopped, done, failed or died.
        where: its current step, and how far that is.
        seconds: the time that it has run, or took; None before it starts.
        overrides: what it was started with.
        reason: why it failed or stopped; None if it didn't.
        left: seconds that its step will take; None if unknown.
    """

    name: str
    state: str
    where: str
    seconds: float | None
    overrides: Sequence[str] = ()
    reason: str | None = None
    left: float | None = None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = ArgumentParser(prog="ecoflap status", description=__doc__)
    parser.add_argument("folder", type=given_path, help="folder of a sweep, or of a run")
    parser.add_argument(
        "--rerun-failed", action="store_true", help="restart the unfinished jobs in the same folders"
    )
    options = parser.parse_args(arguments)
    try:
        if options.rerun_failed:
            return rerun(options.folder)
        lines = read(options.folder)
    except UserError as error:
        return complain(error)
    show(options.folder, lines)
    return int(any(line.state in FAILED for line in lines))


def read(folder: Path) -> list[Line]:
    """The lines of all runs of a sweep, or of a single run.

    Raises:
        UserError: if the folder holds neither a sweep nor a run.
    """
    jobs: dict[str, Mapping[str, Any]] = {
        str(job["number"]): job for job in submitted_jobs(folder) if job["number"] >= 0
    }
    if (folder / STATUS).is_file() or read_result(folder) is not None:
        return [_line(folder, {}, {})]
    jobs |= {
        status.parent.name: {} for status in folder.glob(f"*/{STATUS}") if status.parent.name not in jobs
    }
    if not jobs:
        raise UserError(
            f"{folder} holds neither a run nor a sweep: there is no {STATUS}, no sound {RESULT} and no"
            f" {JOBS}; give a folder below outputs/"
        )
    slurm = slurm_states([job["id"] for job in jobs.values() if job.get("id")])
    names = sorted(jobs, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    return [_line(folder / name, jobs[name], slurm) for name in names]


def _line(run: Path, job: Mapping[str, Any], slurm: Mapping[str, str]) -> Line:
    status: dict[str, Any] = read_json(run / STATUS) or {}
    queued, result = slurm.get(str(job.get("id")), ""), own_result(run, job)
    if result is None and job.get("replaces") is not None and status.get("state") == "done":
        status = {}  # of the run whose result it replaces
    state = _state(run, status, queued, result is not None)
    end = time.time() if state == "running" else status.get("updated", 0)
    seconds = end - status["started"] if "started" in status else None
    overrides = job.get("overrides") or _overrides(run)
    if state == "done" and result is not None:
        overrides = [_as_in(result.config, override) for override in overrides]
    left = _left_of_step(status) if state == "running" else None
    reason = _reason(state, status, queued)
    return Line(run.name, state, _where(state, status), seconds, overrides, reason, left)


def _where(state: str, status: Mapping[str, Any]) -> str:
    """The step of a run, and how many of its items are done."""
    if state == "done":
        return "done"
    step = "" if _lost_its_result(state, status) else status.get("step", "")
    return step + (f" {status['done']} of {status['total']}" if status.get("total") else "")


def _reason(state: str, status: Mapping[str, Any], queued: str) -> str | None:
    """Why a run failed, stopped or died; None if it didn't."""
    if state == "died":
        killed = f"killed ({queued})" if queued else "killed"
        return f"{killed}, the last sign of life at step {status.get('step', 'none')}"
    if _lost_its_result(state, status):
        return f"its {RESULT} is missing or damaged; --rerun-failed runs it again"
    return status.get("reason") if state in ("failed", "stopped") else None


def _lost_its_result(state: str, status: Mapping[str, Any]) -> bool:
    """Whether a run has said that it is done, and has no sound result."""
    return state == "stopped" and bool(status["state"] == "done")


def _left_of_step(status: Mapping[str, Any]) -> float | None:
    """Seconds that a running step will take at its pace so far; None before its first item is done."""
    done, total, since = status.get("done"), status.get("total"), status.get("since")
    if not done or not total or since is None:
        return None
    each = (status["updated"] - since) / done
    return max(float(since + each * total - time.time()), 0.0)


def _state(run: Path, status: Mapping[str, Any], queued: str, has_result: bool) -> str:
    """The state of a run, from its result, its status file, its lease, and Slurm's state of its job.

    It is done if it has a sound result, which is what leaves it alone when the sweep is started again.
    """
    ended_badly, held = queued.startswith(ENDED_BADLY), is_held(run / LEASE)
    if has_result and not (held and status.get("state") == "running"):
        return "done"
    if not status:
        return "died" if ended_badly else "queued"
    state: str = "stopped" if status["state"] == "done" else status["state"]
    if not held:
        if queued in WAITING:
            return "queued"  # anew: it was preempted, or is run again
        if state == "running":
            return "running" if queued in ALIVE else "died"  # suspended, or about to go on
    return "died" if state == "stopped" and ended_badly else state


def _overrides(run: Path) -> list[str]:
    """The overrides of a run, as they were typed: one may refer to another option, ``${seed}``."""
    from omegaconf import OmegaConf

    file = run / HYDRA / "overrides.yaml"
    recorded: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else []
    return [str(override) for override in recorded]


def _as_in(config: Mapping[str, Any], override: str) -> str:
    """An override with the value that a result's config has for its key, if that is not a group or a list."""
    key = override.partition("=")[0]
    value: Any = config
    for name in key.lstrip("+").split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return f"{key}={written(value)}" if isinstance(value, int | float | str) else override


def show(folder: Path, lines: Sequence[Line]) -> None:
    """Print the runs, the number of runs in each state, and the time left; what all runs share once."""
    several = len(lines) > 1
    shared = [one for one in lines[0].overrides if several and all(one in line.overrides for line in lines)]
    rows = [
        (
            line.name,
            line.state,
            line.where,
            _words(line.seconds),
            _words(line.left),
            line.reason or " ".join(one for one in line.overrides if one not in shared),
        )
        for line in lines
    ]
    title = f"{folder}: all with {' '.join(shared)}" if shared else str(folder)
    table(title, ["run", "state", "at", "for", "step left", "what"], rows)
    counts = Counter(line.state for line in lines)
    print(", ".join(f"{count} {state}" for state, count in counts.items()) + time_left(lines))


def _words(seconds: float | None) -> str:
    return "" if seconds is None else seconds_in_words(seconds)


def time_left(lines: Sequence[Line]) -> str:
    """The time left in words, from the mean time of finished runs and the number that run at a time."""
    took = [line.seconds for line in lines if line.state == "done" and line.seconds is not None]
    running = [line.seconds or 0.0 for line in lines if line.state == "running"]
    queued = sum(line.state == "queued" for line in lines)
    if not took or not running:
        return ""
    mean = sum(took) / len(took)
    rest = sum(max(mean - seconds, 0.0) for seconds in running) + queued * mean
    return f"; about {seconds_in_words(rest / len(running))} left"
