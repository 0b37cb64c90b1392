"""Prune a model: python main.py [group=option ...] [key=value ...]; --help lists them."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ecoflap import config as run_config
from ecoflap.errors import NumericalError, UserError

run_config.register()
log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float | None:
    """Run one job; returns the headline metric of the pruned model, for sweepers that search."""
    from ecoflap import console, pipeline

    console.install_logging()
    if complaint := run_config.submits_without_sweep():
        log.error("%s", complaint)
        sys.exit(2)
    try:
        result = pipeline.run(config, Path(HydraConfig.get().runtime.output_dir))
    except (UserError, NumericalError) as error:
        log.error("%s", error)  # the message is the whole story, a traceback would bury it
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # the sweep goes on with the next job and fails at the end
        sys.exit(2)
    except KeyboardInterrupt:
        log.error("interrupted: no result was written; %s", run_config.how_to_go_on())
        sys.exit(130)
    return result.headline() if result is not None else None


if __name__ == "__main__":
    sys.argv[1:] = run_config.with_suites(sys.argv[1:])
    if complaint := run_config.unknown_keys(sys.argv[1:]):
        sys.exit(f"error: {complaint}")
    main()
