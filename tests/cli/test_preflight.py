"""The jobs of a sweep are checked with what they share read once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig

from ecoflap.cli.arguments import parsed
from ecoflap.cli.plan_sweep import jobs_of
from ecoflap.console.tracking import Wandb
from ecoflap.data.text.calibration import TokenFile
from ecoflap.errors import UserError
from ecoflap.models.families.language.causal_lm import CausalLM
from ecoflap.run import pipeline
from ecoflap.run.config import STEPS, register
from ecoflap.run.plan import Preflight, make_plan, unused
from ecoflap.storage.results import Result
from ecoflap.sweeps.check import check_jobs
from tests.cli.conftest import composed, composed_as_given


def test_data_and_shapes_are_read_once_for_all_jobs(
    text_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    load, check = CausalLM.load, TokenFile.check_data
    monkeypatch.setattr(
        CausalLM,
        "load",
        lambda self, device, selection: read.append(device.type) or load(self, device, selection),
    )
    monkeypatch.setattr(TokenFile, "check_data", lambda self, group: read.append(group) or check(self, group))
    preflight = Preflight()
    for more in (["sparsity=0.5"], ["sparsity=0.6"], ["pruner=sparsegpt"]):
        make_plan(composed([*text_run, *more]), tmp_path, preflight)
    assert sorted(read) == ["calibration", "meta"]
    make_plan(composed([*text_run, "skip_layers=[q_proj]"]), tmp_path, preflight)
    assert sorted(read) == ["calibration", "meta", "meta"]


def test_what_was_refused_once_is_refused_again(text_run: list[str], tmp_path: Path) -> None:
    preflight = Preflight()
    for sparsity in (0.5, 0.6):
        with pytest.raises(UserError, match=r"calibration\.key=none"):
            make_plan(
                composed([*text_run, "calibration.key=none", f"sparsity={sparsity}"]), tmp_path, preflight
            )


def test_a_model_that_needs_its_weights_is_not_looked_at(
    text_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CausalLM, "shapes_first", False)
    monkeypatch.setattr(CausalLM, "load", lambda *_: pytest.fail("loaded"))
    make_plan(composed(text_run), tmp_path)


@pytest.mark.parametrize(
    ("overrides", "used"),
    [
        (["score=none", "pruner=magnitude"], False),
        (["score=none", "pruner=wanda"], True),
        (["score=none", "pruner=wanda", "steps=[calibrate,allocate]"], False),
        (["score=zeroth_order", "pruner=magnitude"], True),
        (["allocation=in_context", "pruner=magnitude"], True),
        (["pruner=global_magnitude"], False),
        (["pruner=global_gradient"], True),
        (["score=none", "pruner=magnitude", "finetune=reconstruct", f"steps=[{','.join(STEPS)}]"], True),
        (
            ["score=none", "pruner=magnitude", "finetune.data=training", f"steps=[{','.join(STEPS)}]"],
            False,
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else str(value),
)
def test_whether_a_step_looks_at_the_calibration_set(
    text_run: list[str], tmp_path: Path, overrides: list[str], used: bool
) -> None:
    assert make_plan(composed([*text_run, *overrides]), tmp_path).uses_calibration == used


@pytest.mark.parametrize("pruner", ["wanda", "magnitude"])
def test_the_choice_of_auto_is_no_option_that_changes_nothing(
    text_run: list[str], tmp_path: Path, pruner: str
) -> None:
    """As docs/sharing.md advises for another pruner in a recipe."""
    again = ["score=auto", "allocation=auto", "propagate=auto"]
    plan = make_plan(composed_as_given([*text_run, f"pruner={pruner}", *again]), tmp_path)
    assert unused(plan, again) == []


def test_an_option_of_a_sweep_is_unused_if_all_jobs_that_have_it_leave_it(
    text_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # to be set to that of the sweep
    axes = ["pruner=wanda,magnitude", "batch_size=4", "pruner.swaps=7,9", "score=zeroth_order"]
    register()
    found = check_jobs(*jobs_of(parsed(["-m", *text_run, *axes])))
    assert found == [
        f"pruner.swaps={count} changes nothing: pruner.refine=none swaps no weights" for count in (7, 9)
    ]


def test_a_record_says_that_no_step_looked_at_the_samples(
    text_run: list[str], run: Callable[..., Result]
) -> None:
    unscored = [*text_run, "score=none", "sparsity=0.5"]
    assert run([*unscored, "pruner=magnitude"], "magnitude").data["calibration"]["unused"] is True
    assert "unused" not in run([*unscored, "pruner=wanda"], "wanda").data["calibration"]


def test_a_folder_that_is_not_there_is_named_before_missing_data(text_run: list[str], tmp_path: Path) -> None:
    missing = [f"model.path={tmp_path / 'none'}", f"calibration.path={tmp_path / 'none.txt'}"]
    with pytest.raises(UserError, match=r"model\.path=.*: there is no such folder"):
        make_plan(composed([*text_run, *missing]), tmp_path)


def test_a_device_that_is_not_there_is_refused_before_the_tracker_begins(
    text_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object) -> None:
        pytest.fail("the tracker began")

    monkeypatch.setattr(Wandb, "start", start)
    with pytest.raises(UserError, match="device=tpu9 is not a device"):
        pipeline.run(composed([*text_run, "device=tpu9", "tracking=wandb"]), tmp_path)
