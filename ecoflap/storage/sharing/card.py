"""The model card of a pruned model, written from its record; what the record does not say is left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ecoflap.storage.file_names import BITMASK_INDEX, CARD
from ecoflap.storage.files import replacing
from ecoflap.storage.markdown import markdown_row
from ecoflap.storage.results.metrics import NORMAL, is_count
from ecoflap.storage.results.record import Result
from ecoflap.storage.results.sparsity import LEAST_SPARSITY, LEAST_WEIGHTS
from ecoflap.storage.sharing.base_model import BaseModel, describe_base, model_name, saved_settings
from ecoflap.storage.sharing.origin import origin

MARK = "<!-- Written by ecoflap, which replaces a card with this line. -->"
GAINS = "## What it gains\n\n"
UNITS = "Whole units were removed"
MASKED = """\
The removed weights are stored as zeros in matrices of the old shape. Loaded as it is, this model takes as
much disk and memory as the dense one, and runs as fast: zeros are multiplied like other numbers.
What it gains is what a sparse format or kernel makes of the zeros: `ecoflap convert FOLDER OUT --to coded`
writes files without them."""
WITHOUT_ZEROS = """\
The files hold the weights that are not zero and where they belong; `ecoflap.load_pruned(FOLDER)` loads them,
and `ecoflap convert FOLDER OUT --to dense` writes what plain `from_pretrained` loads. Once loaded, the model
takes as much memory as the dense one and runs as fast: zeros are multiplied like other numbers."""
SPARSE = """\
On a CPU with AVX2 or AVX-512, `ecoflap.load_pruned(FOLDER, sparse=True)` leaves the zeros of large linear
layers out of memory and of products."""
N_OF_M = """\
Its zeros lie in the pattern {pattern}. GPUs with sparse tensor cores can use the pattern 2:4, by
`torch.sparse.to_sparse_semi_structured`; `ecoflap bench` measures whether that pays for this model."""
SMALLER = f"""\
{UNITS}, so that the matrices themselves are smaller. The model takes less disk and memory,
without any special format or kernel."""
SMALLER_WITHOUT_ZEROS = f"""\
{UNITS}, so that the matrices themselves are smaller: the loaded model takes less memory,
without any special kernel. The files hold the weights that are not zero and where they belong;
`ecoflap.load_pruned(FOLDER)` loads them, and `ecoflap convert FOLDER OUT --to dense` writes the safetensors
that plain `from_pretrained` needs."""
FEWER_EXPERTS = """\
The router sends each token to as many experts as in the dense model, so that a token takes as much work."""
NARROWER = "It also does less work."
OWN_LOADING = """\
Its attentions and MLPs have widths that the class in transformers has no settings for: it loads with
`ecoflap.load(FOLDER)`, not with plain `from_pretrained`."""


def write_card(folder: Path, result: Result) -> Path | None:
    """Write ``README.md`` into the folder of a saved model; None if it has a card that is not ours.

    Args:
        folder: the folder of the saved model.
        result: the record of the run.
    """
    if has_own_card(folder):
        return None
    with replacing(folder / CARD) as temporary:
        temporary.write_text(model_card(result, folder), encoding="utf-8")
    return folder / CARD


def adapt_card(folder: Path) -> None:
    """Say in a card that ecoflap wrote what the form of the weights beside it gains; the rest stays.

    Args:
        folder: the folder of the saved model, whose weights may have been written in another form.
    """
    file = folder / CARD
    if not file.is_file() or has_own_card(folder):
        return
    text = file.read_text(encoding="utf-8")
    before, heading, gains = text.partition(GAINS)
    if not heading:
        return
    of_form, separator, rest = gains.partition("\n\n")  # perhaps in the words of another version
    units = of_form.startswith(UNITS)
    forms = (SMALLER, SMALLER_WITHOUT_ZEROS) if units else (MASKED, WITHOUT_ZEROS)
    with replacing(file) as temporary:
        temporary.write_text(before + heading + _of_form(folder, *forms) + separator + rest, encoding="utf-8")


def has_own_card(folder: Path) -> bool:
    """Whether a folder has a card that ecoflap did not write."""
    file = folder / CARD
    return file.is_file() and MARK not in file.read_text(encoding="utf-8", errors="replace")


def model_card(result: Result, folder: Path) -> str:
    """The card: front matter of the hub, then the method, sparsity, metrics, data, origin and use."""
    model = result.config.get("model") or {}
    base, name = describe_base(model, folder), model_name(model, result.model["name"])
    parts = [
        _front_matter(result, base),
        MARK,
        f"# {name}, {_extent(result)}",
        _about(result, base, name),
        "## Sparsity\n\n" + "\n".join(_sparsity(result)),
        "## Metrics\n\n" + "\n".join(_metrics(result)),
        GAINS + "\n\n".join(_gains(result, folder)),
        "## How it was made\n\n" + "\n".join(origin(result, folder)),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(result: Result, base: BaseModel) -> str:
    kind = "structured" if result.is_structured else "sparse"
    tags = ["ecoflap", "pruned", kind, _name(result.config, "pruner"), result.pattern]
    known = {
        **base.license,
        "base_model": base.id,
        "library_name": base.library,
        "pipeline_tag": base.pipeline_tag,
        "tags": [tag for tag in dict.fromkeys(tags) if tag],
    }
    kept = {name: value for name, value in known.items() if value}
    return f"---\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)}---"


def _about(result: Result, base: BaseModel, name: str) -> str:
    """The method, in a sentence per thing that is known."""
    target, coarse = result.sparsity.get("target"), result.sparsity.get("coarse")
    origin = f"[{base.id}](https://huggingface.co/{base.id})" if base.id else f"`{name}`"
    how = "and trained" if "prune" in result.data else "in one shot"
    lines = [f"{origin}, pruned {how} by `{_name(result.config, 'pruner') or 'an unnamed pruner'}`"]
    if mask := (result.config.get("pruner") or {}).get("mask"):
        lines[0] += f" (mask: {mask})"
    lines[0] += "."
    if target is not None:
        lines.append(f"Target: {100 * target:g} % of the prunable weights.")
    if coarse == "none":
        lines.append("All layers have the same sparsity.")
    elif coarse is not None:
        per = (result.allocation or {}).get("granularity")
        lines.append(f"Sparsities{f' per {per}' if per else ''} by `{coarse}`.")
    if "finetuned" in result.metrics or "finetune" in result.data:
        lines.append(f"Then fine-tuned by `{_name(result.config, 'finetune') or 'an unnamed method'}`.")
    if not base.license:
        lines.append("The license of the dense model was not found; look it up before you share this one.")
    return "\n".join(lines)


def _sparsity(result: Result) -> Iterator[str]:
    if result.is_structured:
        yield f"Whole units were removed; {result.model['parameters']:,} parameters remain."
        return
    yield from _table(["part", "weights", "zeros", "sparsity"], _parts(result.sparsity, result.model))


def _parts(section: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[list[str]]:
    layers = section["layers"].values()
    for tower in section["towers"]:
        yield _counted(tower, [layer for layer in layers if layer["tower"] == tower])
    yield _counted("all prunable layers", layers)
    zeros = sum(layer["zeros"] for layer in layers)
    yield ["whole model", f"{model['parameters']:,}", f"{zeros:,}", f"{100 * section['model']:.2f} %"]


def _counted(name: str, layers: Iterable[Mapping[str, Any]]) -> list[str]:
    counts = [(layer["size"], layer["zeros"]) for layer in layers]
    size, zeros = sum(one for one, _ in counts), sum(one for _, one in counts)
    return [name, f"{size:,}", f"{zeros:,}", f"{100 * zeros / max(size, 1):.2f} %"]


def _metrics(result: Result) -> Iterator[str]:
    """A row per metric, with its 95 % interval where the run has a standard error."""
    stages = [stage for stage in ("dense", "pruned", "finetuned") if result.metrics.get(stage)]
    if not stages:
        yield "Not evaluated."
        return
    rows, errors = [], False
    by_task = result.metrics[stages[-1]]
    known = result.standard_errors or {}
    for task, values in by_task.items():
        errors_of = {stage: known.get(stage, {}).get(task, {}) for stage in stages}
        for metric in values:
            found = {stage: result.metrics[stage].get(task, {}).get(metric) for stage in stages}
            cells = [_figure(metric, found[stage], errors_of[stage].get(metric)) for stage in stages]
            errors |= any("±" in cell for cell in cells)
            rows.append([task, metric, *cells])
    yield from _table(["task", "metric", *stages], rows)
    yield ""
    seed = result.config.get("seed")
    spread = "±: 95 % intervals over the items of a task" if errors else "No standard errors are known"
    yield f"{spread}; one run{'' if seed is None else f', seed {seed}'}."


def _figure(metric: str, value: Any, error: float | None) -> str:
    if not isinstance(value, int | float):
        return "" if value is None else str(value)
    shown = f"{value:,.0f}" if is_count(metric, value) else f"{value:.4g}"
    return shown if error is None else f"{shown} ± {NORMAL * error:.2g}"


def _gains(result: Result, folder: Path) -> Iterator[str]:
    if result.is_structured:
        yield _of_form(folder, SMALLER, SMALLER_WITHOUT_ZEROS)
        if "experts" in ((result.allocation or {}).get("details") or {}):
            yield FEWER_EXPERTS
        if "kept_units" in saved_settings(folder):
            yield NARROWER
            yield OWN_LOADING
        return
    yield _of_form(folder, MASKED, WITHOUT_ZEROS)
    layers = result.sparsity["layers"].values()
    if any(one["size"] >= LEAST_WEIGHTS and one["zeros"] >= LEAST_SPARSITY * one["size"] for one in layers):
        yield SPARSE
    if pattern := result.pattern:
        yield N_OF_M.format(pattern=pattern)


def _of_form(folder: Path, dense: str, without_zeros: str) -> str:
    """The text that is true of the form of the weights."""
    return without_zeros if (folder / BITMASK_INDEX).is_file() else dense


def _extent(result: Result) -> str:
    """How much is gone, for the title."""
    if result.is_structured:
        return "whole units removed"
    return f"{100 * result.sparsity['prunable']:.4g} % sparse"


def _name(config: Mapping[str, Any], group: str) -> str | None:
    """The name of a part; that of its class, if it has none."""
    part = config.get(group) or {}
    name = part.get("name") or str(part.get("_target_", "")).rpartition(".")[2]
    return str(name) or None


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield markdown_row(columns)
    yield markdown_row("---" if column in ("task", "metric", "part") else "---:" for column in columns)
    yield from map(markdown_row, rows)
