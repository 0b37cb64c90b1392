"""Allocations beside the uniform one with a column for each model: a summary, then a table per pruner."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from ecoflap.storage.markdown import markdown_row
from ecoflap.sweeps.report.cells import statistics
from ecoflap.sweeps.report.pairs import BETTER, WORSE, Pairs
from ecoflap.sweeps.report.table import figure

Group = dict[str, dict[str, Pairs]]
"""Allocation -> model and metric -> its pairs, under one pruner at one sparsity."""


def markdown(found: Sequence[Pairs]) -> Iterator[str]:
    """The lines of the summary and of the tables, with empty lines between them."""
    groups: dict[tuple[str, float], Group] = defaultdict(lambda: defaultdict(dict))
    for pairs in sorted(found, key=lambda one: (one.method.order, one.sparsity)):
        group = groups[_pruner(pairs), pairs.sparsity]
        group[pairs.method.coarse][f"{pairs.table.model} {pairs.table.metric}"] = pairs
    yield from _summary(found)
    for (pruner, sparsity), group in groups.items():
        yield ""
        yield from _table(f"{pruner} at {sparsity:g}", group)


def _pruner(pairs: Pairs) -> str:
    """The pruner, with what else distinguishes the uniform allocation from others."""
    return ", ".join(filter(None, [pairs.baseline.pruner, pairs.baseline.setting]))


def _summary(found: Sequence[Pairs]) -> Iterator[str]:
    """The number of models, metrics and sparsities where an allocation is better, neither, and worse."""
    by_coarse: dict[str, list[Pairs]] = defaultdict(list)
    for pairs in found:
        by_coarse[pairs.method.coarse].append(pairs)
    pruners = sorted(set(map(_pruner, found)))
    yield markdown_row(["better / neither / worse than uniform", *pruners])
    yield markdown_row(["---"] + ["---:"] * len(pruners))
    for coarse, cells in sorted(by_coarse.items(), key=lambda item: (-_balance(item[1]), item[0])):
        counts = (_counts([one for one in cells if _pruner(one) == pruner]) for pruner in pruners)
        yield markdown_row([coarse, *counts])


def _counts(cells: Sequence[Pairs]) -> str:
    verdicts = Counter(pairs.verdict for pairs in cells)
    neither = len(cells) - verdicts[BETTER] - verdicts[WORSE]
    return f"{verdicts[BETTER]} / {neither} / {verdicts[WORSE]}" if cells else ""


def _balance(cells: Iterable[Pairs]) -> float:
    """The share of cells in which an allocation is better than uniform, less the share where it is worse."""
    signs = [(pairs.verdict == BETTER) - (pairs.verdict == WORSE) for pairs in cells]
    return sum(signs) / len(signs)


def _table(title: str, group: Group) -> Iterator[str]:
    """Uniform, then the allocations in the order of the summary: each mean, and its difference to uniform."""
    columns = sorted({column for row in group.values() for column in row})
    some = {column: pairs for row in group.values() for column, pairs in row.items()}
    yield markdown_row([title, *columns, "coarse seconds, at most"])
    yield markdown_row(["---"] + ["---:"] * (len(columns) + 1))
    yield markdown_row(["uniform", *(figure(statistics(some[column].uniform)[0]) for column in columns), ""])
    for coarse, row in sorted(group.items(), key=lambda item: (-_balance(item[1].values()), item[0])):
        seconds = max((pairs.seconds for pairs in row.values() if pairs.seconds is not None), default=None)
        cells = (_cell(row[column]) if column in row else "" for column in columns)
        yield markdown_row([coarse, *cells, "" if seconds is None else f"{seconds:.3g}"])


def _cell(pairs: Pairs) -> str:
    """The mean and the difference, with a triangle where the allocation is worse than uniform."""
    return f"{figure(pairs.mean)} ({pairs.change})" + " ▼" * (pairs.verdict == WORSE)
