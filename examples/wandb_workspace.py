"""Save a W&B workspace that shows the runs of a project as pruned models.

After ``pip install wandb-workspaces`` and ``wandb login``, ``python examples/wandb_workspace.py ENTITY
PROJECT`` prints the address of the workspace.
"""

from __future__ import annotations

import sys
from typing import Any

import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as workspaces

CHOICES = ("pruner.name", "score.name", "allocation.name", "sparsity")


def workspace(entity: str, project: str) -> Any:
    """The workspace: runs by pruner and coarse stage, the result first, then costs.

    Args:
        entity: the user or team.
        project: the project of the runs, ``tracking.project``.
    """
    headline = panels.SummaryMetric("headline")
    result = [
        panels.ScatterPlot(title="result at each sparsity", x=panels.Config("sparsity"), y=headline),
        panels.ParallelCoordinatesPlot(
            title="choices and result",
            columns=[
                *(panels.ParallelCoordinatesPlotColumn(panels.Config(name)) for name in CHOICES),
                panels.ParallelCoordinatesPlotColumn(headline),
            ],
        ),
    ]
    runs = [
        panels.MediaBrowser(title="sparsity of each layer", media_keys=["allocation"]),
        panels.WeavePanelSummaryTable(table_name="prune"),
        panels.WeavePanelSummaryTable(table_name="cost"),
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="Pruned models",
        sections=[
            workspaces.Section(name="Result", panels=result, is_open=True),
            workspaces.Section(name="Allocation, blocks and cost", panels=runs, is_open=True),
        ],
        runset_settings=workspaces.RunsetSettings(
            groupby=[workspaces.Config("pruner.name"), workspaces.Config("score.name")]
        ),
    )


if __name__ == "__main__":
    print(workspace(*sys.argv[1:]).save().url)
