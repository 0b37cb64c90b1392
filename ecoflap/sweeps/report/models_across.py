"""Allocations beside the uniform one with a column for each model: a summary, then a table per pruner."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from statistics import fmean

from ecoflap.storage.markdown import markdown_row
from ecoflap.sweeps.report.cells import statistics
from ecoflap.sweeps.report.digits import figure, short
from ecoflap.sweeps.report.methods import Method, overrides
from ecoflap.sweeps.report.pairs import BETTER, WORSE, Pairs, metric_names
from ecoflap.sweeps.report.settings import is_path, settings_of, shown

Column = tuple[str, int]
"""The model and the metric, and the place of their table: one of other runs may have the same name."""
Group = dict[str, dict[Column, Pairs]]
"""Allocation -> column -> its pairs, under one pruner at one sparsity."""


def markdown(found: Sequence[Pairs]) -> Iterator[str]:
    """The lines of the summary and of the tables, with empty lines between them."""
    names = metric_names(found)
    places = {key: place for place, key in enumerate(names)}
    by_pruner = _by_pruner(sorted(found, key=lambda one: one.method.order))
    yield from _summary(by_pruner)
    for pruner, some in by_pruner.items():
        groups: dict[float, Group] = defaultdict(lambda: defaultdict(dict))
        for pairs in some:
            key = id(pairs.table)
            column = f"{pairs.table.model} {names[key]}", places[key]
            groups[pairs.sparsity][pairs.method.coarse][column] = pairs
        for sparsity, group in sorted(groups.items()):
            yield ""
            yield from _table(f"{pruner} at {sparsity:g}", group)


def _by_pruner(found: Iterable[Pairs]) -> dict[str, list[Pairs]]:
    """Pairs by pruner, with its values of the keys that distinguish the uniform allocations of any model."""
    by_baseline: dict[tuple[int, Method], list[Pairs]] = defaultdict(list)
    keys: dict[str, set[str]] = defaultdict(set)
    for pairs in found:
        by_baseline[id(pairs.table), pairs.baseline].append(pairs)
        keys[pairs.baseline.pruner] |= dict(pairs.baseline.settings).keys()
    by_pruner: dict[str, list[Pairs]] = defaultdict(list)
    for (_, baseline), some in by_baseline.items():
        config = settings_of(some[0].table.section.by_method[baseline][0])
        known = keys[baseline.pruner] & config.keys()
        own = {key: shown(config[key]) for key in known if not is_path(key, config[key])}
        settings = overrides(sorted({**own, **dict(baseline.settings)}.items()))
        by_pruner[", ".join(filter(None, [baseline.pruner, settings]))] += some
    return by_pruner


def _summary(by_pruner: Mapping[str, Sequence[Pairs]]) -> Iterator[str]:
    """The number of models, metrics and sparsities where an allocation is better, neither, and worse."""
    by_coarse: dict[str, dict[str, list[Pairs]]] = defaultdict(lambda: defaultdict(list))
    for pruner, some in by_pruner.items():
        for pairs in some:
            by_coarse[pairs.method.coarse][pruner].append(pairs)
    yield markdown_row(["better / neither / worse than uniform", *by_pruner])
    yield markdown_row(["---"] + ["---:"] * len(by_pruner))
    for coarse in _in_order({coarse: chain(*cells.values()) for coarse, cells in by_coarse.items()}):
        yield markdown_row([coarse, *(_counts(by_coarse[coarse].get(pruner, ())) for pruner in by_pruner)])


def _counts(cells: Sequence[Pairs]) -> str:
    verdicts = Counter(pairs.verdict for pairs in cells)
    neither = len(cells) - verdicts[BETTER] - verdicts[WORSE]
    return f"{verdicts[BETTER]} / {neither} / {verdicts[WORSE]}" if cells else ""


def _in_order(by_coarse: Mapping[str, Iterable[Pairs]]) -> list[str]:
    """Allocations by the share of cells where they are better, less the share where they are worse."""

    def balance(cells: Iterable[Pairs]) -> float:
        return fmean((pairs.verdict == BETTER) - (pairs.verdict == WORSE) for pairs in cells)

    balances = {coarse: balance(cells) for coarse, cells in by_coarse.items()}
    return sorted(balances, key=lambda coarse: (-balances[coarse], coarse))


def _table(title: str, group: Group) -> Iterator[str]:
    """Uniform, then the allocations as in the summary: each mean, and its difference to uniform.

    Of pairs with fewer or more seeds, uniform's mean is that of the most.
    """
    columns = sorted({column for row in group.values() for column in row})
    cells = (cell for row in group.values() for cell in row.items())
    some = dict(sorted(cells, key=lambda cell: len(cell[1].uniform)))
    yield markdown_row([title, *(name for name, _ in columns), "coarse seconds"])
    yield markdown_row(["---"] + ["---:"] * (len(columns) + 1))
    yield markdown_row(["uniform", *(figure(statistics(some[column].uniform)[0]) for column in columns), ""])
    for coarse in _in_order({coarse: row.values() for coarse, row in group.items()}):
        row = group[coarse]
        seconds = max((pairs.seconds for pairs in row.values() if pairs.seconds is not None), default=None)
        shown = (_cell(row[column]) if column in row else "" for column in columns)
        yield markdown_row([coarse, *shown, short(seconds)])


def _cell(pairs: Pairs) -> str:
    """The mean and the difference, with a triangle where the allocation is worse than uniform."""
    return f"{figure(pairs.mean)} ({pairs.change})" + " ▼" * (pairs.verdict == WORSE)
