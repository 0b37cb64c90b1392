"""Find the towers of a model in its module tree, and select the layers to prune.

Block paths differ between releases of transformers, so nothing is hard-coded: a tower is a list of modules
that hold linear weights.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from ecoflap.errors import UserError, did_you_mean, nearest, similar, written
from ecoflap.models.core.layers import Layer, is_linear, is_plain, weights_of
from ecoflap.models.core.routers import selecting
from ecoflap.models.core.tower_names import LEFT_DENSE, READS, kinds_of, name_towers, tower_kind


@dataclass(unsafe_hash=True)
class Block:
    """One transformer block: the unit that is run, pruned and offloaded.

    Attributes:
        name: its path in the model.
        module: the block.
        layers: its layers, in the order of the module tree; fewer once experts are removed.
    """

    name: str
    module: nn.Module
    layers: tuple[Layer, ...] = field(hash=False)  # the only one that ever changes


@dataclass(frozen=True)
class Tower:
    """An ordered list of blocks fed by one input.

    Attributes:
        name: its name, such as ``vision``.
        path: path of the list of blocks in the model.
        blocks: the blocks, in order.
        kind: its kind, such as ``vision``, whatever a config names it; None if it is not known.
    """

    name: str
    path: str
    blocks: tuple[Block, ...]
    kind: str | None = None

    @property
    def layers(self) -> list[Layer]:
        """The layers of all blocks, in order."""
        return [layer for block in self.blocks for layer in block.layers]


def block_lists(module: nn.Module) -> dict[str, nn.ModuleList | nn.Sequential]:
    """Every outermost list of blocks, by path.

    A list of bare linear layers doesn't count: it is a set of heads or a small MLP.
    """
    found: dict[str, nn.ModuleList | nn.Sequential] = {}
    for path, child in module.named_modules():
        inside = any(path.startswith(f"{outer}.".lstrip(".")) for outer in found)
        if not inside and isinstance(child, nn.ModuleList | nn.Sequential) and _are_blocks(child):
            found[path] = child
    return found


def _are_blocks(modules: nn.ModuleList | nn.Sequential) -> bool:
    """Whether a list holds blocks: the first has layers, or some do and none holds a list of blocks itself.

    A sequence (CLIP's, torchvision's) does only if its members are all of one class.
    """
    members = list(dict(_members(modules)).values())
    if not members or weights_of(members[0]):
        return False
    later = [one for one in members if not weights_of(one) and _has_layers(one)]
    if not later or (later[0] is not members[0] and any(map(block_lists, later))):
        return False
    return isinstance(modules, nn.ModuleList) or len({type(member) for member in modules}) == 1


def _has_layers(module: nn.Module) -> bool:
    """Whether a module, or one in it, is a layer."""
    return any(map(weights_of, module.modules()))


def _members(modules: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The members of a list by name, including those of nested lists.

    A bare list inside a list (a stage of Florence-2) is never called itself.
    """
    for name, member in modules.named_children():
        if isinstance(member, nn.ModuleList):
            yield from ((f"{name}.{inner}", block) for inner, block in _members(member))
        else:
            yield name, member


def find_towers(module: nn.Module, wanted: Mapping[str, str] | None = None) -> tuple[Tower, ...]:
    """All towers of a model, in pruning order.

    Args:
        module: the model.
        wanted: path of the block list of each tower that a config names; the others are found from the tree.

    Raises:
        UserError: if a named path is not a list of blocks, or the model has none.
    """
    lists = block_lists(module)
    if not lists:
        odd = [child for child in module.modules() if is_linear(child) and not is_plain(child)]
        raise UserError(
            f"no towers found: {type(module).__name__} has no list of blocks that hold linear weights"
            + (f"; the forward of {type(odd[0]).__name__} isn't the plain product" if odd else "")
        )
    for tower, path in (wanted or {}).items():
        if path not in lists:
            raise UserError(
                f"model.towers.{tower}={path} is not a list of blocks of {type(module).__name__}; found:"
                f" {nearest(path, lists)}"
            )
    reads = READS.get(str(getattr(module, "main_input_name", None)))
    kinds, names = kinds_of(lists, reads), name_towers(lists, reads, wanted)
    dense, seen = selecting(module), set[tuple[int, str]]()
    return tuple(
        Tower(name, path, _blocks(path, lists[path], dense, seen), tower_kind(name) or kinds[path])
        for name, path in names.items()
    )


def _blocks(
    path: str, blocks: nn.ModuleList | nn.Sequential, dense: Container[nn.Module], seen: set[tuple[int, str]]
) -> tuple[Block, ...]:
    """Collect the layers of each block; a weight that an earlier layer owns is not a layer again.

    Args:
        path: path of a tower's list of blocks.
        blocks: the list.
        dense: modules whose weights are left dense.
        seen: the parameters of all layers so far, by id, and which part of one a layer is; extended here.
    """
    found = []
    for block_name, block in _members(blocks):
        layers = []
        for child_name, child in block.named_modules():
            if child in dense:
                continue
            for parameter, reader in weights_of(child).items():
                parts = (path, block_name, child_name, parameter)
                layer = Layer(".".join(filter(None, parts)), reader)
                own = id(layer.parameter), parameter if layer.is_expert else ""
                if own not in seen:
                    seen.add(own)
                    layers.append(layer)
        found.append(Block(f"{path}.{block_name}".lstrip("."), block, tuple(layers)))
    return tuple(found)


@dataclass(frozen=True)
class Selection:
    """Which towers and layers are pruned.

    Attributes:
        towers: names of the towers to prune; None for the default.
        skip_layers: regular expressions of the names of layers to leave dense.
    """

    towers: list[str] | None = None
    skip_layers: list[str] = field(default_factory=list)


def select(
    towers: Sequence[Tower], names: Sequence[str] | None, skip_layers: Sequence[str] = ()
) -> tuple[Tower, ...]:
    """The towers to prune, without the layers whose name matches a ``skip_layers`` pattern.

    Args:
        towers: all towers of the model.
        names: names of the towers to prune; None for all but those that are left dense by default.
        skip_layers: regular expressions of the names of layers to leave dense.

    Raises:
        UserError: if a tower is unknown, a pattern is invalid or matches nothing, or no layer remains.
    """
    known = [tower.name for tower in towers]
    wanted = [name for name in known if tower_kind(name) not in LEFT_DENSE] if names is None else names
    for name in wanted:
        if name not in known:
            raise UserError(
                f"towers={written(names)}: this model has no tower {name!r}; {did_you_mean(name, known)}"
            )
    chosen = [tower for tower in towers if tower.name in wanted]
    _check_patterns(skip_layers, [layer.name for tower in chosen for layer in tower.layers])
    result = tuple(_without(tower, skip_layers) for tower in chosen)
    if not any(tower.layers for tower in result):
        raise UserError(
            f"towers={written(names)}, skip_layers={written(list(skip_layers))} leave no layer to prune; name"
            " fewer layers to skip"
        )
    return result


def _check_patterns(patterns: Sequence[str], names: Sequence[str]) -> None:
    """Refuse patterns of ``skip_layers`` that match none of the layers with these names.

    Raises:
        UserError: if there is one, or one that is not a regular expression.
    """
    for pattern in patterns:
        try:
            matched = any(re.search(pattern, name) for name in names)
        except re.error as error:
            raise UserError(f"skip_layers: {pattern!r} is not a regular expression ({error})") from None
        if not matched:
            close = similar(pattern, names)
            which = f"; the nearest: {', '.join(close)}" if close else f", such as {', '.join(names[:3])}"
            raise UserError(f"skip_layers: {pattern!r} matches none of the {len(names)} layers{which}")


def _without(tower: Tower, patterns: Sequence[str]) -> Tower:
    def is_kept(layer: Layer) -> bool:
        return not any(re.search(pattern, layer.name) for pattern in patterns)

    blocks = [replace(block, layers=tuple(filter(is_kept, block.layers))) for block in tower.blocks]
    return replace(tower, blocks=tuple(blocks))
