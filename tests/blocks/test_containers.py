from collections import OrderedDict, UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from ecoflap.blocks.containers import changed, contents, equal, refill, snapshot, tensors_in


class Pair(NamedTuple):
    one: Any
    two: Any


def arguments() -> dict[str, Any]:
    """What a block may be handed."""
    return {
        "dict": {"states": torch.zeros(2)},
        "user": UserDict(states=(torch.zeros(2), torch.zeros(2))),
        "ordered": OrderedDict(a=[torch.zeros(2)]),
        "object": SimpleNamespace(layers=[SimpleNamespace(keys=None, seen=0)]),
        "empty": SimpleNamespace(),
        "pair": Pair(torch.zeros(2), {"inner": 1}),
        "set": {1},
        "view": {"a": 1}.keys(),
        "mask": torch.zeros(2),
        "module": torch.nn.Linear(2, 2),
        "function": len,
        "nothing": None,
    }


def in_place(given: dict[str, Any]) -> None:
    given["dict"]["states"].add_(1)


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a new key": lambda given: given["dict"].update(more=1),
    "another value": lambda given: given["dict"].update(states=torch.zeros(2)),
    "a user dict's value": lambda given: given["user"].update(states=(torch.zeros(2),)),
    "an item of a nested list": lambda given: given["ordered"]["a"].append(1),
    "an attribute at depth": lambda given: setattr(given["object"].layers[0], "keys", torch.zeros(1)),
    "a count at depth": lambda given: setattr(given["object"].layers[0], "seen", 1),
    "a first attribute": lambda given: setattr(given["empty"], "states", 1),
    "a dict in a named tuple": lambda given: given["pair"].two.clear(),
    "a set": lambda given: given["set"].add(2),
    "another item of a set": lambda given: given["set"].symmetric_difference_update({1, 2}),
    "another key": lambda given: given["dict"].update(other=given["dict"].pop("states")),
}


@pytest.mark.parametrize("change", [*CHANGES.values(), in_place], ids=[*CHANGES, "a tensor in place"])
def test_changes_are_seen(change: Callable[[dict[str, Any]], Any]) -> None:
    given = arguments()
    given["object"].itself = given["object"]
    before = contents(given)
    assert not changed(before, contents(given))
    change(given)
    assert changed(before, contents(given))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_of_the_original_are_not_seen_in_a_snapshot(change: Callable[[dict[str, Any]], Any]) -> None:
    given = arguments()
    copy = snapshot(given)
    before = contents(copy)
    change(given)
    assert not changed(before, contents(copy))


def test_a_snapshot_holds_the_same_tensors_and_the_same_containers_twice() -> None:
    given = arguments()
    given["again"] = given["dict"]
    given["dict"]["itself"] = given["dict"]
    copy = snapshot(given)
    assert copy["dict"] is copy["again"] is copy["dict"]["itself"] is not given["dict"]
    assert copy["dict"]["states"] is given["dict"]["states"]
    assert copy["pair"].one is given["pair"].one
    assert type(copy["user"]) is UserDict
    assert copy["user"]["states"][0] is given["user"]["states"][0]
    assert all(copy[name] is given[name] for name in ("mask", "module", "function", "nothing", "view"))


@pytest.mark.parametrize("change", [change for name, change in CHANGES.items() if name != "another value"])
def test_a_snapshot_equals_what_it_was_taken_of_until_that_changes(
    change: Callable[[dict[str, Any]], Any],
) -> None:
    given = arguments()
    given["dict"]["itself"] = given["dict"]
    copy = snapshot(given, torch.clone)
    assert equal(copy, given)
    assert equal(given, copy)
    change(given)
    assert not equal(copy, given)
    assert not equal(given, copy)


def test_a_snapshot_of_copies_keeps_the_numbers() -> None:
    given = arguments()
    copy = snapshot(given, torch.clone)
    in_place(given)
    assert not equal(copy, given)
    assert equal(copy, given, same=lambda one, other: True)
    assert len(tensors_in(copy)) == len(tensors_in(given)) == 6
    assert not {id(tensor) for tensor in tensors_in(copy)} & {id(tensor) for tensor in tensors_in(given)}


@pytest.mark.parametrize("other", [torch.zeros(1), torch.zeros(2, 1), torch.zeros(2).half(), None])
def test_only_tensors_of_one_shape_and_dtype_are_compared_by_their_numbers(other: Any) -> None:
    assert equal({"a": torch.zeros(2)}, {"a": torch.ones(2)}, same=lambda *_: True)
    assert not equal({"a": torch.zeros(2)}, {"a": other}, same=lambda *_: True)


@pytest.mark.parametrize("name", ["dict", "user", "ordered", "object"])
def test_a_container_is_refilled_with_what_another_holds(name: str) -> None:
    value, held = arguments()[name], arguments()[name]
    if name == "object":
        held.more = value.old = torch.ones(1)
    else:
        held["more"] = value["old"] = torch.ones(1)
    assert not equal(value, held)
    refill(value, held)
    assert equal(value, held)


@pytest.mark.parametrize("held", [[], [torch.ones(1)], [torch.ones(1), 2], [torch.ones(1), 2, 3]])
def test_a_list_is_refilled_with_other_items(held: list[Any]) -> None:
    value = [torch.zeros(1), 1]
    refill(value, held)
    assert equal(value, held)


def test_outputs_of_transformers_are_refilled_and_copied() -> None:
    from transformers.modeling_outputs import BaseModelOutput

    value, held = BaseModelOutput(torch.zeros(2)), BaseModelOutput(torch.ones(2))
    refill(value, held)
    assert equal(value.last_hidden_state, torch.ones(2))
    copy = snapshot(value, torch.clone)
    assert equal(copy, value)
    assert copy.last_hidden_state is copy["last_hidden_state"] is not value.last_hidden_state
