"""How Hydra started a run: alone or in a sweep, with which overrides, and how to resume it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import filter_overrides
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ecoflap.errors import path_option
from ecoflap.storage.file_names import HYDRA, JOBS
from ecoflap.storage.files import read_json, replacing

LONGEST_LABEL = 80  # characters


def sweep_name() -> str | None:
    """The name of the sweep's folder in a multirun; None in a single run."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir).name


def run_label(*, _root_: Any) -> str:
    """What a run's folder says of it: model, pruner, chosen allocation and sparsity.

    Args:
        _root_: the whole config; what it lacks is left out, for the run to refuse.
    """
    chosen = [
        OmegaConf.select(_root_, f"{group}.name", default=None, throw_on_missing=False)
        for group in ("model", "pruner", "allocation")
    ]
    sparsity = OmegaConf.select(_root_, "sparsity", default=None, throw_on_missing=False)
    parts = [str(name) for name in chosen if name not in (None, "auto")]
    parts += [] if sparsity is None else [f"s{sparsity}"]
    return re.sub(r"[^\w.-]+", "-", "_".join(parts))[:LONGEST_LABEL]


def submits_without_sweep() -> str | None:
    """A message if this is a single run and asks for a sweep or a cluster, which it would ignore."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return None
    chosen: Any = HydraConfig.get().runtime.choices
    if chosen.get("sweep") is not None:
        return (
            f"+sweep={chosen['sweep']} describes a sweep, and this is a single run, which would ignore it:"
            " add -m"
        )
    if (cluster := chosen.get("cluster")) not in (None, "none"):
        return (
            f"cluster={cluster} submits sweeps, and this is a single run, which would run on this machine:"
            " add -m (a sweep may have one job)"
        )
    return None


def place_in_sweep() -> str | None:
    """Such as ``job 3 of 0-7: sparsity=0.5``, numbered as the folders of the jobs; None in a single run."""
    if sweep_name() is None:
        return None
    hydra = HydraConfig.get()
    listed = (read_json(Path(str(hydra.sweep.dir)) / JOBS) or {}).get("jobs", [])
    numbers = [job["number"] for job in listed if job["number"] >= 0]
    of = f" of {min(numbers)}-{max(numbers)}" if len(numbers) > 1 else ""
    return f"job {hydra.job.num}{of}: {' '.join(filter_overrides(hydra.overrides.task))}"


def how_to_resume(changed: bool = False) -> str:
    """How to resume this run, or the sweep that it belongs to, in words.

    Args:
        changed: whether an option or the data have to be changed first.
    """
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        return f"to resume: ecoflap status {shlex.quote(str(hydra.sweep.dir))} --rerun-failed"
    change = "change that and " if changed else ""
    place = shlex.quote(path_option("hydra.run.dir", hydra.runtime.output_dir))
    return f"to resume, {change}repeat the command with {place}"


def given_options() -> list[str]:
    """The overrides of this run's config, from the command line or a sweep; empty outside of Hydra."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def record_command(folder: Path, config: DictConfig) -> None:
    """Write into ``.hydra`` how Hydra started this run; nothing outside of Hydra.

    Hydra itself would do so before it is known whether the run is refused, over what an earlier run wrote.

    Args:
        folder: the folder of the run.
        config: the config, as it was composed.
    """
    if not HydraConfig.initialized():
        return
    whole = HydraConfig.instance().cfg
    parts = {"config": config, "hydra": whole, "overrides": HydraConfig.get().overrides.task}
    for name, part in parts.items():
        with replacing(folder / HYDRA / f"{name}.yaml") as temporary:
            temporary.write_text(OmegaConf.to_yaml(part), encoding="utf-8")


def runs_in_sequence() -> bool:
    """Whether this process does the runs of a sweep one after the other."""
    if sweep_name() is None:
        return False
    return str(HydraConfig.get().launcher._target_).endswith(".InProcessLauncher")
