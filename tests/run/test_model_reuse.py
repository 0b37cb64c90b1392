"""A kept model is what a fresh load gives, or isn't used."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language.causal_lm import CausalLM
from ecoflap.run import model_reuse
from tests.cli.conftest import tiny_llama  # noqa: F401 - a fixture

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_reuse, "_reusable", None)


@pytest.fixture
def loader(tiny_llama: Path) -> CausalLM:
    return CausalLM(path=str(tiny_llama))


def load(loader: CausalLM, selection: Selection | None = None, keep: bool = True) -> PrunableModel:
    return model_reuse.load(loader, CPU, selection or Selection(), keep)[0]


def test_pruned_layers_come_back_bit_for_bit(loader: CausalLM) -> None:
    first = load(loader)
    fingerprint = first.fingerprint()
    for layer in first.layers:
        layer.weight.data.zero_()
    second = load(loader)
    assert second is first
    assert second.fingerprint() == fingerprint


@pytest.mark.parametrize("keep", [True, False])
def test_a_load_takes_one_fingerprint_and_gives_it(
    loader: CausalLM, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    taken, take = [], PrunableModel.fingerprint

    def counted(self: PrunableModel) -> str:
        taken.append(take(self))
        return taken[-1]

    monkeypatch.setattr(PrunableModel, "fingerprint", counted)
    for loads in (1, 2):
        _, fingerprint = model_reuse.load(loader, CPU, Selection(), keep)
        assert taken == [fingerprint] * loads


def test_any_other_change_means_a_fresh_load(loader: CausalLM) -> None:
    first = load(loader)
    fingerprint = first.fingerprint()
    with torch.no_grad():
        next(parameter for name, parameter in first.module.named_parameters() if "norm" in name).add_(1)
    second = load(loader)
    assert second is not first
    assert second.fingerprint() == fingerprint


def test_a_layer_of_another_shape_means_a_fresh_load(loader: CausalLM) -> None:
    first = load(loader)
    first.layers[0].module.weight = torch.nn.Parameter(torch.zeros(2, 2))
    assert load(loader) is not first


@pytest.mark.parametrize("other", [Selection(["language"]), Selection(None, ["q_proj"])])
def test_another_selection_is_another_model(loader: CausalLM, other: Selection) -> None:
    assert load(loader) is not load(loader, other)


def test_an_interface_forgets_what_a_run_told_it(loader: CausalLM) -> None:
    first = load(loader)
    first.interface.classes = torch.zeros(1)
    assert not hasattr(load(loader).interface, "classes")


def test_nothing_is_kept_unasked_or_without_memory(loader: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(loader, keep=False) is not load(loader, keep=False)

    class Full:
        available = 10

    model = loader.load(CPU, Selection())
    monkeypatch.setattr(psutil, "virtual_memory", Full)
    assert not model_reuse._fits(model)


def test_a_loader_of_the_same_name_elsewhere_is_another(loader: CausalLM) -> None:
    elsewhere = type("CausalLM", (CausalLM,), {"__module__": "elsewhere", "__qualname__": "CausalLM"})
    assert load(elsewhere(path=loader.path)) is not load(loader)
