"""``+preset=mini``: which embedded model stands under an experiment.

The files of ``conf/preset/mini`` are named by the folders of ``conf/experiment``; the nearest one counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from ecoflap.cli.choices import Choices
from ecoflap.errors import UserError

EXPERIMENT, PRESET = "+experiment=", "+preset="
MINI = "mini"


def with_presets(arguments: list[str], config_dir: str | None = None) -> list[str]:
    """Rewrite ``mini`` as the preset of the experiment beside it, and put presets behind the experiment.

    Hydra lets the later of two choices win, and a preset is meant to.

    Args:
        arguments: the command line.
        config_dir: a folder with groups beside those of ``conf``.

    Raises:
        UserError: if a sweep's experiments have different minis.
    """
    presets = [argument for argument in arguments if argument.startswith(PRESET)]
    experiments = [argument for argument in arguments if argument.startswith(EXPERIMENT)]
    if not presets or not experiments:
        return arguments
    known = Choices(config_dir).options("preset")
    named = experiments[-1].removeprefix(EXPERIMENT).split(",")
    rewritten = [PRESET + _for(preset.removeprefix(PRESET), named, known) for preset in presets]
    others = [argument for argument in arguments if argument not in presets]
    place = others.index(experiments[-1]) + 1
    return [*others[:place], *rewritten, *others[place:]]


def _for(value: str, experiments: Sequence[str], known: Sequence[str]) -> str:
    """The value of ``+preset=`` with ``mini`` replaced, also where it is one of a list."""
    names = value.strip("[]").split(",")
    if MINI not in names:
        return value
    minis = {_nearest(experiment, known) for experiment in experiments}
    if len(minis) > 1:
        raise UserError(
            f"+preset=mini: these experiments have different minis ({', '.join(sorted(minis))});"
            " sweep over the experiments of one folder, such as +experiment=blip2/wanda,blip2/sparsegpt"
        )
    replaced = ",".join(minis.pop() if name == MINI else name for name in names)
    return f"[{replaced}]" if value.startswith("[") else replaced


def _nearest(experiment: str, known: Sequence[str]) -> str:
    """The preset of the experiment's folder, or of the nearest one above; ``mini`` where there is none."""
    folders = experiment.split("/")[:-1]
    candidates = (f"{MINI}/{'/'.join(folders[:depth])}" for depth in range(len(folders), 0, -1))
    return next((one for one in candidates if one in known), MINI)
