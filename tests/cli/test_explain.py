"""``ecoflap explain``: groups, choices and options, from the config and the docstrings of the parts."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from ecoflap.cli.choices import Choices
from ecoflap.cli.descriptions import described, meanings_of
from ecoflap.cli.explain import explain_options, main
from ecoflap.errors import UserError
from ecoflap.run import registry
from ecoflap.run.config import METHODS, RunConfig, RuntimeConfig, register

register()
PARTS = [kind for parts in registry.PARTS.values() for kind in parts.values()]


@pytest.mark.parametrize("kind", [*PARTS, RunConfig, RuntimeConfig], ids=lambda kind: kind.__name__)
def test_every_option_has_a_description(kind: type) -> None:
    known = METHODS if kind is RunConfig else ()
    assert [name for name, one in described(kind).items() if not one.meaning and name not in known] == []
    assert set(meanings_of(kind)) <= set(described(kind)), "a description of what is no option"


@pytest.mark.parametrize("group", sorted(METHODS))
def test_a_group_lists_every_choice_with_a_line(group: str) -> None:
    _, *lines = explain_options(group).splitlines()
    assert [line.split()[0] for line in lines] == Choices().options(group)
    assert [line for line in lines if len(line.split()) < 3] == [], "a choice without a description"


@pytest.mark.parametrize("argument", ["finetune=lora", "finetune.lora"])
def test_a_choice_shows_its_values_types_and_meanings(argument: str) -> None:
    text = explain_options(argument)
    for name, one in described(registry.options_of("ecoflap.finetune.lora.Lora") or object).items():
        assert f"  finetune.{name}=" in text
        assert one.kind in text
    assert "finetune.weight_decay=0.0" in text, "the file's value, not the class's"
    assert "(text: auto, float32, bfloat16, float16)" in text


def test_a_row_of_a_table_is_explained() -> None:
    text = explain_options("model=llama_13b")
    assert text.startswith("model=llama_13b: LLaMA 13B")
    assert "model.path=huggyllama/llama-13b" in text


def test_an_option_is_explained_in_every_choice_that_has_it() -> None:
    text = explain_options("finetune.epochs")
    assert "in full, lora" in text
    assert "in reconstruct" in text


@pytest.mark.parametrize("option", ["learning_rate", "weight_decay"])
def test_an_option_has_the_values_that_the_choices_files_set(option: str) -> None:
    given = {name: Choices().compose([f"finetune={name}"]).finetune[option] for name in ("full", "lora")}
    text = explain_options(f"finetune.{option}")
    for name, value in given.items():
        assert re.search(rf"finetune\.{option}={value} .* in {name}$", text, re.MULTILINE)


@pytest.mark.parametrize("option", ["sparsity", "runtime.offload", "cache_mode"])
def test_options_of_the_run_are_explained(option: str) -> None:
    assert explain_options(option).startswith(f"  {option}=")


def test_without_an_argument_all_groups_are_listed() -> None:
    text = explain_options("")
    assert all(f"  {group}: " in text for group in METHODS)
    assert registry.HIDDEN not in [line.split(":")[0].strip() for line in text.splitlines()]


@pytest.mark.parametrize(
    ("argument", "meant"),
    [("prunr", "pruner"), ("sparsty", "sparsity"), ("finetune=lore", "lora"), ("finetune.epoch", "epochs")],
)
def test_an_unknown_name_is_refused_with_what_was_meant(
    argument: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=f"did you mean .*{meant}"):
        explain_options(argument)
    assert main([argument]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {argument}: ")
    assert meant in error


def test_a_choice_of_a_group_inside_another_is_explained_as_it_is_typed() -> None:
    text = explain_options("+experiment/blip2=wanda")
    assert text == explain_options("experiment=blip2/wanda")
    assert text.startswith("+experiment=blip2/wanda: ")


@pytest.mark.parametrize("topics", [[], ["pruner=wanda"]])
def test_a_config_dir_that_is_not_there_is_refused(
    tmp_path: Path, topics: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*topics, "--config-dir", str(tmp_path / "conf")]) == 2
    assert f"--config-dir {tmp_path / 'conf'}: there is no such folder" in capsys.readouterr().err


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "conf/pruner").mkdir(parents=True)
    (tmp_path / "conf/pruner/own.yaml").write_text("name: own\n  mask: row\n")
    for argument in ("pruner", "pruner=own"):
        assert main([argument, "--config-dir", str(tmp_path / "conf")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "own.yaml, line 2" in error


def test_a_part_beside_a_config_dir_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_part.py").write_text(
        '''from dataclasses import dataclass


@dataclass(frozen=True)
class Own:
    """Prune by chance.

    Attributes:
        share: how much of it
            is chance.
    """

    share: float = 0.5
'''
    )
    (tmp_path / "conf/pruner").mkdir(parents=True)
    (tmp_path / "conf/pruner/own.yaml").write_text("_target_: own_part.Own\nshare: 0.25\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = str(tmp_path / "conf")
    assert "  own " in explain_options("pruner", folder)
    text = explain_options("pruner=own", folder)
    assert "pruner=own: Prune by chance." in text
    assert "pruner.share=0.25   (number)" in text
    assert "how much of it is chance." in text
    assert "pruner.share=0.25" in explain_options("pruner.share", folder)


@pytest.mark.parametrize("argument", ["sparsegpt", "pruner/sparsegpt"])
def test_a_choice_without_its_group_leads_to_it(argument: str) -> None:
    with pytest.raises(UserError, match="sparsegpt is a choice of pruner: ecoflap explain pruner=sparsegpt"):
        explain_options(argument)


def test_choices_in_a_search_path_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "conf/pruner").mkdir(parents=True)
    (tmp_path / "conf/pruner/own.yaml").write_text("# Wanda at 2:4.\ndefaults: [wanda]\nmask: '2:4'\n")
    assert main([f"hydra.searchpath=[file://{tmp_path}/conf]", "pruner=own"]) == 0
    assert "pruner.mask=2:4" in capsys.readouterr().out
    assert main([f"hydra.searchpath=[file://{tmp_path}/gone]", "pruner=own"]) == 2
    assert "there is no such folder" in capsys.readouterr().err
