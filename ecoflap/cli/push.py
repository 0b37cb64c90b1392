"""Upload a pruned model to the hub, with its model card, recipe, masks and record.

    ecoflap push RUN_OR_FOLDER REPO_ID [--public] [--dry-run]

The saved model is verified first; one that differs from its record is refused. A new repository is private.
With --dry-run, and where HF_HUB_OFFLINE is set, the folder is prepared and nothing is uploaded. Exit code 0:
done. 2: it can't be done.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from ecoflap.console.arguments import ArgumentParser, complain, given_path
from ecoflap.console.tables import table
from ecoflap.errors import UserError

if TYPE_CHECKING:
    from ecoflap.storage.sharing.push import Prepared


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        _push(options)
    except BrokenPipeError:  # the folder is prepared or uploaded
        raise
    except (UserError, OSError) as error:
        from ecoflap.run.refusals import describe  # not for --help: it imports Hydra

        return complain(describe(error) or str(error))
    return 0


def _push(options: argparse.Namespace) -> None:
    from ecoflap.storage.sharing.push import check_name, prepare, push  # it imports torch

    check_name(options.repo_id)
    prepared = prepare(options.place)
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if options.dry_run or offline:
        _show(prepared, options.repo_id)
        reason = "--dry-run" if options.dry_run else "HF_HUB_OFFLINE is set"
        print(f"nothing was uploaded ({reason}); {prepared.folder} is ready")
        return
    from huggingface_hub import HfApi

    address = push(prepared, options.repo_id, not options.public, HfApi())
    print(f"uploaded {len(prepared.files)} files to {address}")


def _show(prepared: Prepared, repo_id: str) -> None:
    rows = [(name, f"{size:,}") for name, size in prepared.files.items()]
    rows.append(("all", f"{sum(prepared.files.values()):,}"))
    table(f"{prepared.folder} -> {repo_id}", ["file", "bytes"], rows)


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="ecoflap push", description=__doc__)
    parser.add_argument(
        "place", type=given_path, help="folder of a run with model.save=true, or of a saved model"
    )
    parser.add_argument("repo_id", help="NAME, or OWNER/NAME")
    parser.add_argument("--public", action="store_true", help="make a new repository public, not private")
    parser.add_argument(
        "--dry-run", action="store_true", help="prepare the folder, say what it holds, and stop"
    )
    return parser
