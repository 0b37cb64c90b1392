"""``model.save`` in each form and ``ecoflap convert`` as they are typed, and ``ecoflap verify`` of runs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import ecoflap
from ecoflap.cli.command import main as command
from ecoflap.errors import UserError
from ecoflap.run.plan.checks import check_save
from ecoflap.storage import checkpoint as saving
from ecoflap.storage.file_names import CARD, RECIPE, RESULT
from ecoflap.storage.masks import load_masks
from ecoflap.storage.results import Result, verify
from ecoflap.storage.saved_model import hash_weights, open_checkpoint, weight_bytes
from tests.cli.forked import main
from tests.cli.test_experts import expert_run  # noqa: F401 - a fixture
from tests.storage.bitmask.by_hand import same
from tests.storage.bitmask.test_convert import events, in_child, kill_at

Run = Callable[..., Result]
SPARSE = ("bitmask", "coded")


def weights(folder: Path) -> dict[str, Tensor]:
    with open_checkpoint(folder / "checkpoint") as checkpoint:
        return {name: checkpoint.tensor(name) for name in checkpoint.names()}


def check_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(same(one[name], other[name]) for name in one)


def contents(folder: Path) -> dict[str, bytes]:
    """Each file; safetensors orders the metadata of masks anew each time."""
    return {path.name: b"" if "masks" in path.name else path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("form", SPARSE)
def test_a_mini_model_is_saved_verified_and_converted(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "dense"
    options = ["calibration.samples=8", "task.limit=10", "score=none", "tracking=none", "device=cpu"]
    options += ["model=vit_mini", "sparsity=0.7", "allocation=water_filling", "cache_mode=off"]
    finished = main([*options, f"model.save={form}", f"hydra.run.dir={run}"], tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert sorted(path.name for path in run.glob("checkpoint*")) == ["checkpoint"]
    assert command(["verify", str(run)]) == 0
    assert command(["convert", str(run), str(out), "--to", "dense"]) == 0
    said = capsys.readouterr().out
    ratio = weight_bytes(out) / weight_bytes(run / "checkpoint")
    assert f"{out}: {weight_bytes(out):,} bytes of weights, {ratio:.3f} of the" in said
    assert ratio > 1.2
    check_same(load_file(out / "model.safetensors"), weights(run))
    assert Result.read(run / RESULT).weights == hash_weights(out)
    (run / "checkpoint").rename(tmp_path / "moved")
    assert command(["convert", str(run), str(tmp_path / "other"), "--to", "dense"]) == 2
    assert f"{run} is of a run that saved no model; run it again with" in capsys.readouterr().err
    assert command(["convert", str(out), str(out), "--to", "coded"]) == 2
    assert f"{out} is there and holds something; choose a new folder" in capsys.readouterr().err
    assert command(["convert", str(tmp_path / "none"), str(tmp_path / "other"), "--to", "dense"]) == 2
    assert f"{tmp_path / 'none'} is not a folder; give a model's" in capsys.readouterr().err


@pytest.mark.parametrize("form", SPARSE)
@pytest.mark.parametrize("offload", ["none", "disk"])
@pytest.mark.every_run("none-bitmask", "disk-coded")
def test_the_same_weights_as_a_dense_save(
    run: Run, text_run: list[str], tmp_path: Path, form: str, offload: str
) -> None:
    shared = [*text_run, f"runtime.offload={offload}", "score=none", "pruner=magnitude"]
    dense = run([*shared, "model.save=dense"], "dense")
    small = run([*shared, f"model.save={form}"], "small")
    assert small.sparsity == dense.sparsity
    check_same(weights(tmp_path / "small"), weights(tmp_path / "dense"))
    assert verify(tmp_path / "small") == []
    loaded = ecoflap.load_pruned(tmp_path / "small", device="cpu").state_dict()
    assert all(same(loaded[name], tensor) for name, tensor in weights(tmp_path / "dense").items())
    files = {path.name for path in (tmp_path / "small" / "checkpoint").iterdir()}
    assert not any(name.startswith("model") for name in files)
    assert {"config.json", "masks.bits", "tokenizer.json"} <= files
    rest = [one for one in text_run if not one.startswith("model.path=")]
    for name, folder in (("dense", "dense/checkpoint"), ("small", "small")):
        evaluated = [*rest, f"model.path={tmp_path / folder}", "steps=[evaluate]"]
        assert run(evaluated, f"{name}_again").metrics["dense"] == small.metrics["pruned"]
    with pytest.raises(UserError, match=r"holds a bitmask checkpoint; .*ecoflap convert .*small"):
        run([*evaluated, "runtime.offload=disk"], "refused")


@pytest.mark.parametrize(
    "pruner",
    [
        "magnitude",
        "global_magnitude",
        "wanda",
        "wanda pruner.refine=swaps",
        "sparsegpt",
        "admm",
    ],
)
def test_only_kept_weights_are_stored(run: Run, text_run: list[str], tmp_path: Path, pruner: str) -> None:
    """No pruned weight is a negative zero, which a bitmask has to store."""
    run([*text_run, *f"pruner={pruner}".split(), "score=none", "model.save=bitmask"], "small")
    checkpoint = tmp_path / "small" / "checkpoint"
    masks = load_masks(checkpoint / "masks.bits")
    (shard,) = checkpoint.glob("bitmask-*")
    stored = load_file(shard)
    found = {name: len(stored[f"{name}:values"]) for name in masks if f"{name}:values" in stored}
    assert found
    assert found == {name: int(masks[name].sum()) for name in found}


def test_experts_are_verified_row_by_row(run: Run, expert_run: list[str], tmp_path: Path) -> None:
    run([*expert_run, "score=none", "model.save=coded"])
    assert verify(tmp_path / "run") == []


def test_the_card_of_a_model_with_fewer_experts_says_how_it_is_loaded(
    run: Run, expert_run: list[str], tmp_path: Path
) -> None:
    run([*expert_run, "pruner=reap", "sparsity=0.3", "model.save=bitmask"])
    card = (tmp_path / "run" / "checkpoint" / CARD).read_text()
    assert "Whole units were removed" in card
    assert "`ecoflap.load_pruned(FOLDER)` loads them" in card
    assert "without any special format" not in card


def test_a_model_of_torchvision(tmp_path: Path) -> None:
    from ecoflap.models.loading.state_dict import SavesStateDict
    from tests import tiny

    built = tiny.build("torchvision_vit")
    model = SavesStateDict(**vars(built))
    for layer in model.layers:
        layer.weight.data[:, ::2] = 0
    masks = {layer.name: layer.weight != 0 for layer in model.layers}
    saving.save_checkpoint(model, masks, tmp_path, "coded")
    with open_checkpoint(tmp_path / "checkpoint") as checkpoint:
        state = {name: checkpoint.tensor(name) for name in checkpoint.names()}
    check_same(state, dict(model.module.state_dict()))
    other = tiny.torchvision_vit()
    with torch.no_grad():
        for weight in other.parameters():
            weight.fill_(1)
    ecoflap.load_pruned(tmp_path / "checkpoint", other)
    check_same(dict(other.state_dict()), state)


def test_damage_and_loss_are_found(
    run: Run, text_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run([*text_run, "score=none", "model.save=bitmask"])
    (shard,) = (tmp_path / "run" / "checkpoint").glob("bitmask-*")
    original = shard.read_bytes()
    shard.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    assert command(["verify", str(tmp_path / "run")]) == 1
    assert "its size or its BLAKE2b is another" in " ".join(capsys.readouterr().out.split())
    out = str(tmp_path / "out")
    assert command(["convert", str(shard.parent), out, "--to", "dense"]) == 2
    assert "nothing converted" in capsys.readouterr().err
    assert not Path(out).exists()
    shard.unlink()
    assert command(["verify", str(tmp_path / "run")]) == 2
    assert "is missing, which the checkpoint's index names" in capsys.readouterr().err


def test_killed_while_it_saves_and_run_again(
    run: Run, text_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no moment is there a checkpoint that is not whole, and a new save ends with the same files."""
    saved: list[tuple] = []  # type: ignore[type-arg]
    save = saving.save_checkpoint
    from ecoflap.run import outcome

    def noting(*arguments: object) -> str:
        saved.append(arguments)
        return save(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(outcome, "save_checkpoint", noting)
    run([*text_run, "score=none", "model.save=coded"], "whole")
    ((model, masks, whole, form),) = saved
    described = {CARD, RECIPE, RESULT}  # by the run, once the model is saved
    expected = {name: text for name, text in contents(whole / "checkpoint").items() if name not in described}
    total = events(tmp_path, lambda: save(model, masks, tmp_path, form))
    for moment in Random(0).sample(range(1, total - 1), 20):
        folder = tmp_path / f"at{moment}"
        folder.mkdir()
        job = lambda folder=folder: save(model, masks, folder, form)
        assert in_child(job, kill_at(moment)) == -signal.SIGKILL
        if (folder / "checkpoint").exists():
            check_same(weights(folder), weights(whole))
        job()
        assert {path.name for path in folder.iterdir()} == {"checkpoint"}
        assert contents(folder / "checkpoint") == expected


def test_an_interrupted_save_goes_on(
    run: Run, text_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ecoflap.storage.bitmask import convert as converting

    monkeypatch.setattr(converting, "SHARD_BYTES", 4000)
    write, written = converting.write_shard, []

    def third_fails(path: Path, *rest: object) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(converting, "write_shard", third_fails)
    overrides = [*text_run, "score=none", "model.save=bitmask"]
    with pytest.raises(KeyboardInterrupt):
        run(overrides)
    assert not (tmp_path / "run" / "checkpoint").exists()
    monkeypatch.setattr(
        converting, "write_shard", lambda path, *rest: (written.append(path.name), write(path, *rest))
    )
    run(overrides)
    assert verify(tmp_path / "run") == []
    files = list((tmp_path / "run" / "checkpoint").glob("bitmask-*-of-*"))
    assert len(written) == len(set(written)) == len(files)


def test_a_loader_that_writes_lavis_files_has_only_the_dense_form() -> None:
    from types import SimpleNamespace

    from ecoflap.models.families.lavis.parts import LavisPretrained

    assert LavisPretrained.in_lavis_format
    loader = SimpleNamespace(name="nlvr", in_lavis_format=True, save="coded")
    runtime = SimpleNamespace(offload="none")
    plan = SimpleNamespace(loader=loader, config=SimpleNamespace(runtime=runtime))
    with pytest.raises(UserError, match=r"model\.save=coded: nlvr is saved in LAVIS' format, .*save=dense"):
        check_save(plan)  # type: ignore[arg-type]
    for save in (True, False, "dense"):
        loader.save = save
        check_save(plan)  # type: ignore[arg-type]
    loader.save, runtime.offload = True, "disk"
    with pytest.raises(
        UserError, match=r"nlvr is saved in LAVIS' format, .*one file; use runtime\.offload=cpu"
    ):
        check_save(plan)  # type: ignore[arg-type]
