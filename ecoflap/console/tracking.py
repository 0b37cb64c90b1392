"""Experiment tracking: a view of the result record, in W&B or nowhere.

A config group selects a factory (``Nothing`` or ``Wandb``); ``start`` creates the tracker inside the running
job, never at import. The pipeline closes the tracker, also of a run that fails.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ecoflap.console.options import WandbOptions
from ecoflap.errors import UserError, require_choices
from ecoflap.storage.files import typed
from ecoflap.storage.results.environment import redact, redact_argument
from ecoflap.storage.results.identity import run_id

log = logging.getLogger(__name__)

AGENT = "WANDB_SWEEP_ID"
"""The variable that ``wandb agent`` sets for the processes that it starts."""


class Tracker(Protocol):
    """Shows a run's numbers while it runs and afterwards."""

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show one table."""

    def log_image(self, name: str, draw: Callable[[], bytes]) -> None:
        """Show one image; ``draw`` makes a PNG file, and is called only if it is shown."""

    def log_point(self, curve: str, point: Mapping[str, float]) -> None:
        """Show the next point of a group of curves, over ``point["step"]``."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Show the final figures of the run; nested mappings are allowed."""

    def close(self, failed: bool, kept: bool = True) -> None:
        """End the run, marked as failed or finished; ``kept`` is whether its folder stays."""


class Tracking(Protocol):
    """Starts a tracker inside the running job."""

    def start(self, config: dict[str, Any], name: str, folder: Path) -> Tracker:
        """Start to track a run.

        Raises:
            UserError: if the tracker can't be started.
        """


class NoTracker:
    """Tracks nothing; the result record has everything."""

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Ignore a table."""

    def log_image(self, name: str, draw: Callable[[], bytes]) -> None:
        """Ignore an image."""

    def log_point(self, curve: str, point: Mapping[str, float]) -> None:
        """Ignore a point."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Ignore the figures."""

    def close(self, failed: bool, kept: bool = True) -> None:
        """Do nothing."""


class WandbTracker:
    """One W&B run: a few complete tables and a summary, and curves where something is trained."""

    def __init__(
        self,
        project: str | None,
        mode: str = "offline",
        group: str | None = None,
        name: str | None = None,
        tags: Sequence[str] = (),
        id: str | None = None,
        config: dict[str, Any] | None = None,
        folder: Path = Path("."),
        entity: str | None = None,
    ) -> None:
        """Start the run, or resume the run with the same id, as a requeued job does.

        Args:
            project: W&B project; None for that of the sweep whose agent started this process.
            mode: ``offline`` (files only), ``online`` or ``disabled``.
            group: Name shared by the runs of a sweep.
            name: Name of this run.
            tags: Labels to filter by.
            id: Deterministic id, see ``run_id``; None for that of the agent, or a random one.
            config: The resolved config; secrets are redacted.
            folder: Parent of the ``wandb`` folder.
            entity: Team or user that the project belongs to; None for the default of the account.

        Raises:
            UserError: if W&B is not installed or can't start.
        """
        # W&B's telemetry may be shut down twice when a process ends, and would warn of it then.
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        # W&B quietly writes to the system's temporary folder when this one does not exist.
        Path(folder).mkdir(parents=True, exist_ok=True)
        try:
            import wandb

            # Annotated as Any, because W&B's types list the modes one by one; it checks them itself.
            where: dict[str, Any] = {"entity": entity, "project": project, "mode": mode, "dir": str(folder)}
            settings = wandb.Settings(silent=True, console="off", disable_code=True)
            what = {
                "id": id,
                "group": group,
                "name": name,
                "tags": list(tags),
                "config": redact(config or {}),
            }
            self._table, self._image, self._artifact = wandb.Table, wandb.Image, wandb.Artifact
            with _redacted_command():
                self._run = wandb.init(
                    **where, **what, resume="allow", reinit="finish_previous", settings=settings
                )
        except Exception as error:  # from wandb, pydantic, protobuf or the operating system
            raise UserError(
                f"W&B could not start (project {project!r}, mode {mode!r}): {str(error).rstrip('. ')}. "
                "Run without it: tracking=none. Without a network or a login: tracking.mode=offline"
            ) from error
        self._mode = mode

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log one table; a column may mix numbers and empty cells."""
        data = [list(row) for row in rows]
        self._run.log({name: self._table(columns=list(columns), data=data, allow_mixed_types=True)})

    def log_image(self, name: str, draw: Callable[[], bytes]) -> None:
        """Log one image."""
        from PIL import Image

        self._run.log({name: self._image(Image.open(io.BytesIO(draw())))})

    def log_folder(self, name: str, folder: Path) -> None:
        """Log the files of a folder as one artefact."""
        artifact = self._artifact(name, type="report")
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            artifact.add_file(str(file), name=file.relative_to(folder).as_posix())
        self._run.log_artifact(artifact)

    def log_point(self, curve: str, point: Mapping[str, float]) -> None:
        """Log one point of live curves, named ``curve/figure``."""
        self._run.define_metric(f"{curve}/*", step_metric=f"{curve}/step")
        self._run.log({f"{curve}/{name}": value for name, value in point.items()})

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set the run's summary figures."""
        self._run.summary.update(dict(values))

    def close(self, failed: bool, kept: bool = True) -> None:
        """Finish the run, with exit code 1 if it failed, and log where to see it, unless its folder goes."""
        self._run.finish(exit_code=int(failed))
        if self._mode == "offline" and kept:
            log.info("W&B run kept offline; to upload it: wandb sync %s", typed(Path(self._run.dir).parent))
        elif self._mode == "online":
            log.info("W&B run: %s", self._run.url)


@contextmanager
def _redacted_command() -> Iterator[None]:
    """Show the arguments of this process, which W&B records, without secrets."""
    given = sys.argv
    sys.argv = [redact_argument(argument) for argument in given]
    try:
        yield
    finally:
        sys.argv = given


@dataclass
class Nothing:
    """Factory of ``tracking=none``."""

    def start(self, config: dict[str, Any], name: str, folder: Path) -> Tracker:
        """A tracker that does nothing."""
        return NoTracker()


@dataclass(frozen=True)
class Wandb(WandbOptions):
    """Factory of ``tracking=wandb``."""

    def __post_init__(self) -> None:
        require_choices("tracking", self)

    def start(self, config: dict[str, Any], name: str, folder: Path) -> Tracker:
        """Start a W&B run whose id follows from the group and the config.

        A repeated job therefore updates its run instead of adding one. In a process that ``wandb agent``
        started, the project and the id are the agent's, so that its sweep sees the run.
        """
        given = self.mode, self.group, name, self.tags
        if AGENT in os.environ:
            return WandbTracker(None, *given, None, config, folder)
        identity = run_id({**config, "group": self.group})
        return WandbTracker(self.project, *given, identity, config, folder, self.entity)
