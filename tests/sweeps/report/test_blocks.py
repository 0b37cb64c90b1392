"""Blocks from the names of layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ecoflap.sweeps.report.blocks import allocated, block_names, block_sparsities
from ecoflap.sweeps.report.cells import other_sparsity
from ecoflap.sweeps.report.metrics import make_tables
from ecoflap.sweeps.report.runs import read_runs
from ecoflap.sweeps.report.sections import make_sections
from tests.sweeps.report.conftest import write_run


@pytest.mark.parametrize(
    ("layers", "blocks"),
    [
        (
            ["model.layers.0.q.weight", "model.layers.0.up.weight", "model.layers.1.q.weight"],
            ["model.layers.0", "model.layers.0", "model.layers.1"],
        ),
        (
            ["model.layers.7.q.weight", "model.layers.7.up.weight"],
            ["model.layers.7"] * 2,
        ),  # a tower of one block
        (
            ["encoder.layers.encoder_layer_0.mlp.0.weight", "encoder.layers.encoder_layer_1.mlp.0.weight"],
            None,
        ),  # torchvision's
        (
            ["encoder.layers.encoder_layer_0.mlp.0.weight", "encoder.layers.encoder_layer_0.mlp.3.weight"],
            ["encoder.layers.encoder_layer_0"] * 2,
        ),
        (
            [
                "encoder.layers.0.blocks.0.q.weight",
                "encoder.layers.0.blocks.1.q.weight",
                "encoder.layers.1.blocks.0.q.weight",
            ],
            None,
        ),  # stages
        (
            ["blip2.text.layer.0.q.weight", "blip2.text.layer.10.q.weight"],
            ["blip2.text.layer.0", "blip2.text.layer.10"],
        ),
    ],
)
def test_blocks_are_the_members_of_the_list_that_holds_all_layers(
    layers: list[str], blocks: list[str] | None
) -> None:
    expected = blocks or [".".join(layer.split(".")[:3]) for layer in layers]
    assert block_names(layers) == dict(zip(layers, expected, strict=True))


def test_a_block_is_weighed_by_its_weights() -> None:
    layers = {
        "a.0.q": {"tower": "text", "size": 100},
        "a.0.up": {"tower": "text", "size": 300},
        "a.1.q": {"tower": "text", "size": 100},
        "v.0.q": {"tower": "vision", "size": 10},
        "v.1.q": {"tower": "vision", "size": 10},
    }
    found = block_sparsities(layers, {"a.0.q": 100, "a.0.up": 100, "a.1.q": 20, "v.0.q": 10, "v.1.q": 0})
    assert found == {
        "text": {"a.0": pytest.approx(0.5), "a.1": pytest.approx(0.8)},
        "vision": {"v.0": 0.0, "v.1": 1.0},
    }


def test_of_a_run_that_stopped_before_pruning_the_allocation_counts(tmp_path: Path) -> None:
    path = write_run(
        tmp_path, "a", {}, dense=None, blocks={"text": [0.0, 0.0]}, record={"metrics": {}, "steps": {}}
    )
    (run,) = read_runs(tmp_path)
    assert allocated(run) == {}
    keep = {layer: 25 if ".0." in layer else 75 for layer in run.result.sparsity["layers"]}
    (path.parent / "allocation.json").write_text(json.dumps({"keep": keep}))
    assert list(allocated(run)["text"].values()) == [0.75, 0.25]
    (path.parent / "allocation.json").write_text(json.dumps({"keep": {"other.layer": 1}}))
    assert allocated(run) == {}


def test_whole_units_are_counted_by_the_allocation_file(tmp_path: Path) -> None:
    """The record has the smaller matrices, without zeros and without removed experts."""
    path = write_run(tmp_path, "a", 70.0, blocks={"text": [0.0, 0.0]}, sparsity=0.3)
    data = json.loads(path.read_text())
    data["sparsity"] |= {"total": "units"}
    path.write_text(json.dumps(data))
    (run,) = read_runs(tmp_path)
    assert (run.realised, allocated(run)) == (None, {})
    names = list(run.result.sparsity["layers"])
    file, sizes = path.parent / "allocation.json", dict.fromkeys(names, 200)
    keep = {name: 150 if ".0." in name else 200 for name in names}
    file.write_text(json.dumps({"keep": keep, "sizes": sizes}))
    assert run.realised == pytest.approx(0.125)
    assert list(allocated(run)["text"].values()) == [0.25, 0.0]
    gone = {"keep": {**keep, "text.expert.3": 0}, "sizes": {**sizes, "text.expert.3": 200 * len(names)}}
    file.write_text(json.dumps(gone))
    assert run.realised == pytest.approx(0.5625)
    assert allocated(run) == {}, "no record says which block a removed expert was in"
    (table,) = make_tables(make_sections([run]), ["vqa/accuracy"])
    ((row,),) = [table.cells.values()]
    assert other_sparsity(0.3, row[0.3]) == pytest.approx(0.5625)
