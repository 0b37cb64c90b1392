"""``ecoflap run`` and ``python main.py``: prune a model, or start a sweep."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ecoflap.cli.arguments import prepared
from ecoflap.cli.hydra_parser import accepting_help_objects
from ecoflap.cli.recipe import primary_config
from ecoflap.cli.wrong import what_is_wrong
from ecoflap.console.arguments import complain
from ecoflap.console.startup import discard_output
from ecoflap.console.wrapping import wrapped
from ecoflap.errors import NumericalError, SweepFailed, UserError
from ecoflap.run import config as run_config
from ecoflap.run import invocation, new_folders, refusals
from ecoflap.storage.file_names import RESULT
from ecoflap.storage.installation import conf_folder

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code.

    1: a bug. 2: it asks for something that can't be done.

    Args:
        arguments: options and Hydra's flags; None for those of this process.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise errors, instead of printing them and exiting
    arguments = sys.argv[1:] if arguments is None else arguments
    run_config.register()
    try:
        arguments, flags = prepared(arguments)
        sys.argv[1:] = arguments
        if flags.help:
            from ecoflap.cli.usage import usage

            print(wrapped(usage(flags), sys.stdout))
        else:
            place = {"config_path": str(conf_folder()), "config_name": primary_config()}
            with accepting_help_objects():
                hydra.main(version_base="1.3", **place)(job)()
    except BrokenPipeError:
        raise
    except Exception as error:
        message = what_is_wrong(arguments, error)
        if message is None:
            traceback.print_exc()
            return 1
        complain(message)
        new_folders.remove_refused_sweeps()
        return error.code if isinstance(error, SweepFailed) else 2
    return 0


def job(config: DictConfig) -> float | None:
    """Do one run; returns its headline metric, of the fine-tuned model if there is one, for sweepers."""
    from ecoflap.console.logs import install_logging
    from ecoflap.run import pipeline

    install_logging()
    if (place := invocation.place_in_sweep()) is not None:
        log.info("%s", place)
    try:
        if refusal := invocation.submits_without_sweep():
            raise UserError(refusal)
        folder = Path(HydraConfig.get().runtime.output_dir)
        result = pipeline.run(config, folder)
    except KeyboardInterrupt:
        log.error("interrupted: no result was written; %s", invocation.how_to_resume())
        sys.exit(130)
    except BrokenPipeError:
        log.error("stopped: the reader of the output has closed it; %s", invocation.how_to_resume())
        discard_output()
        sys.exit(1)
    except Exception as error:
        _fail(error)
    if result is None:
        new_folders.remove_empty_run(folder)
        return None
    return result.headline()


def _fail(error: Exception) -> NoReturn:
    """End a failed run: in a sweep, raise its error; a single run prints one line and exits with code 2.

    Raises:
        Exception: in a sweep, or if the error is a bug.
    """
    message = refusals.describe(error)
    if HydraConfig.get().mode == RunMode.MULTIRUN:  # the sweep does its other jobs, and fails at its end
        log.error("job %s: %s", HydraConfig.get().job.num, message or traceback.format_exc())
        raise (UserError(message) if message else error) from None
    if message is None:
        raise error
    folder = Path(HydraConfig.get().runtime.output_dir)
    stopped = new_folders.is_resumable(folder) and not (folder / RESULT).exists()
    changed = isinstance(error, UserError | NumericalError)
    rest = f"; {invocation.how_to_resume(changed)}" if stopped else ""
    log.error("%s%s", message, rest)
    new_folders.remove_empty_run(folder)
    sys.exit(2)
