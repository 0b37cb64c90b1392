"""Bad files and folders: configs of one's own, the classes that they name, environment variables, run
folders, allocations.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.refusals.case import Case

Prepare = Callable[[Path], None]
OWN = ("--config-dir", "{tmp}/conf", "pruner=own")
LONG = "x" * 300


def own(content: str | bytes, module: str = "", code: str = "") -> Prepare:
    """A pruner's config in a folder of one's own, and a module beside the folder."""

    def write(folder: Path) -> None:
        place = folder / "conf" / "pruner"
        place.mkdir(parents=True)
        (place / "own.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        if module:
            (folder / module).write_text(code)

    return write


def taken(folder: Path) -> None:
    """A file where a folder is wanted."""
    (folder / "file").write_text("taken")


def allocation(content: str) -> Prepare:
    """An allocation's file."""

    def write(folder: Path) -> None:
        (folder / "allocation.json").write_text(content)

    return write


CONFIGS: list[Case] = [
    Case(
        OWN,
        ("{tmp}/conf/pruner/own.yaml, line 2", "a tab", "indent with spaces"),
        own("_target_: x\n\tname: 3\n"),
    ),
    Case((*OWN, "seed=1"), ("{tmp}/conf/pruner/own.yaml, line 2", "no YAML"), own("_target_: [x\nname: 3\n")),
    Case(
        (*OWN, "seed=2"),
        ("{tmp}/conf/pruner/own.yaml, line 2", "duplicate key _target_"),
        own("_target_: x\n_target_: y\n"),
    ),
    Case(
        (*OWN, "seed=3"),
        ("{tmp}/conf/pruner/own.yaml is not text in UTF-8", "iconv"),
        own("# caf\xe9\n".encode("latin-1")),
    ),
    Case(
        (*OWN, "seed=4"),
        ("{tmp}/conf/pruner/own.yaml is not text in UTF-8",),
        own("_target_: x\n".encode("utf-16")),
    ),
    Case(
        (*OWN, "seed=5"), ("pruner._target_=None is not a class", "_target_: module.Class"), own("- a\n- b\n")
    ),
    Case((*OWN, "seed=6"), ("pruner._target_=None is not a class", "_target_: module.Class"), own("")),
    Case(
        (*OWN, "seed=7"),
        ("pruner._target_=os.system is not a dataclass", "as in ecoflap"),
        own("_target_: os.system\ncommand: ls\n"),
    ),
    Case(
        (*OWN, "seed=8"),
        ("pruner._target_=collections.Counter is not a dataclass",),
        own("_target_: collections.Counter\n"),
    ),
    Case(
        (*OWN, "seed=9"),
        ("is not a valid pruner: it has no method together or prune",),
        own("_target_: ecoflap.score.local.Local\nmeasure: wanda\n"),
    ),
    Case(
        (*OWN, "seed=10"),
        ("wanda.Wnda can't be loaded", "check its name"),
        own("_target_: ecoflap.prune.wanda.Wnda\n"),
    ),
    Case(
        (*OWN, "seed=11"),
        (
            "nowhere.Class can't be loaded",
            "No module named 'nowhere'",
            "--config-dir FOLDER, with nowhere.py",
        ),
        own("_target_: nowhere.Class\n"),
    ),
    Case(
        (*OWN, "seed=16"),
        ("broken_part.Class can't be loaded", "has no attribute 'sqroot', {tmp}/broken_part.py, line 2)"),
        own("_target_: broken_part.Class\n", "broken_part.py", "import math\nRATE = math.sqroot(2)\n"),
    ),
    Case((*OWN, "seed=12"), ("pruner._target_=Wanda is not a class",), own("_target_: Wanda\n")),
    Case((*OWN, "seed=13"), ("pruner._target_=3 is not a class",), own("_target_: 3\n")),
    Case(
        (*OWN, "seed=14"),
        ("pruner.maks is not an option", "did you mean mask?"),
        own("_target_: ecoflap.prune.wanda.Wanda\nmaks: row\n"),
    ),
    Case((*OWN, "seed=15"), ("nothing_here",), own("defaults:\n  - nothing_here\n_target_: x\n")),
    Case((*OWN[:2], "pruner=owm"), ("no pruner 'owm'", "did you mean own?"), own("_target_: x\n")),
    Case((*OWN[:2], "model=own"), ("no model 'own'",), own("_target_: x\n")),
]
INTERPOLATIONS: list[Case] = [
    Case(("model.path=${oc.env:NOPE}",), ("model.path", "NOPE is not set", "${oc.env:NOPE,VALUE}")),
    Case(("cache=${oc.env:NOPE}/cache",), ("cache", "NOPE is not set", "${oc.env:NOPE,VALUE}")),
    Case(("hydra.run.dir=${oc.env:NOPE}",), ("hydra.run.dir", "NOPE is not set", "${oc.env:NOPE,VALUE}")),
    Case(
        ("-m", "hydra.sweep.dir=${oc.env:NOPE}"),
        ("hydra.sweep.dir", "NOPE is not set", "${oc.env:NOPE,VALUE}"),
    ),
    Case(
        ("model.path=${HOME}/x",),
        ("model.path", "${HOME} refers to an option that is not there", "${oc.env:HOME}"),
    ),
    Case(("model.path=${model.pth}",), ("model.path", "${model.pth} refers to an option that is not there")),
    Case(("model.path=${nope:x}",), ("model.path", "nope", "oc.env")),
    Case(("model.path=${model.path}",), ("model.path", "Recursive interpolation")),
    Case(
        ("--cfg", "job", "--resolve", "model.path=${oc.env:NOPE}"),
        ("NOPE is not set", "${oc.env:NOPE,VALUE}"),
    ),
    Case(
        (*OWN, "seed=1"),
        ("NOPE is not set",),
        own("_target_: ecoflap.prune.wanda.Wanda\nmask: ${oc.env:NOPE}\n"),
    ),
]
FOLDERS: list[Case] = [
    Case(("hydra.run.dir={tmp}/file",), ("{tmp}/file", "a file is where a folder has to be"), taken),
    Case(("hydra.run.dir={tmp}/file/run",), ("{tmp}/file/run", "a file is where a folder has to be"), taken),
    Case(("hydra.run.dir=/proc/nowhere/run",), ("/proc/nowhere", "none can be made there", "check the path")),
    Case((f"hydra.run.dir={{tmp}}/{LONG}",), ("{tmp}/xxx", "too long", "shorter")),
    Case(
        ("-m", "hydra.sweep.dir={tmp}/file/sweep"),
        ("{tmp}/file/sweep", "a file is where a folder has to be"),
        taken,
    ),
    Case(("-m", f"hydra.sweep.dir={{tmp}}/{LONG}"), ("{tmp}/xxx", "too long", "shorter")),
]
ALLOCATIONS: list[Case] = [
    Case(
        ("allocation=file", "allocation.path={tmp}/nowhere.json"),
        ("allocation.path={tmp}/nowhere.json", "no such file", "allocation.json"),
    ),
    Case(("allocation=file", "allocation.path={tmp}"), ("allocation.path={tmp}", "allocation.json")),
    Case(
        ("allocation=file", "allocation.path={tmp}/allocation.json"),
        ("is not an allocation file",),
        allocation("{"),
    ),
    Case(
        ("allocation=file", "allocation.path={tmp}/allocation.json", "seed=1"),
        ("is not an allocation file",),
        allocation("[]"),
    ),
    Case(
        ("allocation=file", "allocation.path={tmp}/allocation.json", "seed=2"),
        ("is not an allocation file", "keep"),
        allocation("{}"),
    ),
    Case(
        ("allocation=file", "allocation.path={tmp}/allocation.json", "seed=3"),
        ("is not an allocation file",),
        allocation("\0\1"),
    ),
    Case(
        ("allocation=file", "allocation.path={tmp}/allocation.json", "seed=4"),
        ("was made for sparsity=0.3", "set sparsity=0.3"),
        allocation('{"keep": {}, "sizes": {}, "target": 0.3, "granularity": "block"}'),
    ),
    Case(
        ("allocation=file", "allocation.path={tmp}/allocation.json", "seed=5"),
        ("has no entry for",),
        allocation('{"keep": {}, "sizes": {}, "target": 0.6, "granularity": "block"}'),
    ),
]
CASES = [*CONFIGS, *INTERPOLATIONS, *FOLDERS, *ALLOCATIONS]
