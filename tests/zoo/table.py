"""The table of architectures in the docs, made by examining every one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import transformers

from tests.zoo.compare import ALGORITHMS
from tests.zoo.examine import Row

INTRODUCTION = """# Architectures

`make zoo-table` made this page with transformers {release}. It built {count} architectures at a tiny size, with random weights,
pruned half of their weights with Wanda and SparseGPT, and scored them by zeroth and first order. Each result was compared
with a slow reference that shares no code with the package's block runner: full forward passes of the whole model with hooks
on its layers, probes added to the weights themselves, and plain automatic differentiation. Equal means the same masks except
where metrics are equal up to rounding, statistics that agree to 1e-4, and scores that agree to 1e-3.

- **kind**: experts are decoders with routed experts; hybrid models have state-space, linear-attention or convolution layers.
- **layers**: the number of weight matrices that are pruned, in a model of two to four blocks per tower.
- **prunable**: the share of all weights in the blocks that these layers have. Each matrix of each expert is a layer;
  routers, indexers and convolutions are not.
- **result**: equal; or refused, with the error that ends a run. If the error names layers to leave dense, they were left
  dense, and the rest was compared. Models get no sound as input, so towers that read sound are left out.

`make test-zoo` compares each architecture in more ways: pruned layer by layer; what in-context allocation, the default, measures
of a pruned model; in bfloat16, the dtype of most checkpoints; and on a pretend accelerator.

{sums}
{built}. Models of sound were not built.

"""
ALL_BUILT = "Every model of transformers' image-text-to-text list was built"


def result(row: Row) -> str:
    """What the table says of an architecture."""
    if row.wrong:
        return f"**wrong**: {row.wrong[0]}"
    parts = ["equal"] if row.found else []
    if row.skipped:
        reason = (row.refusal or "").split("; leave")[0]
        parts = [f"equal with `skip_layers=[{','.join(row.skipped)}]`, refused without: {reason}"]
    elif row.refusal:
        parts = [f"refused: {row.refusal}"]
    refused = [f"{name} refused: {found.refusal}" for name, found in row.found.items() if found.refusal]
    if len(refused) == len(ALGORITHMS):
        parts = []
    return "; ".join([*parts, *refused])


def write_table(
    file: Path, rows: Mapping[str, Row], not_compared: Mapping[str, str], not_built: Sequence[str]
) -> None:
    """Write the page."""
    counts = Counter(outcome(row) for row in rows.values())
    sums = "; ".join(f"{count} {name}" for name, count in counts.most_common()) + "."
    lines = [
        "| architecture | class | kind | towers | layers | prunable | result |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in sorted(
        rows.items(), key=lambda item: (KINDS.index(item[1].architecture.kind), item[0].lower())
    ):
        shown = [
            name,
            row.architecture.model,
            row.architecture.kind,
            ", ".join(row.towers),
            row.layers,
            f"{row.share:.0%}",
            result(row),
        ]
        lines.append(f"| {' | '.join(map(str, shown))} |")
    lines += [f"| {name} | | | | | | not compared: {reason} |" for name, reason in not_compared.items()]
    built = (
        f"Not built, of transformers' image-text-to-text list: {', '.join(not_built)}"
        if not_built
        else ALL_BUILT
    )
    page = INTRODUCTION.format(release=transformers.__version__, count=len(rows), sums=sums, built=built)
    file.write_text(page + "\n".join(lines) + "\n")


def outcome(row: Row) -> str:
    """In a word or two."""
    if row.wrong:
        return "wrong"
    if not row.found:
        return "refused"
    if any(found.refusal for found in row.found.values()):
        return "equal where not refused"
    return "equal with layers left dense" if row.skipped else "equal"


KINDS: Sequence[str] = ("decoder", "experts", "hybrid", "encoder-decoder", "vision-language", "encoder")
