"""Every architecture is pruned and scored as by forward passes of the whole model, or refused in one line."""

from __future__ import annotations

import pytest

from tests.zoo.architectures import ARCHITECTURES, SUBSET
from tests.zoo.compare import LAYER_BY_LAYER
from tests.zoo.examine import examine
from tests.zoo.marginals import in_context


def cases() -> list[object]:
    """All architectures; those beyond the subset run with the zoo only."""
    return [name if name in SUBSET else pytest.param(name, marks=pytest.mark.zoo) for name in ARCHITECTURES]


@pytest.mark.parametrize("name", cases())
def test_equal_to_full_forward_passes_or_refused(name: str) -> None:
    architecture = ARCHITECTURES[name]
    if (reason := architecture.missing()) is not None:
        pytest.skip(reason)
    row = examine(architecture)
    assert row.wrong == []
    refusals = [row.refusal, *(comparison.refusal for comparison in row.found.values())]
    assert all("\n" not in refusal for refusal in refusals if refusal is not None)
    assert row.found or row.refusal


@pytest.mark.parametrize("name", cases())
@pytest.mark.every_run("llama", "mixtral", "jamba", "gemma4_text", "t5", "clip", "llava", "blip-2")
def test_layer_by_layer_equal_to_full_forward_passes_or_refused(name: str) -> None:
    architecture = ARCHITECTURES[name]
    if (reason := architecture.missing()) is not None:
        pytest.skip(reason)
    assert examine(architecture, LAYER_BY_LAYER).wrong == []


@pytest.mark.parametrize("name", cases())
@pytest.mark.every_run("llama", "mixtral", "jamba", "gemma4_text", "t5", "clip", "llava", "blip-2")
def test_in_context_allocation_measures_as_full_forward_passes_do_or_is_refused(name: str) -> None:
    architecture = ARCHITECTURES[name]
    if (reason := architecture.missing()) is not None:
        pytest.skip(reason)
    assert examine(architecture, {"in context": in_context}).wrong == []


def test_the_subset_is_in_the_zoo() -> None:
    assert set(SUBSET) <= set(ARCHITECTURES)
