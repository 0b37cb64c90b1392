"""The example workspace, as the package would store it; nothing is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import composed
from tests.scripts import loaded

EXAMPLE = Path(__file__).parents[2] / "examples" / "wandb_workspace.py"


def test_the_workspace_groups_runs_and_shows_what_they_log() -> None:
    pytest.importorskip("wandb_workspaces", reason="pip install wandb-workspaces")
    built = loaded(EXAMPLE).workspace("me", "ecoflap")
    (runs,) = built._to_model().spec.section.run_sets
    assert [key.name for key in runs.grouping] == ["pruner.value.name", "score.value.name"]
    scatter, choices, media, *tables = [panel for section in built.sections for panel in section.panels]
    assert (scatter.x.name, scatter.y.name, media.media_keys) == ("sparsity", "headline", ["allocation"])
    assert [table.table_name for table in tables] == ["prune", "cost"]
    config = composed([])
    for column in choices.columns[:-1]:
        group, _, option = column.metric.name.partition(".")
        assert option in config[group] if option else group in config
