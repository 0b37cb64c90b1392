"""Allocations beside the uniform one with a column for each model: a summary, then a table per pruner."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain

from ecoflap.storage.markdown import markdown_row
from ecoflap.sweeps.report.cells import statistics
from ecoflap.sweeps.report.methods import overrides
from ecoflap.sweeps.report.pairs import BETTER, WORSE, Pairs
from ecoflap.sweeps.report.settings import is_path, settings_of, shown
from ecoflap.sweeps.report.table import figure

Group = dict[str, dict[str, Pairs]]
"""Allocation -> model and metric -> its pairs, under one pruner at one sparsity."""


def markdown(found: Sequence[Pairs]) -> Iterator[str]:
    """The lines of the summary and of the tables, with empty lines between them."""
    by_pruner: dict[str, list[Pairs]] = defaultdict(list)
    for pairs in sorted(found, key=lambda one: (one.method.order, one.sparsity)):
        alike = [one.baseline for one in found if one.baseline.pruner == pairs.baseline.pruner]
        by_pruner[_pruner(pairs, {key for one in alike for key, _ in one.settings})].append(pairs)
    yield from _summary(by_pruner)
    for pruner, some in by_pruner.items():
        groups: dict[float, Group] = defaultdict(lambda: defaultdict(dict))
        for pairs in some:
            column = f"{pairs.table.model} {pairs.table.metric}"
            groups[pairs.sparsity][pairs.method.coarse][column] = pairs
        for sparsity, group in groups.items():
            yield ""
            yield from _table(f"{pruner} at {sparsity:g}", group)


def _pruner(pairs: Pairs, keys: Set[str]) -> str:
    """The pruner, with its values of the keys that distinguish uniform allocations of any model."""
    config = settings_of(pairs.table.section.by_method[pairs.baseline][0])
    own = {key: shown(config[key]) for key in keys & config.keys() if not is_path(key, config[key])}
    settings = {**own, **dict(pairs.baseline.settings)}
    return ", ".join(filter(None, [pairs.baseline.pruner, overrides(sorted(settings.items()))]))


def _summary(by_pruner: Mapping[str, Sequence[Pairs]]) -> Iterator[str]:
    """The number of models, metrics and sparsities where an allocation is better, neither, and worse."""
    by_coarse: dict[str, dict[str, list[Pairs]]] = defaultdict(lambda: defaultdict(list))
    for pruner, some in by_pruner.items():
        for pairs in some:
            by_coarse[pairs.method.coarse][pruner].append(pairs)
    yield markdown_row(["better / neither / worse than uniform", *by_pruner])
    yield markdown_row(["---"] + ["---:"] * len(by_pruner))
    order = sorted(by_coarse, key=lambda coarse: (-_balance(chain(*by_coarse[coarse].values())), coarse))
    for coarse in order:
        yield markdown_row([coarse, *(_counts(by_coarse[coarse].get(pruner, ())) for pruner in by_pruner)])


def _counts(cells: Sequence[Pairs]) -> str:
    verdicts = Counter(pairs.verdict for pairs in cells)
    neither = len(cells) - verdicts[BETTER] - verdicts[WORSE]
    return f"{verdicts[BETTER]} / {neither} / {verdicts[WORSE]}" if cells else ""


def _balance(cells: Iterable[Pairs]) -> float:
    """The share of cells in which an allocation is better than uniform, less the share where it is worse."""
    signs = [(pairs.verdict == BETTER) - (pairs.verdict == WORSE) for pairs in cells]
    return sum(signs) / len(signs)


def _table(title: str, group: Group) -> Iterator[str]:
    """Uniform, then the allocations as in the summary: each mean, and its difference to uniform."""
    columns = sorted({column for row in group.values() for column in row})
    some = {column: pairs for row in group.values() for column, pairs in row.items()}
    yield markdown_row([title, *columns, "coarse seconds"])
    yield markdown_row(["---"] + ["---:"] * (len(columns) + 1))
    yield markdown_row(["uniform", *(figure(statistics(some[column].uniform)[0]) for column in columns), ""])
    for coarse, row in sorted(group.items(), key=lambda item: (-_balance(item[1].values()), item[0])):
        seconds = max((pairs.seconds for pairs in row.values() if pairs.seconds is not None), default=None)
        cells = (_cell(row[column]) if column in row else "" for column in columns)
        yield markdown_row([coarse, *cells, "" if seconds is None else f"{seconds:.3g}"])


def _cell(pairs: Pairs) -> str:
    """The mean and the difference, with a triangle where the allocation is worse than uniform."""
    return f"{figure(pairs.mean)} ({pairs.change})" + " ▼" * (pairs.verdict == WORSE)
