"""Parts that can't go together, or lack something: refused before the model is loaded."""

from __future__ import annotations

from pathlib import Path

from tests.refusals.case import Case

GROUPS = {
    "score": ("BlockNorms", "LayerNorms"),
    "allocation": ("ByNorms", "Bare"),
    "pruner": ("FirstWeights", "Unfinished"),
    "model": ("Unsaved",),
    "calibration": ("Unlimited",),
}


def parts(folder: Path) -> None:
    """A folder of one's own with a config for each part, under the name of its class."""
    for group, classes in GROUPS.items():
        (folder / "conf" / group).mkdir(parents=True)
        for name in classes:
            content = f"_target_: tests.own_parts.{name}\nname: {name}\n"
            if group == "score":
                content += "samples: 4\nbatch_size: 2\n"
            (folder / "conf" / group / f"{name}.yaml").write_text(content)


def case(*overrides: str, says: tuple[str, ...]) -> Case:
    """A command line with that folder."""
    return Case(("--config-dir", "{tmp}/conf", *overrides), says, parts)


CASES = [
    case(
        "allocation=ByNorms",
        "score=none",
        says=("needs scores of kind norms", "there are none", "of that kind"),
    ),
    case("allocation=ByNorms", says=("ByNorms needs scores of kind norms", "zeroth_order gives importance")),
    case(
        "score=LayerNorms", says=("water_filling needs scores of kind importance", "LayerNorms gives norms")
    ),
    case(
        "score=BlockNorms",
        "allocation=water_filling",
        "allocation.granularity=layer",
        says=("score=BlockNorms gives one number per block", "water_filling needs one per layer"),
    ),
    case(
        "allocation=ByNorms",
        "pruner=global_magnitude",
        says=("global_magnitude compares all weights by itself", "allocation=ByNorms would change nothing"),
    ),
    case(
        "allocation=Bare",
        says=(
            "allocation._target_=tests.own_parts.Bare has no requires, footprint, in_trials,",
            "ecoflap.allocate.protocol.Allocator",
        ),
    ),
    case(
        "model=Unsaved",
        says=(
            "model._target_=tests.own_parts.Unsaved has no save",
            "ecoflap.models.loading.protocol.Loader says what a part of model has",
        ),
    ),
    case(
        "calibration=Unlimited",
        says=(
            "calibration._target_=tests.own_parts.Unlimited has no samples",
            "ecoflap.data.protocol.Calibration says what a part of calibration has",
        ),
    ),
    case("pruner=Unfinished", says=("tests.own_parts.Unfinished has no __call__ of its own",)),
    # The mask rules it out before the model is known.
    case(
        "allocation=ByNorms",
        "score=LayerNorms",
        "pruner.mask=2:4",
        "sparsity=0.5",
        says=("pruner.mask=2:4 fixes every layer's sparsity", "use allocation=auto score=auto"),
    ),
]
