import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ecoflap.allocate.allocation import keep_total
from ecoflap.allocate.er import ER
from ecoflap.allocate.from_file import FromFile
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.wanda import Wanda
from tests import tiny

pytestmark = pytest.mark.any_release

Q, K = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"


@pytest.fixture(scope="module")
def model() -> PrunableModel:
    return tiny.build("llama")


def saved(
    folder: Path, model: PrunableModel, change: Callable[[dict[str, Any]], Any] = lambda value: value
) -> str:
    value = asdict(WaterFilling()(model, None, 0.6))
    (folder / "allocation.json").write_text(json.dumps(change(value) or value))
    return str(folder / "allocation.json")


def test_round_trip(tmp_path: Path, model: PrunableModel) -> None:
    assert FromFile(saved(tmp_path, model))(model, None, 0.6) == WaterFilling()(model, None, 0.6)


def test_rows_and_how_they_were_found_are_read_back(tmp_path: Path, model: PrunableModel) -> None:
    uniform = WaterFilling()(model, None, 0.6)
    rows = model.layers[0].shape[0]
    each, over = divmod(uniform.keep[Q], rows)
    even = [each + (row < over) for row in range(rows)]
    found = replace(
        uniform,
        rows={Q: [even[0] + 1, even[1] - 1, *even[2:]]},
        row_weights={K: [0.5] * model.layers[1].shape[0]},
        in_trials=True,
    )
    path = saved(tmp_path, model, lambda _: asdict(found))
    assert FromFile(path)(model, None, 0.6) == found
    assert FromFile(path).in_trials
    assert not FromFile(saved(tmp_path, model)).in_trials


def test_order_is_the_models(tmp_path: Path, model: PrunableModel) -> None:
    path = saved(tmp_path, model, lambda value: {**value, "keep": dict(reversed(value["keep"].items()))})
    assert list(FromFile(path)(model, None, 0.6).keep) == [layer.name for layer in model.layers]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda value: value["keep"].pop(Q),
            (
                r"was made for other layers: it has no entry for model\.layers\.0\.self_attn\.q_proj\.weight"
                r" \(nearest"
            ),
        ),
        (
            lambda value: value["keep"].update(extra=1),
            r"extra is not a layer to prune here .* check towers and skip_layers",
        ),
        (
            lambda value: value["sizes"].update({Q: 3}),
            r"q_proj\.weight keeps 102 of 3, but has 256 weights here",
        ),
        (lambda value: value["sizes"].pop(Q), "of None, but has 256"),
        (lambda value: value["keep"].update({Q: 257}), "keeps 257 of 256"),
        (lambda value: value["keep"].update({Q: -1}), "keeps -1 of 256"),
        (lambda value: value["keep"].update({Q: 1.5}), r"keeps 1\.5 of 256"),
        (lambda value: value["keep"].update({Q: "1"}), "keeps 1 of 256"),
        (lambda value: value.pop("target") and None, "is not an allocation file"),
        (lambda value: [value], "is not an allocation file"),
        (lambda value: {**value, "keep": [1, 2]}, "is not an allocation file"),
        (lambda value: {**value, "sizes": None}, "is not an allocation file"),
        (lambda value: {**value, "sizes": {Q: "many"}}, "is not an allocation file"),
    ],
)
def test_refusals(
    tmp_path: Path, model: PrunableModel, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    def edit(value: dict[str, Any]) -> Any:
        result = change(value)
        return result if isinstance(result, dict | list) else None

    with pytest.raises(UserError, match=message):
        FromFile(saved(tmp_path, model, edit))(model, None, 0.6)


def move(value: dict[str, Any], count: int) -> dict[str, Any]:
    """Keep so many weights more in one layer."""
    return {**value, "keep": {**value["keep"], Q: value["keep"][Q] + count}}


@pytest.mark.parametrize("count", [-30, -1, 1, 30])
def test_another_total(tmp_path: Path, model: PrunableModel, count: int) -> None:
    path = saved(tmp_path, model, lambda value: move(value, count))
    kept = sum(WaterFilling()(model, None, 0.6).keep.values())
    with pytest.raises(
        UserError,
        match=rf"target 0\.6, which keeps {kept:,} .* keep {kept + count:,} .*allocation\.total=as_given",
    ):
        FromFile(path)(model, None, 0.6)
    taken = FromFile(path, "as_given")(model, None, 0.6)
    assert (sum(taken.keep.values()), taken.total, taken.target) == (kept + count, "as_given", 0.6)


def test_towers_may_meet_the_target_one_by_one(tmp_path: Path) -> None:
    model = tiny.build("blip2_t5")
    sparsity, both = 0.613, WaterFilling(scope="tower")
    by_tower, of_all = (sum(rule(model, None, sparsity).keep.values()) for rule in (both, WaterFilling()))
    assert by_tower != of_all  # each tower rounds down
    (tmp_path / "allocation.json").write_text(json.dumps(asdict(both(model, None, sparsity))))
    assert sum(FromFile(str(tmp_path / "allocation.json"))(model, None, sparsity).keep.values()) == by_tower


@pytest.mark.parametrize("sparsity", [0.3, 0.35, 0.55, 0.6, 0.7])
@pytest.mark.parametrize("rule", [WaterFilling(), ER()], ids=lambda rule: rule.name)
def test_counts_in_whole_groups_are_read_back(
    tmp_path: Path, model: PrunableModel, rule: Any, sparsity: float
) -> None:
    pruner = Wanda(mask="n:4")
    rounded = pruner.fitted(rule(model, None, sparsity))
    file = tmp_path / "allocation.json"
    file.write_text(json.dumps(asdict(rounded)))
    read = FromFile(str(file))(model, None, sparsity)
    assert (read.keep, read.total) == (rounded.keep, rounded.total)
    assert pruner.fitted(read) == read
    if sum(rounded.keep.values()) < keep_total(list(rounded.sizes.values()), sparsity):
        file.write_text(json.dumps(asdict(rounded) | {"total": "exact"}))
        with pytest.raises(UserError, match=r"allocation\.total=as_given"):
            FromFile(str(file))(model, None, sparsity)


@pytest.mark.parametrize("share", [0.5, 1.1])
def test_counts_in_whole_groups_far_from_the_target(
    tmp_path: Path, model: PrunableModel, share: float
) -> None:
    value = asdict(WaterFilling()(model, None, 0.6)) | {"total": "groups"}
    value["keep"] = {name: int(count * share) for name, count in value["keep"].items()}
    (tmp_path / "allocation.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"allocation\.total=as_given"):
        FromFile(str(tmp_path / "allocation.json"))(model, None, 0.6)


def test_an_unknown_total() -> None:
    with pytest.raises(UserError, match=r"allocation\.total=any .*exact.* as_given"):
        FromFile("allocation.json", "any")


def test_no_json(tmp_path: Path, model: PrunableModel) -> None:
    (tmp_path / "allocation.json").write_text("keep: 3")
    with pytest.raises(UserError, match=r"is not an allocation file \(JSONDecodeError"):
        FromFile(str(tmp_path / "allocation.json"))(model, None, 0.6)


@pytest.mark.parametrize("name", ["none.json", "."])
def test_no_file(tmp_path: Path, model: PrunableModel, name: str) -> None:
    with pytest.raises(UserError, match="there is no such file; each run with the allocate step writes"):
        FromFile(str(tmp_path / name))(model, None, 0.6)


def test_other_model(tmp_path: Path, model: PrunableModel) -> None:
    with pytest.raises(
        UserError, match=rf"has no entry for .*decoder\.layers\.0\.self_attn\..*nearest: .*{K[-14:]}"
    ):
        FromFile(saved(tmp_path, model))(tiny.build("opt"), None, 0.6)
