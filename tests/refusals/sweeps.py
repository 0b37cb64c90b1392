"""Bad sweeps: one impossible job, and none is started."""

from __future__ import annotations

from tests.refusals.case import Case
from tests.refusals.folders import allocation, text

SHORT = ("-m", "calibration.samples=4", "score=none", "task.limit=8")
TEXT = (
    "-m",
    "model=causal_lm",
    "model.path={tmp}/llama",
    "score=none",
    "steps=[calibrate]",
    "calibration=wikitext2",
)

CASES: list[Case] = [
    Case(
        (*SHORT, "sparsity=0.5,1.2"),
        ("job 1 (sparsity=1.2): sparsity=1.2 is outside", "none of the 2 jobs was started"),
    ),
    Case((*SHORT, "sparsity=0.5,1.2", "cluster=local"), ("job 1 (sparsity=1.2): sparsity=1.2 is outside",)),
    Case((*SHORT, "sparsity=1.2"), ("job 0", "sparsity=1.2 is outside")),
    Case(
        (*SHORT, "sparsity=0.5,0.6", "hydra.sweep.subdir=${hydra.job.override_dirname}"),
        ("hydra.sweep.subdir=${hydra.job.override_dirname}", "its number", "leave this out"),
    ),
    Case(
        (*SHORT, "sparsity=0.5,0.6", "hydra.sweep.subdir=${sparsity}", "cluster=local"),
        ("hydra.sweep.subdir=${sparsity}", "its number", "leave this out"),
    ),
    Case(
        (*SHORT, "pruner=wanda,magnitude", "hydra.sweep.dir={tmp}/${pruner.name}"),
        (
            "hydra.sweep.dir={tmp}/${pruner.name}",
            "is {tmp}/wanda, and {tmp}/magnitude for",
            "a sweep has one folder",
        ),
    ),
    Case(
        (*SHORT, "sparsity=0.5,0.6", "cluster=local", "hydra.launcher.nodes=2"),
        ("hydra.launcher.nodes=2: cluster=local has one node", "cluster=slurm"),
    ),
    Case(
        (*SHORT, "sparsity=0.5,0.6", "cluster=local", "hydra.launcher.submitit_folder={tmp}/logs"),
        ("hydra.launcher.submitit_folder={tmp}/logs", "leave it out"),
    ),
    Case((*SHORT, "sparsity=0.5,1.2,2"), ("2 of 3 jobs can't run",)),
    Case((*SHORT, "towers=[vision],[sight]"), ("job 1 (towers=[sight])", "sight", "vision")),
    Case((*SHORT, "batch_size=16,0"), ("job 1 (batch_size=0): batch_size=0",)),
    Case(
        ("-m", "calibration.samples=4", "score=none", "task.limit=8,10000"),
        ("job 1 (task.limit=10000)", "9673 questions"),
    ),
    Case(
        (*SHORT, "pruner=wanda,magnitude", "pruner.mask=row,2:5"),
        ("job 1 (", "and 1 more: ", "(none of the 4 jobs was started)"),
    ),
    Case(
        (*SHORT, "task=easy_vqa,easy_retrieval"), ("job 1 (task=easy_retrieval)", "needs a model that embeds")
    ),
    Case(
        (*SHORT, "task=easy_vqa,easy_retrieval", "cluster=local"), ("job 1 (task=easy_retrieval)", "embeds")
    ),
    Case(
        (*TEXT, "calibration.path={tmp}/text.txt,{tmp}/nowhere.txt", "calibration.sequence_length=8"),
        ("job 1 (calibration.path={tmp}/nowhere.txt)", "no such file"),
        text("text.txt", "cat dog " * 99),
    ),
    Case(
        (*TEXT, "calibration.path={tmp}/text.txt", "calibration.sequence_length=8,300"),
        ("job 1 (calibration.sequence_length=300)", "198 tokens"),
        text("text.txt", "cat dog " * 99),
    ),
    Case(
        (
            "-m",
            "model=causal_lm",
            "model.path={tmp}/llama",
            "allocation=file",
            "allocation.path={tmp}/allocation.json",
            "pruner=magnitude",
            "steps=[allocate,prune]",
            "sparsity=0.5",
            "skip_layers=[],[q_proj]",
        ),
        ("job 1 (skip_layers=[q_proj])", "not a layer to prune here"),
        allocation(lambda value: None),
    ),
]
