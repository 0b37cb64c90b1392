"""Prune a model: python main.py [group=option ...] [key=value ...]; --help lists them."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ecoflap import cli as command_line
from ecoflap.errors import SweepFailed, UserError
from ecoflap.run import config as run_config
from ecoflap.run import refusals

run_config.register()
log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(Path(__file__).parent / "conf"), config_name="config")
def main(config: DictConfig) -> float | None:
    """Run one job; returns the headline metric of the pruned model, for sweepers that search."""
    from ecoflap.console import progress as console
    from ecoflap.run import pipeline

    console.install_logging()
    try:
        if complaint := run_config.submits_without_sweep():
            raise UserError(complaint)
        result = pipeline.run(config, Path(HydraConfig.get().runtime.output_dir))
    except KeyboardInterrupt:
        log.error("interrupted: no result was written; %s", run_config.how_to_go_on())
        sys.exit(130)
    except Exception as error:
        message = refusals.describe(error)
        if (
            HydraConfig.get().mode == RunMode.MULTIRUN
        ):  # the sweep goes on with the next job, and fails at the end
            log.error("job %s: %s", HydraConfig.get().job.num, message or traceback.format_exc())
            raise (UserError(message) if message else error) from None
        if message is None:
            raise
        folder = Path(HydraConfig.get().runtime.output_dir)
        rest = f"; {run_config.how_to_go_on()}" if refusals.has_work(folder) else ""
        log.error("%s%s", message, rest)  # the message is the whole story, a traceback would bury it
        refusals.leave_nothing(folder)
        sys.exit(2)
    return result.headline() if result is not None else None


def start(arguments: list[str]) -> int:
    """Run a command line; returns the exit code: 2 where it asks for something that can't be done, 1 for a
    bug.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then leaves it to us to say what is wrong
    try:
        sys.argv[1:] = arguments = command_line.understood(arguments)
        main()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read what is printed has read enough, as head has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if (
            message := refusals.describe(error)
            or command_line.explain(arguments, error)
            or refusals.of_hydra(error)
        ):
            print(f"error: {message}", file=sys.stderr)
            refusals.leave_no_empty_sweep()
            return error.code if isinstance(error, SweepFailed) else 2
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(start(sys.argv[1:]))
