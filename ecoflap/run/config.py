"""The config of a run, typed and checked before any work; imports no torch, so that ``--help`` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, OmegaConf

from ecoflap.blocks.choices import PROPAGATE, TOKENS
from ecoflap.errors import UserError
from ecoflap.models.loading.options import OFFLOAD
from ecoflap.run import registry, tables
from ecoflap.run.invocation import run_label, sweep_name
from ecoflap.storage.cache.store import MODES
from ecoflap.storage.file_names import CACHE
from ecoflap.storage.installation import package_origin

STEPS = ("calibrate", "score", "allocate", "prune", "finetune", "evaluate")
OPTIONAL_STEPS = ("finetune",)
METHODS = {
    "model": ("load",),
    "calibration": ("load",),
    "score": ("__call__",),
    "allocation": ("__call__",),
    "pruner": ("together", "prune"),
    "finetune": ("finetune",),
    "task": ("load",),
    "tracking": ("start",),
}
"""{group: the methods of which its class must have at least one}."""


@dataclass
class RuntimeConfig:
    """How a run uses the machine; changes no result.

    Attributes:
        offload: where blocks and hidden states are while they are not in use: none (on the device), cpu, or
            disk (the model's own safetensors shards).
    """

    offload: str = field(default="none", metadata={"choices": OFFLOAD})


@dataclass
class RunConfig:
    """What a run does; each group (model, score, ...) is the dataclass that its ``_target_`` names.

    Attributes:
        sparsity: share of the prunable weights to remove, in [0, 1).
        seed: seed of all random draws.
        towers: the towers to prune; null for all except projections (merger, perceiver, connector, Q-Former)
            and towers that the loss never runs.
        skip_layers: regular expressions of layers to leave dense.
        steps: which of calibrate, score, allocate, prune, finetune and evaluate to run, in this order.
        batch_size: samples per forward pass of the fine stage.
        propagate: what comes before a layer when the fine stage measures its inputs: pruned blocks and its
            own block dense (pruned), everything pruned (layer; one pass where a batch holds all samples),
            everything pruned and the weights compensated for that before they are pruned (compensated), or
            dense blocks (dense; one pass). Each gives a different result. auto is dense for a pruner that
            leaves kept weights unchanged with an allocation that prunes in trials, else pruned.
        tokens: which tokens count when the fine stage or an allocation measures inputs, in towers that read
            text and visual tokens: all, text, answer, or text and the visual tokens that a block moves most
            (atv). Each gives a different result; scores count all.
        device: the device that runs the model: auto (the accelerator if there is one), cpu, cuda, cuda:1, ...
        inspect: only print what would be pruned; no weights are loaded.
        runtime: how the machine is used.
        cache: folder of the stage cache, which stores the results of steps for other runs.
        cache_mode: whether to read and write the stage cache (use), to overwrite it (refresh), to read it
            only (readonly), or not to use it (off).
        resume: resume a stopped run of the same config in this folder; false deletes its files.
    """

    model: Any = MISSING
    calibration: Any = MISSING
    score: Any = MISSING
    allocation: Any = MISSING
    pruner: Any = MISSING
    finetune: Any = MISSING
    task: Any = MISSING
    tracking: Any = MISSING
    sparsity: float = MISSING
    seed: int = 0
    towers: list[str] | None = None
    skip_layers: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=lambda: [step for step in STEPS if step not in OPTIONAL_STEPS])
    batch_size: int = 16
    propagate: str = field(default="auto", metadata={"choices": PROPAGATE})
    tokens: str = field(default="all", metadata={"choices": TOKENS})
    device: str = "auto"
    inspect: bool = False
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    cache: str = CACHE
    cache_mode: str = field(default="use", metadata={"choices": MODES})
    resume: bool = True


def register() -> None:
    """Register ``run_config``, the options of parts, the rows of tables and our resolvers with Hydra."""
    ConfigStore.instance().store(name="run_config", node=RunConfig)
    registry.register()
    tables.register()
    OmegaConf.register_new_resolver("package_file", package_file, replace=True)
    OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)
    OmegaConf.register_new_resolver("run_label", run_label, replace=True)


def check_merged() -> None:
    """Refuse a list of choices of one group, which Hydra merges into one.

    Raises:
        UserError: if there is such a list.
    """
    if not HydraConfig.initialized():
        return
    chosen = HydraConfig.get().runtime.choices
    if chosen.get("task") is None:
        raise UserError(
            "a list of tasks is understood as task=[one,other] on the command line only; elsewhere, name a"
            " suite such as task=easy_suite"
        )
    for group in METHODS:
        if chosen.get(group) is None:
            raise UserError(
                f"{group}=[...]: a run has one {group}, and Hydra would merge several into one; choose one,"
                " or sweep over them with -m"
            )


def package_file(path: str) -> str:
    """The path of a file or folder inside the package; in a code snapshot, its path in the original code."""
    return str(package_origin() / path)
