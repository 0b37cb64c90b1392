"""The precision of fp32 products that a caller has set changes no mask and no weight, and stays set."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import ecoflap
from ecoflap.models.core.forward_modes import full_precision
from ecoflap.run import pipeline
from ecoflap.storage.results import Result
from tests import tiny
from tests.cli.conftest import run, text_run, tiny_llama, token_file  # noqa: F401  (fixtures)

BACKENDS: tuple[Any, ...] = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
by_backend = pytest.mark.skipif(
    not hasattr(BACKENDS[1], "fp32_precision"),
    reason="this PyTorch has one precision for all backends",
)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


def precision(_: Any = None) -> str:
    return torch.get_float32_matmul_precision()


@pytest.mark.parametrize("asked", ["high", "medium"])
@pytest.mark.parametrize("pruner", ["sparsegpt", "admm"])
@pytest.mark.every_run("sparsegpt-high", "admm-medium")
def test_masks_and_weights(pruner: str, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, batch = tiny.LANGUAGE["llama"]().eval(), {"input_ids": torch.randint(3, 30, (6, 9))}
    seen: set[str] = set()
    kind = type(ecoflap.load(module).module)
    forward = kind.forward
    monkeypatch.setattr(
        kind, "forward", lambda *given, **named: seen.add(precision()) or forward(*given, **named)
    )

    def pruned() -> dict[str, torch.Tensor]:
        result = ecoflap.prune(copy.deepcopy(module), data=[batch], sparsity=0.5, pruner=pruner)
        return {**result.masks, **{f"{name}.": one for name, one in result.model.state_dict().items()}}

    wanted = pruned()
    torch.set_float32_matmul_precision(asked)
    found = pruned()
    assert precision() == asked
    assert seen == {"highest"}  # where a processor has neither TF32 nor bf16, the results would not tell
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_measurements_of_a_model() -> None:
    torch.set_float32_matmul_precision("medium")
    model = ecoflap.load(tiny.LANGUAGE["llama"]())
    seen: list[str] = []
    ecoflap.evaluate(model, lambda module: seen.append(precision()) or 0.0)
    assert seen == ["highest"]
    assert precision() == "medium"


def test_a_run(
    run: Callable[..., Result],
    text_run: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    prune = pipeline.prune
    monkeypatch.setattr(pipeline, "prune", lambda *given: seen.append(precision()) or prune(*given))
    torch.set_float32_matmul_precision("high")
    run([*text_run, "score=none", "allocation=water_filling"])
    assert seen == ["highest"]
    assert precision() == "high"


@by_backend
@pytest.mark.parametrize("place", [0, 1])
def test_a_precision_of_one_backend(place: int) -> None:
    backend, asked = BACKENDS[place], ("tf32", "bf16")[place]
    before = backend.fp32_precision
    try:
        backend.fp32_precision = asked
        with full_precision():
            assert {one.fp32_precision for one in BACKENDS} == {"ieee"}
        assert backend.fp32_precision == asked
    finally:
        backend.fp32_precision = before


@by_backend
def test_tf32_of_one_backend_is_not_given_to_others() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    before = [one.fp32_precision for one in BACKENDS]
    with full_precision():
        assert {one.fp32_precision for one in BACKENDS} == {"ieee"}
    assert [torch.backends.cuda.matmul.allow_tf32, precision()] == [True, "high"]
    assert BACKENDS[0].fp32_precision == before[0]
    assert BACKENDS[1].fp32_precision != "tf32"
    torch.backends.cuda.matmul.allow_tf32 = False
    assert precision() == "highest"


def test_nothing_is_set_where_it_is_full() -> None:
    before = [getattr(one, "fp32_precision", None) for one in BACKENDS]
    with full_precision():
        assert [getattr(one, "fp32_precision", None) for one in BACKENDS] == before
