"""Hydra looks for launchers in this namespace only; the launchers themselves are in ``ecoflap.sweeps``."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore

from ecoflap.sweeps import in_process, local, slurm
from ecoflap.sweeps import launcher_options as options


class InProcessLauncher(in_process.InProcessLauncher):
    """``hydra/launcher=ecoflap_in_process``."""


class LocalLauncher(local.LocalLauncher):
    """``hydra/launcher=ecoflap_local``."""


class SlurmLauncher(slurm.SlurmLauncher):
    """``hydra/launcher=ecoflap_slurm``."""


ConfigStore.instance().store(
    group="hydra/launcher", name="ecoflap_in_process", node=options.InProcessOptions, provider="ecoflap"
)
ConfigStore.instance().store(
    group="hydra/launcher", name="ecoflap_local", node=options.LocalOptions, provider="ecoflap"
)
ConfigStore.instance().store(
    group="hydra/launcher", name="ecoflap_slurm", node=options.SlurmOptions, provider="ecoflap"
)
