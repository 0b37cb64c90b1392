"""Bad command lines of the subcommands beside ``run``."""

from __future__ import annotations

from pathlib import Path

from tests.refusals.case import Case


def damaged(folder: Path) -> None:
    """A run whose record is cut off, and a cache that is a file."""
    (folder / "run").mkdir()
    (folder / "run" / "result.json").write_text('{"schema": 1, "name":')
    (folder / "run" / "checkpoint").mkdir()
    (folder / "file").write_text("taken")


def of(subcommand: str, *arguments: str, says: tuple[str, ...]) -> Case:
    return Case(arguments, says, damaged, subcommand=subcommand)


CASES: list[Case] = [
    of("status", says=("folder", "--help")),
    of("status", "{tmp}/nowhere", says=("{tmp}/nowhere", "neither a run nor a sweep", "give a folder")),
    of("status", "{tmp}/file", says=("{tmp}/file", "neither a run nor a sweep")),
    of("status", "{tmp}/run", says=("{tmp}/run", "no status.json", "give a folder")),
    of("status", "{tmp}/run", "--rerun-failed", says=("{tmp}/run", "no jobs.json", "not known")),
    of("status", "{tmp}/run", "--rerun-faild", says=("--rerun-faild", "--help")),
    of("status", "{tmp}/run", "{tmp}/file", says=("{tmp}/file", "--help")),
    of("report", says=("FOLDER", "--help")),
    of("report", "{tmp}/nowhere", says=("{tmp}/nowhere",)),
    of("report", "{tmp}/file", says=("{tmp}/file",)),
    of("report", "{tmp}/run", says=("result.json",)),
    of("report", "{tmp}/run", "--metrc", "x", says=("--metrc", "--help")),
    of("report", "paired", "{tmp}/nowhere", says=("no table", "{tmp}/nowhere")),
    of("report", "recovery", "{tmp}/nowhere", says=("no table", "{tmp}/nowhere")),
    of("report", "recovery", "{tmp}/run", says=("no table", "result.json")),
    of("report", "blip2-table", "{tmp}/nowhere", says=("no table", "{tmp}/nowhere")),
    of("report", "blip2-table", "{tmp}/run", "{tmp}/nowhere", says=("no table", "{tmp}/nowhere")),
    of("report", "blip2-table", "{tmp}/run", says=("no table", "result.json")),
    of("plan", "-m", "sparsity=0.5,1.6", says=("job 1 (sparsity=1.6)", "none of the 2 jobs was started")),
    of("plan", "-m", "sparsity=0.5,0.6", "hydra.sweep.subdir=a", says=("hydra.sweep.subdir=a", "its number")),
    of("plan", "-m", "sparsity=0.5,0.6", "hydra.sweep.dir=a/${sparsity}", says=("is a/0.6, and a/0.5 for",)),
    of("plan", "sparsity=0.5,0.6", says=("sparsity=0.5,0.6 has several values",)),
    of("plan", "sparsity=1.5", says=("sparsity=1.5",)),
    of("plan", "sparsty=0.5", says=("sparsty", "did you mean sparsity?")),
    of("plan", "cluster=slurm", says=("cluster=slurm", "add -m")),
    of("plan", "allocation=file", "allocation.path={tmp}/nowhere", says=("{tmp}/nowhere",)),
    of(
        "plan",
        "model=t5_mini",
        "steps=[calibrate,allocate,prune,finetune]",
        "finetune=full",
        "finetune.data=calibration",
        "finetune.held_out=5000",
        "tracking=none",
        says=("finetune.held_out=5000 leaves nothing to train on",),
    ),
    of("plan", "--cfg", "job", says=("ecoflap run",)),
    of("verify", says=("run", "--help")),
    of("verify", "{tmp}/nowhere", says=("{tmp}/nowhere", "give the folder of a finished run")),
    of("verify", "{tmp}/file", says=("{tmp}/file", "give the folder of a run")),
    of("verify", "{tmp}/run", says=("{tmp}/run", "give the folder of a run")),
    of("convert", "{tmp}/run", "{tmp}/out", says=("--to", "--help")),
    of("convert", "{tmp}/run", "{tmp}/out", "--to", "zip", says=("zip", "dense")),
    of("convert", "{tmp}/nowhere", "{tmp}/out", "--to", "coded", says=("nothing converted", "{tmp}/nowhere")),
    of("convert", "{tmp}/run", "{tmp}/file", "--to", "coded", says=("{tmp}/file is there", "a new folder")),
    of("cache", says=("command", "--help")),
    of("cache", "lst", says=("'lst'", "ls")),
    of("cache", "ls", "--cache", "{tmp}/nowhere", says=("no cache at {tmp}/nowhere", "--cache FOLDER")),
    of("cache", "verify", "--cache", "{tmp}/file", says=("no cache at {tmp}/file", "--cache FOLDER")),
    of(
        "cache",
        "gc",
        "--cache",
        "{tmp}",
        "--max-size",
        "10GB",
        says=("{tmp} is not a cache", "{tmp}/run/checkpoint", "--cache FOLDER"),
    ),
    of("cache", "verify", "--cache", "{tmp}", says=("{tmp} is not a cache", "{tmp}/run/checkpoint")),
    of("cache", "gc", "--cache", "{tmp}/run", says=("--max-size 10GB",)),
    of("cache", "gc", "--cache", "{tmp}/run", "--max-size", "lots", says=("'lots' is not a size", "10GB")),
]
