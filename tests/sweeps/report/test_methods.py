"""What a run is called: every key that tells runs apart, and none that doesn't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ecoflap.storage.installation import PACKAGE
from ecoflap.storage.results import sparsity_section
from ecoflap.storage.sharing.card import model_card
from ecoflap.sweeps.report.methods import Method, name_methods
from ecoflap.sweeps.report.metrics import make_tables
from ecoflap.sweeps.report.model_names import name_models
from ecoflap.sweeps.report.pairs import paired
from ecoflap.sweeps.report.runs import Run, read_runs
from ecoflap.sweeps.report.sections import make_sections
from ecoflap.sweeps.report.settings import fixed_and_varying
from tests.sweeps.report.conftest import STEPS, write_run

GLOBAL = {"_target_": "ecoflap.prune.global_magnitude.GlobalMagnitude", "name": "global_magnitude"}
BY_PRUNER = {"sparsity": sparsity_section({}, 0.5, 10, "exact", "pruner")}
FROM_FILE = {"sparsity": sparsity_section({}, 0.5, 10, "as_given", "allocation", "file")}


def runs_of(folder: Path, *configs: dict[str, Any]) -> list[Run]:
    for index, config in enumerate(configs):
        write_run(folder, f"{index:02}", 70.0, **config)
    return sorted(read_runs(folder), key=lambda run: run.name)


def labels(folder: Path, *configs: dict[str, Any]) -> list[str]:
    return [method.label for method in name_methods(runs_of(folder, *configs))]


def test_sparsity_and_seed_are_no_part_of_a_name(tmp_path: Path) -> None:
    assert labels(tmp_path, {"sparsity": 0.5}, {"sparsity": 0.6}, {"seed": 1}) == ["wanda, zeroth order"] * 3


@pytest.mark.parametrize(
    ("key", "values", "shown"),
    [
        ("allocation__cap", (None, 0.8), ("allocation.cap=null", "allocation.cap=0.8")),
        ("score__eps", (0.1, 1e-4), ("score.eps=0.1", "score.eps=0.0001")),
        ("score__samples", (8, 32), ("score.samples=8", "score.samples=32")),
        (
            "allocation__granularity",
            ("layer", "block"),
            ("allocation.granularity=layer", "allocation.granularity=block"),
        ),
        ("calibration__images", (8, 32), ("calibration.images=8", "calibration.images=32")),
        ("pruner__profile", ("deep", "flat"), ("pruner.profile=deep", "pruner.profile=flat")),
        ("pruner__mask", ("2:4", "row"), ("pruner.mask=2:4", "pruner.mask=row")),
        ("towers", (None, ["vision"]), ("towers=null", 'towers=["vision"]')),
    ],
)
def test_a_key_that_varies_is_part_of_the_name(
    tmp_path: Path, key: str, values: tuple[Any, Any], shown: tuple[str, str]
) -> None:
    assert labels(tmp_path, *({key: value} for value in values)) == [
        f"wanda, zeroth order, {one}" for one in shown
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"cache": "/elsewhere"},
        {"cache_mode": "off"},
        {"tracking__group": "other"},
        {"model__path": "/moved/tiny"},
        {"calibration__images": "pictures"},
        {"calibration__data_files": ["one.parquet"]},
        {"model__save": True},
    ],
)
def test_a_key_that_changes_no_number_is_not(tmp_path: Path, change: dict[str, Any]) -> None:
    assert labels(tmp_path, {}, {**change, "seed": 1}) == ["wanda, zeroth order"] * 2


def test_a_whole_number_is_the_same_with_a_point(tmp_path: Path) -> None:
    assert labels(tmp_path, {"score__eps": 1}, {"score__eps": 1.0}) == ["wanda, zeroth order"] * 2


def test_options_that_belong_to_the_pruner_are_not(tmp_path: Path) -> None:
    sparsegpt = {
        "_target_": "ecoflap.prune.sparsegpt.SparseGPT",
        "name": "sparsegpt",
        "mask": "matrix",
        "damping": 0.01,
    }
    assert labels(tmp_path, {}, {"pruner": sparsegpt}) == ["wanda, zeroth order", "sparsegpt, zeroth order"]


def test_of_keys_that_vary_together_one_is_named(tmp_path: Path) -> None:
    assert labels(
        tmp_path,
        {"score__samples": 8, "calibration__samples": 64},
        {"score__samples": 32, "calibration__samples": 128},
    ) == [
        "wanda, zeroth order, score.samples=8",
        "wanda, zeroth order, score.samples=32",
    ]


def test_only_methods_that_need_a_key_name_it(tmp_path: Path) -> None:
    found = labels(tmp_path, {"score__eps": 0.1}, {"score__eps": 0.2}, {"score": {"name": "none"}})
    assert found == [
        "wanda, zeroth order, score.eps=0.1",
        "wanda, zeroth order, score.eps=0.2",
        "wanda, uniform",
    ]


def test_a_class_from_outside_is_told_from_one_of_the_same_name(tmp_path: Path) -> None:
    """By its options, if it has others, and else by itself; classes of the package go by their names."""
    own, moved = {"pruner___target_": "mine.Variant"}, {"pruner___target_": "ecoflap.prune.moved.Wanda"}
    stock, variant = "wanda, zeroth order, pruner._target_=null", "pruner._target_=mine.Variant"
    assert labels(tmp_path / "a", {}, own, moved) == [stock, f"wanda, zeroth order, {variant}", stock]
    with_option = labels(tmp_path / "b", {}, {**own, "pruner__scale": 2})
    assert with_option == [f"wanda, zeroth order, pruner.scale={scale}" for scale in ("null", "2")]
    uniform = {"score__name": "none"}
    write_run(tmp_path / "c", "0", 70.0, **uniform)
    write_run(tmp_path / "c", "1", 71.0, **own)
    assert not list(paired(make_tables(make_sections(read_runs(tmp_path / "c")))))
    write_run(tmp_path / "c", "2", 72.0, **uniform, **own)
    (pairs,) = paired(make_tables(make_sections(read_runs(tmp_path / "c"))))
    assert pairs.differences == [-1.0]


def test_a_global_pruner_has_no_coarse_stage(tmp_path: Path) -> None:
    scopes = [
        {"pruner": {**GLOBAL, "scope": scope}, "score": {"name": "none"}, "record": BY_PRUNER}
        for scope in ("model", "tower")
    ]
    found = name_methods(runs_of(tmp_path, *scopes))
    assert [method.label for method in found] == [
        "global_magnitude, pruner.scope=model",
        "global_magnitude, pruner.scope=tower",
    ]
    assert [method.coarse for method in found] == [method.label for method in found]


def test_a_record_says_that_its_pruner_allocates(tmp_path: Path) -> None:
    own = {"_target_": "mine.Pruner", "name": "mine"}
    write_run(tmp_path, "0", 70.0, pruner=own, score={"name": "none"}, record=BY_PRUNER)
    assert [method.label for method in name_methods(read_runs(tmp_path))] == ["mine"]


def test_allocation_files_count_only_where_they_tell_runs_apart(tmp_path: Path) -> None:
    file = lambda run: {
        "allocation": {"name": "file", "path": f"/runs/{run}/allocation.json"},
        "record": FROM_FILE,
    }
    per_sparsity = labels(tmp_path / "one", {**file("a"), "sparsity": 0.5}, {**file("b"), "sparsity": 0.6})
    assert per_sparsity == ["wanda, from a file"] * 2
    compared = labels(tmp_path / "two", file("a"), file("b"), {})
    assert compared == [
        "wanda, from a file, allocation.path=a",
        "wanda, from a file, allocation.path=b",
        "wanda, zeroth order",
    ]
    assert "allocation.path" in fixed_and_varying(read_runs(tmp_path / "two"), named=["allocation.path"])[1]


def test_one_name_for_several_weights_is_told_apart_by_its_path(tmp_path: Path) -> None:
    for name, path, weights in (
        ("0", "/models/a/final", "x"),
        ("1", "/models/b/final", "y"),
        ("2", "/models/a/final", "x"),
    ):
        model = {"name": "causal_lm", "path": path}
        write_run(
            tmp_path,
            name,
            1.0,
            model=model,
            record={"model": {"name": "causal_lm", "fingerprint": weights, "parameters": 1, "prunable": 1}},
        )
    runs = sorted(read_runs(tmp_path), key=lambda run: run.name)
    assert name_models(runs) == ["final (a)", "final (b)", "final (a)"]
    assert name_models(runs[::2]) == ["final"] * 2


@pytest.mark.parametrize(
    ("choice", "path", "name"),
    [
        ("causal_lm", "facebook/opt-125m", "facebook/opt-125m"),
        ("causal_lm", "/home/me/my-model", "my-model"),
        ("causal_lm", "/home/me/runs/first/checkpoint", "first/checkpoint"),
        ("blip2_mini", str(PACKAGE / "mini" / "blip2"), "blip2_mini"),
        ("torchvision_vit_b16", None, "torchvision_vit_b16"),
    ],
)
def test_a_model_has_the_name_that_is_on_its_card(
    tmp_path: Path, choice: str, path: str | None, name: str
) -> None:
    (run,) = runs_of(tmp_path, {"model": {"name": choice, "path": path}})
    assert [section.title for section in make_sections([run])] == [f"{name} on vqa"]
    assert f"\n# {name}, 50 % sparse\n\n`{name}`, pruned in one shot" in model_card(run.result, tmp_path)


def test_weights_that_replaced_others_at_one_path_are_another_model(tmp_path: Path) -> None:
    """They share no row, as if they were seeds; a dtype changes the fingerprint too, but is a setting."""
    kinds = [("3fa2c1ee", {}), ("b0077777", {}), ("3fa2c1ee", {}), ("dddddddd", {"model__dtype": "float32"})]
    for seed, (weights, changes) in enumerate(kinds):
        record = {"model": {"name": "tiny", "fingerprint": weights, "parameters": 1, "prunable": 1}}
        write_run(tmp_path, str(seed), 1.0, record=record, seed=seed, **changes)
    runs = sorted(read_runs(tmp_path), key=lambda run: run.name)
    assert name_models(runs) == ["tiny (3fa2c1)", "tiny (b00777)", "tiny (3fa2c1)", "tiny"]
    assert name_models(runs[1:]) == ["tiny (b00777)", "tiny (3fa2c1)", "tiny"]
    assert name_models([runs[0], runs[2], runs[3]]) == ["tiny"] * 3
    sections = make_sections(runs[:3])
    assert [(one.model, [run.seed for run in one.runs]) for one in sections] == [
        ("tiny (3fa2c1)", [0, 2]),
        ("tiny (b00777)", [1]),
    ]


def test_a_path_and_its_several_weights_are_both_named(tmp_path: Path) -> None:
    for seed, (path, weights) in enumerate([("/a", "1111111"), ("/a", "2222222"), ("/b", "3333333")]):
        record = {"model": {"name": "tiny", "fingerprint": weights, "parameters": 1, "prunable": 1}}
        write_run(tmp_path, str(seed), 1.0, record=record, seed=seed, model__path=path)
    runs = sorted(read_runs(tmp_path), key=lambda run: run.name)
    assert name_models(runs) == ["a (111111)", "a (222222)", "b"]


@pytest.mark.parametrize("weights", ["other", "f"])
def test_two_choices_that_read_one_path_are_named(tmp_path: Path, weights: str) -> None:
    """Each may prune other layers, or read its inputs in another way."""
    record = {"model": {"name": "vlm", "fingerprint": weights, "parameters": 1, "prunable": 1}}
    other = {"model": {"name": "vlm", "path": "/models/tiny"}, "record": record}
    runs = runs_of(tmp_path, {"model__path": "/models/tiny"}, other)
    assert name_models(runs) == ["tiny (tiny)", "tiny (vlm)"]
    assert len(make_sections(runs)) == 2


def test_the_same_weights_in_another_place_are_the_same_model(tmp_path: Path) -> None:
    places = {}, {"model__path": "/moved/tiny"}, {"model__path": "/moved/renamed"}
    assert name_models(runs_of(tmp_path, *places)) == ["tiny"] * 3


def test_constant_and_varying_keys(tmp_path: Path) -> None:
    constant, varying = fixed_and_varying(
        runs_of(tmp_path, {"score__samples": 128}, {"score__samples": 8, "model__path": "/moved"})
    )
    assert varying == {"score.samples": ["8", "128"]}
    assert constant["pruner.mask"] == "row"
    assert constant["seed"] == "0"
    assert not {
        key for key in constant if "path" in key or "_target_" in key or "cache" in key or "tracking" in key
    }


@pytest.mark.parametrize(
    ("key", "step"), [("score__eps", "score"), ("allocation__cap", "allocate"), ("finetune", "finetune")]
)
def test_options_of_steps_that_a_run_did_not_take_do_not_count(tmp_path: Path, key: str, step: str) -> None:
    changes = [{key: {"rate": value} if key == "finetune" else value} for value in (0.1, 0.2)]
    cost = {"seconds": 1.0, "peak_memory_bytes": 0, "cached": False}
    others = dict.fromkeys(one for one in STEPS if one != step)
    for done, count in (({step}, 2), (set(), 1)):
        steps = dict.fromkeys([*others, *done], cost)
        runs = runs_of(tmp_path / str(count), *({**one, "record": {"steps": steps}} for one in changes))
        assert len(set(name_methods(runs))) == count
        constant, varying = fixed_and_varying(runs)
        assert [name for name in varying if name.startswith(key.partition("__")[0])] == (
            [key.replace("__", ".") if key != "finetune" else "finetune.rate"] if done else []
        )
        assert done or not any(name.startswith(key.replace("__", ".")) for name in constant)


@pytest.mark.parametrize(
    ("drawn", "trained", "methods"),
    [({}, {}, 2), ({"unused": True}, {}, 1), ({"unused": True}, {"prune": {"samples": 9}}, 2)],
    ids=["calibration", "no step", "a pruner that trains"],
)
def test_options_of_samples_that_no_step_looked_at_do_not_count(
    tmp_path: Path, drawn: dict[str, Any], trained: dict[str, Any], methods: int
) -> None:
    data = {"calibration": {"name": "easy_vqa", "samples": 1, "fingerprint": "c", **drawn}, **trained}
    changes = (
        {"calibration__name": name, "record": {"data": data}} for name in ("easy_vqa", "easy_pictures")
    )
    runs = runs_of(tmp_path, *changes)
    assert len(set(name_methods(runs))) == methods


def test_methods_sort_as_people_do() -> None:
    uniform, first = Method("wanda", "none"), Method("wanda", "first_order")
    eight, many = (Method("wanda", "local", (("score.samples", value),)) for value in ("8", "128"))
    assert sorted([many, first, eight, uniform], key=lambda method: method.order) == [
        uniform,
        first,
        eight,
        many,
    ]


def test_a_record_names_what_its_allocation_goes_by(tmp_path: Path) -> None:
    for index, spread in enumerate((0.08, "auto")):
        section = sparsity_section({}, 0.5, 10, "exact", "allocation", "owl")
        allocation = {"_target_": "ecoflap.allocate.owl.OWL", "name": "owl", "spread": spread}
        write_run(tmp_path, str(index), 70.0, allocation=allocation, record={"sparsity": section})
    write_run(tmp_path, "2", 70.0)
    assert [method.label for method in name_methods(read_runs(tmp_path))] == [
        "wanda, owl, allocation.spread=0.08",
        "wanda, owl, allocation.spread=auto",
        "wanda, zeroth order",
    ]
