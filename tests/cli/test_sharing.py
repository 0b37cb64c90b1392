"""A saved model can be shared: its card, its recipe that repeats the run, and its way to the hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import huggingface_hub
import pytest
import torch
import transformers as hf
import yaml
from huggingface_hub.utils import filter_repo_objects
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from ecoflap.cli import command, push
from ecoflap.cli.plan import named
from ecoflap.storage.bitmask.convert import convert
from ecoflap.storage.masks import load_masks
from ecoflap.storage.results import Result, verify
from ecoflap.storage.results.identity import differences
from ecoflap.storage.results.metrics import NORMAL
from ecoflap.storage.results.record import find_records
from ecoflap.storage.saved_model import processor_files
from tests.cli import forked
from tests.cli.conftest import ROOT, on_text


@pytest.fixture(scope="module")
def saved(tiny_llama: Path, token_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that saved its model."""
    folder = tmp_path_factory.mktemp("sharing") / "run"
    given = [
        *on_text(tiny_llama, token_file),
        "tracking=none",
        "device=cpu",
        "cache_mode=off",
        "score=none",
        "sparsity=0.5",
        "pruner.mask=matrix",
        "model.save=true",
        f"hydra.run.dir={folder}",
    ]
    done = forked.main(given, folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be changed."""
    import shutil

    return Path(shutil.copytree(saved, tmp_path / "copy"))


def repeat(recipe: Path, folder: Path, *overrides: str) -> Result:
    device = ("tracking=none", "device=cpu", "cache_mode=off", f"hydra.run.dir={folder}")
    done = forked.main(["--config", str(recipe), *device, *overrides], folder.parent)
    assert done.returncode == 0, done.stderr
    return Result.read(folder / "result.json")


def test_the_recipe_repeats_the_run_to_the_bit(saved: Path, tmp_path: Path) -> None:
    again = repeat(saved / "checkpoint" / "recipe.yaml", tmp_path / "again")
    assert differences(Result.read(saved / "result.json").config, again.config) == []
    readers: dict[str, Callable[[Path], dict[str, torch.Tensor]]] = {
        "masks.bits": load_masks,
        "model.safetensors": load_file,
    }
    for name, load in readers.items():
        first, second = (load(folder / "checkpoint" / name) for folder in (saved, tmp_path / "again"))
        assert list(first) == list(second)
        assert all(torch.equal(first[key], second[key]) for key in first)
    texts = [(folder / "checkpoint" / "recipe.yaml").read_text() for folder in (saved, tmp_path / "again")]
    assert texts[0] == texts[1]


def test_overrides_change_the_recipe(saved: Path, tmp_path: Path) -> None:
    again = repeat(
        saved / "checkpoint" / "recipe.yaml", tmp_path / "again", "pruner=magnitude", "sparsity=0.3"
    )
    changed = {
        line.partition(":")[0]
        for line in differences(Result.read(saved / "result.json").config, again.config)
    }
    assert {"pruner.name", "pruner._target_", "sparsity"} <= changed
    assert {key.partition(".")[0] for key in changed} == {"pruner", "sparsity"}
    assert again.sparsity["prunable"] == pytest.approx(0.3, abs=0.01)


def test_auto_chooses_again_in_a_variation(saved: Path, tmp_path: Path) -> None:
    auto = ("score=auto", "allocation=auto", "propagate=auto")
    found = repeat(saved / "checkpoint" / "recipe.yaml", tmp_path / "a", "pruner=sparsegpt", *auto)
    assert found.config["propagate"] == "pruned"
    assert found.config["allocation"]["name"] == "in_context"
    found = repeat(saved / "checkpoint" / "recipe.yaml", tmp_path / "b", "pruner.mask=2:4", *auto)
    assert found.sparsity["prunable"] == pytest.approx(0.5)


def test_a_plan_of_a_recipe(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = saved / "checkpoint" / "recipe.yaml"
    assert command.main(["plan", f"--config={recipe}", "tracking=none"]) == 0
    out = capsys.readouterr().out
    assert "all checks passed" in out
    config, rows = Result.read(saved / "result.json").config, [line.split() for line in out.splitlines()]
    for group in ("model", "calibration", "score", "allocation", "pruner", "task"):
        assert [group, (config[group] or {"name": "none"})["name"]] in rows
    assert command.main(["plan", f"--config={recipe}", "pruner.mas=row"]) == 2
    assert "did you mean mask" in capsys.readouterr().err
    assert command.main(["plan", "tracking=none", "task.limit=5"]) == 0, "the recipe is gone with its command"
    assert "blip2_mini" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ({"_target_": "a.B", "name": "c"}, "c"),
        ({"_target_": "a.B"}, "B"),
        ({"tasks": {"one": {"_target_": "a.B"}, "other": {"_target_": "a.C"}}}, "one, other"),
    ],
)
def test_the_name_of_a_part_of_a_recipe(part: dict[str, Any], name: str) -> None:
    assert named(OmegaConf.create(part)) == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "{}/none.yaml"], "there is no such file"),
        (["--config", "{}"], "{}: is a folder; give {}/recipe.yaml"),
        (["--config", "{}/.."], "give {}/../checkpoint/recipe.yaml"),
        (["--config"], "takes one file"),
        (["--config", "{}/recipe.yaml", "--config={}/recipe.yaml"], "takes one file"),
        (["--config", "{}/recipe.yaml", "-m", "seed=0,1"], "starts a sweep"),
        (["--config", "{}/config.json"], "is not a recipe"),
        (["--config", "{}/model.safetensors"], "can't be read"),
    ],
)
def test_what_is_no_recipe(
    saved: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    place = str(saved / "checkpoint")
    assert command.main(["run", *(argument.replace("{}", place) for argument in arguments)]) == 2
    assert message.replace("{}", place) in capsys.readouterr().err


def test_an_unknown_option_in_a_recipe(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = copy / "checkpoint" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("sparsity:", "sparsty:"))
    assert command.main(["run", "--config", str(recipe)]) == 2
    assert "there is no option 'sparsty'; did you mean sparsity" in capsys.readouterr().err


def test_a_run_of_a_recipe_is_not_restarted_without_it(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repeat(saved / "checkpoint" / "recipe.yaml", tmp_path / "again", "steps=[calibrate,allocate,prune]")
    assert command.main(["status", str(tmp_path / "again"), "--rerun-failed"]) == 2
    assert "was started from a recipe" in capsys.readouterr().err


def test_the_card_says_what_the_record_says(saved: Path) -> None:
    result, text = Result.read(saved / "result.json"), (saved / "checkpoint" / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["ecoflap", "pruned", "sparse", "wanda"],
    }
    zeros = sum(layer["zeros"] for layer in result.sparsity["layers"].values())
    assert f"| all prunable layers | {result.model['prunable']:,} | {zeros:,} | 50.00 % |" in text
    ((task, metrics),) = result.metrics["pruned"].items()
    errors = {when: by_task[task]["perplexity"] for when, by_task in (result.standard_errors or {}).items()}
    figures = [
        f"{values['perplexity']:.4g} ± {NORMAL * errors[when]:.2g}"
        for when, values in (("dense", result.metrics["dense"][task]), ("pruned", metrics))
    ]
    assert f"| {task} | perplexity | {figures[0]} | {figures[1]} |" in text
    assert "license of the dense model was not found" in text
    assert f"{result.data['calibration']['samples']} samples" in text
    assert "- Inputs of layers: propagate=pruned, tokens=all." in text
    assert "runs as fast" in text


def test_the_saved_folder_stands_alone(saved: Path) -> None:
    assert verify(saved) == verify(saved / "checkpoint") == []
    assert find_records(saved.parent) == [saved / "result.json"], "the copy is not another run"


def test_masks_by_the_names_of_the_loaded_model(saved: Path) -> None:
    model = hf.AutoModelForCausalLM.from_pretrained(saved / "checkpoint")
    masks, weights = load_masks(saved / "checkpoint" / "masks.bits", loaded=True), model.state_dict()
    assert set(masks) <= set(weights)
    assert all(not weights[name][~mask].any() for name, mask in masks.items())


class StubHub:
    """Takes the place of ``huggingface_hub.HfApi``, and notes what it is asked for."""

    calls: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    endpoint: ClassVar[str] = "https://hub.example"

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        return huggingface_hub.RepoUrl(f"{self.endpoint}/{repo_id}", endpoint=self.endpoint)

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload_folder", options))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", StubHub)
    monkeypatch.setattr(StubHub, "calls", [])
    return StubHub.calls


@pytest.mark.parametrize("place", [".", "checkpoint"])
def test_push_uploads_the_saved_folder(
    saved: Path, hub: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str], place: str
) -> None:
    assert command.main(["push", str(saved / place), "me/tiny"]) == 0
    (first, created), (second, uploaded) = hub
    assert (first, second) == ("create_repo", "upload_folder")
    assert created == {"repo_id": "me/tiny", "private": True, "exist_ok": True}
    assert uploaded["repo_id"] == "me/tiny"
    assert Path(uploaded["folder_path"]).resolve() == (saved / "checkpoint").resolve()
    assert "files to https://hub.example/me/tiny" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["bad//name", "bad name!!/x y", "me/", "/tiny", "me/a/b"])
def test_push_refuses_what_is_no_repository(
    tmp_path: Path, hub: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for flags in ([], ["--dry-run"]):
        assert command.main(["push", str(tmp_path), name, *flags]) == 2
        error = capsys.readouterr().err
        assert f"{name!r} can't be a repository on the hub" in error
        assert "give OWNER/NAME" in error
    assert hub == []


def test_push_public(saved: Path, hub: list[tuple[str, dict[str, Any]]]) -> None:
    assert command.main(["push", str(saved), "me/tiny", "--public"]) == 0
    assert hub[0][1]["private"] is False


@pytest.mark.parametrize("how", ["--dry-run", "HF_HUB_OFFLINE"])
def test_push_without_uploading_prepares_the_folder(
    copy: Path,
    hub: list[tuple[str, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
) -> None:
    for name in ("README.md", "recipe.yaml", "result.json"):  # as an earlier release saved it
        (copy / "checkpoint" / name).unlink()
    flags = [how] if how.startswith("--") else []
    if not flags:
        monkeypatch.setenv(how, "1")
    assert command.main(["push", str(copy), "me/tiny", *flags]) == 0
    assert hub == []
    out = capsys.readouterr().out
    assert "nothing was uploaded" in out
    assert all(file.name in out for file in (copy / "checkpoint").iterdir())
    assert {"README.md", "recipe.yaml", "result.json", "masks.bits"} <= {
        file.name for file in (copy / "checkpoint").iterdir()
    }
    assert verify(copy / "checkpoint") == []


def test_push_does_not_fail_if_nobody_reads_what_it_did(
    saved: Path,
    hub: list[tuple[str, dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
    close_output: Callable[[], None],
) -> None:
    close_output()
    with pytest.raises(BrokenPipeError):
        push.main([str(saved), "me/tiny"])
    assert [name for name, _ in hub] == ["create_repo", "upload_folder"]
    assert "error" not in capsys.readouterr().err


def test_push_leaves_out_what_is_not_of_the_saved_model(
    copy: Path, hub: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    """And lists what the hub's library would upload."""
    checkpoint = copy / "checkpoint"
    (checkpoint / ".cache" / "deep").mkdir(parents=True)
    adapter = ("adapter_config.json", "adapter_model.safetensors")
    (checkpoint / ".git").mkdir()
    for name in ("pytorch_model.bin", ".cache/deep/file", ".git/config", "training_args.bin", *adapter):
        (checkpoint / name).write_text("other")
    assert command.main(["push", str(copy), "me/tiny", "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert "training_args.bin" in listed
    assert "pytorch_model.bin" not in listed
    assert "adapter" not in listed
    assert ".cache" not in listed
    assert ".git" not in listed
    assert command.main(["push", str(copy), "me/tiny"]) == 0
    assert "pytorch_model*.bin" in hub[1][1]["ignore_patterns"]


def test_push_removes_the_weights_of_an_earlier_model(
    copy: Path, hub: list[tuple[str, dict[str, Any]]]
) -> None:
    """Which loaders would prefer to the new ones, or add to them."""
    earlier = ["model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    earlier += ["pytorch_model.bin", "adapter_config.json", "adapter_model.safetensors"]
    earlier += ["consolidated.safetensors"]
    others = ["README.md", "notes.txt", ".gitattributes", "config.json", "onnx/model.onnx"]
    convert(copy / "checkpoint", copy / "small", "coded")
    assert command.main(["push", str(copy / "small"), "me/tiny"]) == 0
    patterns = hub[1][1]["delete_patterns"]  # by which the hub's library keeps what it uploads
    assert list(filter_repo_objects([*earlier, *others], allow_patterns=patterns)) == earlier


def saved_without_processor(run: Path) -> None:
    """Make a run's saved model one that had no tokenizer or processor."""
    names = set[str]()
    for file in processor_files(run / "checkpoint"):
        file.unlink()
        names.add(file.name)
    for place in (run / "result.json", run / "checkpoint" / "result.json"):
        record = Result.read(place)
        files = {name: digest for name, digest in (record.model_files or {}).items() if name not in names}
        replace(record, model_files=files).write(place)


@pytest.mark.parametrize("own", [True, False])
def test_push_removes_the_tokenizer_of_an_earlier_model_if_this_one_has_its_own(
    copy: Path, hub: list[tuple[str, dict[str, Any]]], own: bool
) -> None:
    """``vocab.json`` is read where ``tokenizer.json`` is missing, and the other way round."""
    saved_without_processor(copy)
    if own:
        (copy / "checkpoint" / "tokenizer.json").write_text("{}")
    assert command.main(["push", str(copy), "me/tiny"]) == 0
    earlier = ["vocab.json", "merges.txt", "chat_template.jinja"]
    patterns = hub[1][1]["delete_patterns"]
    found = list(filter_repo_objects([*earlier, "notes.txt", "onnx/vocab.json"], allow_patterns=patterns))
    assert found == (earlier if own else [])


def test_push_refuses_a_model_that_is_not_as_recorded(
    copy: Path, hub: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    file = copy / "checkpoint" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in load_masks(copy / "checkpoint" / "masks.bits"))
    weights[name] = torch.ones_like(weights[name])
    save_file(weights, file, metadata={"format": "pt"})
    assert command.main(["push", str(copy), "me/tiny"]) == 2
    assert "the saved model differs from its record" in capsys.readouterr().err
    file.unlink()
    assert command.main(["push", str(copy), "me/tiny"]) == 2
    assert "can't be shared" in capsys.readouterr().err
    assert hub == []


@pytest.mark.parametrize("damage", ["cut off", "other figures", "paths taken out"])
def test_push_checks_the_record_that_it_uploads(
    copy: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which is a copy of the run's, beside the model."""
    file = copy / "checkpoint" / "result.json"
    record = json.loads(file.read_text())
    if damage == "other figures":
        next(iter(record["metrics"]["pruned"].values()))["perplexity"] = 1.5
    if damage == "paths taken out":
        record["config"]["model"]["path"] = "of the dense model"
    text = json.dumps(record)
    file.write_text(text[:-9] if damage == "cut off" else text)
    said = {"cut off": "is not JSON", "other figures": "has other figures than"}.get(damage, "")
    assert command.main(["push", str(copy), "me/tiny", "--dry-run"]) == (2 if said else 0)
    assert said in capsys.readouterr().err


def test_push_of_no_run_and_to_a_hub_that_refuses(
    saved: Path,
    tmp_path: Path,
    hub: list[tuple[str, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main(["push", str(tmp_path), "me/tiny"]) == 2
    assert "no result record" in capsys.readouterr().err

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("403 Forbidden: you don't have the rights\nmore")

    monkeypatch.setattr(StubHub, "create_repo", refuse)
    assert command.main(["push", str(saved), "someone/tiny"]) == 2
    assert "someone/tiny: not uploaded (403 Forbidden: you don't have the rights)" in capsys.readouterr().err


class OfHub(Exception):
    """An answer of the hub, as its library raises it."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"Client error '{status}'\nFor more information check: https://x\n\n{said}.")
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "log in with hf auth login"), (409, "correct that, or try again")]
)
@pytest.mark.parametrize("first", ["", "Error while uploading 'model.safetensors' to the Hub"])
def test_push_says_what_the_hub_said(
    saved: Path,
    hub: list[tuple[str, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: int,
    advice: str,
    first: str,
) -> None:
    """In the last line, or in the error that the one of its library comes from."""

    def refuse(*_: Any, **__: Any) -> None:
        error = OfHub(status, "A commit has happened since")
        if first:
            raise RuntimeError(f"{first}.") from error
        raise error

    monkeypatch.setattr(StubHub, "upload_folder", refuse)
    assert command.main(["push", str(saved), "me/tiny"]) == 2
    said = ": ".join(filter(None, [first, f"Client error '{status}'", "A commit has happened since"]))
    assert f"me/tiny: not uploaded ({said}); {advice}" in capsys.readouterr().err


def test_a_report_of_a_run_and_its_saved_folder_has_one_run(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["report", str(saved), "--output", str(tmp_path / "report")]) == 0
    assert "(n=1)" in capsys.readouterr().out
    assert json.loads((saved / "checkpoint" / "result.json").read_text())["checkpoint"] == "."


def test_sharing_is_on_the_list_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "ecoflap push" in out
    assert "ecoflap bench" in out
    assert (ROOT / "docs" / "sharing.md").is_file()
