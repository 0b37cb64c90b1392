"""List the choices of config groups and explain their options."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ecoflap.cli.arguments import PLACES
from ecoflap.cli.choices import Choices, check_config_dir, is_search_path
from ecoflap.cli.descriptions import Description, described, summary_of
from ecoflap.console.arguments import ArgumentParser, complain
from ecoflap.console.wrapping import wrapped
from ecoflap.errors import FEW, UserError, did_you_mean, written
from ecoflap.run import config as run_config
from ecoflap.run import registry, tables
from ecoflap.run.config import METHODS, RunConfig, RuntimeConfig
from ecoflap.run.import_path import beside, extend_import_path
from ecoflap.run.refusals import describe
from ecoflap.storage.installation import conf_folder

WIDTH = 110
SENTENCE = re.compile(r".+?[.:](?= [A-Z\"]|$)")
NOT_ABOUT = ("@package", "python main.py", "ecoflap ", "python -m")


def main(arguments: list[str]) -> int:
    """Explain each argument; returns the exit code.

    Args:
        arguments: groups, choices and options, optionally with ``--config-dir FOLDER`` or
            ``hydra.searchpath=[PLACE]``.
    """
    parser = ArgumentParser(prog="ecoflap explain", description=__doc__)
    parser.add_argument(
        "what", nargs="*", metavar="GROUP[=CHOICE] or OPTION", help="such as pruner or score.samples"
    )
    parser.add_argument("--config-dir", "-cd", help="a folder with more choices")
    asked = parser.parse_args(arguments)
    try:
        places = [what for what in asked.what if is_search_path(what)]
        topics = [what for what in asked.what if what not in places] or [""]
        text = "\n\n".join(explain_options(what, asked.config_dir, places) for what in topics)
        print(wrapped(text, sys.stdout))
    except Exception as error:
        if (message := describe(error)) is None:
            raise
        return complain(message)
    return 0


def explain_options(argument: str, config_dir: str | None = None, places: Sequence[str] = ()) -> str:
    """Explain a group, a choice or an option.

    Args:
        argument: such as ``pruner``, ``pruner=wanda``, ``score.samples`` or ``sparsity``; an empty string for
            all groups and the options of the run itself.
        config_dir: a folder with more choices.
        places: overrides of ``hydra.searchpath``, which name more of them.

    Raises:
        UserError: if there is no such group, choice, option or place.
    """
    if config_dir is not None:
        extend_import_path([beside(config_dir)])
    run_config.register()
    return _Explainer(config_dir, places).explain(argument.lstrip("+"))


class _Explainer:
    """Explains the choices and options of a command line."""

    def __init__(self, config_dir: str | None, places: Sequence[str] = ()) -> None:
        check_config_dir(config_dir)
        self.choices = Choices(config_dir, places)
        self.choices.check_places()
        self.folders = [Path(folder) for folder in (config_dir, conf_folder()) if folder is not None]
        self.groups = [group for group in self.choices.groups if "/" not in group and group != "hydra"]
        inner = {f"runtime.{name}": found for name, found in described(RuntimeConfig).items()}
        own = {name: found for name, found in described(RunConfig).items() if name not in self.groups}
        self.own = own | inner
        del self.own["runtime"]

    def explain(self, argument: str) -> str:
        """Explain a group, a choice or an option; an empty string for an overview."""
        inside = re.sub(r"^(\w+)/([\w/]+)=", r"\1=\2/", argument)  # experiment/blip2=wanda
        group, _, name = inside.replace("=", ".", 1).partition(".")
        if not argument:
            return self.everything()
        if group in self.groups:
            return self.group(group) if not name else self.member(group, name, argument)
        if found := [key for key in self.own if key == argument or key.startswith(f"{argument}.")]:
            return self.options("", self.own, found, self.choices.compose([]))
        name = argument.rpartition("/")[2]
        if groups := [group for group in self.groups if name in self.choices.options(group)]:
            instead = f"{name} is a choice of {groups[0]}: ecoflap explain {groups[0]}={name}"
        else:
            instead = did_you_mean(argument, [*self.groups, *self.own], "ecoflap explain lists them")
        raise UserError(f"{argument}: there is no such group or option; {instead}")

    def everything(self) -> str:
        """The groups, and the options of the run itself."""
        lines = [f"  {group}: {_few(self.choices.options(group))}" for group in self.groups]
        return "\n".join(["Groups (ecoflap explain GROUP says more):", *lines, "", "Options of the run:"]) + (
            "\n" + self.options("", self.own, list(self.own), self.choices.compose([]))
        )

    def group(self, group: str) -> str:
        """A line for each choice of a group."""
        names = self.choices.options(group)
        width = max(map(len, names))
        sign = "+" if group in PLACES else ""
        head = f"{sign}{group}=CHOICE; ecoflap explain {group}=CHOICE lists its options"
        return "\n".join([head, *(f"  {name:{width}}  {self.about(group, name)}".rstrip() for name in names)])

    def member(self, group: str, name: str, argument: str) -> str:
        """A choice of a group, or an option of its choices."""
        if name in self.choices.options(group):
            return self.choice(group, name)
        if found := self.everywhere(group, name):
            return found
        names = [*self.choices.options(group), *self.option_names(group)]
        instead = did_you_mean(name, names, f"ecoflap explain {group} lists them")
        raise UserError(f"{argument}: {group} has no such choice or option; {instead}")

    def choice(self, group: str, name: str) -> str:
        """The options of a choice with their values."""
        sign = "+" if group in PLACES else ""
        head = f"{sign}{group}={name}: {self.about(group, name, whole=True)}".rstrip(": ")
        lines = textwrap.wrap(head, _width(), break_on_hyphens=False)
        if group not in METHODS:
            return "\n".join(lines)
        config = self.choices.compose([f"{group}={name}"])
        node = config[group]
        members = {f"{group}.tasks.{key}": member for key, member in node.get("tasks", {}).items()}
        for place, member in {group: node, **members}.items():
            values = [str(key) for key in member if key not in ("_target_", "tasks")]
            lines.append(self.options(place, _describe(member), values, config))
        return "\n".join(line for line in lines if line)

    def everywhere(self, group: str, option: str) -> str | None:
        """An option in every choice of a group that has it; None if none has."""
        found: dict[tuple[str, Description], list[str]] = {}
        for label, kind in self.kinds(group):
            if option in (options := described(kind)):
                value = _written(self.defaults(group, label, kind)[option])
                found.setdefault((value, options[option]), []).append(label)
        blocks = [
            _block(f"{group}.{option}", value, description, f"in {', '.join(labels)}")
            for (value, description), labels in found.items()
        ]
        return "\n".join(blocks) or None

    def defaults(self, group: str, label: str, kind: type) -> dict[str, Any]:
        """The options of a choice as it is composed; those of its class, if no choice has this name."""
        if label not in self.choices.options(group):
            return registry.defaults(kind)
        node = OmegaConf.to_container(self.choices.compose([f"{group}={label}"])[group], resolve=False)
        assert isinstance(node, dict)
        return {**registry.defaults(kind), **{str(name): value for name, value in node.items()}}

    def option_names(self, group: str) -> list[str]:
        """The options that the choices of a group have."""
        return list(dict.fromkeys(name for _, kind in self.kinds(group) for name in described(kind)))

    def kinds(self, group: str) -> Iterable[tuple[str, type]]:
        """(name, dataclass) of a group's choices: first those of this package, then of other folders."""
        for kind in registry.PARTS.get(group, {}).values():
            yield str(registry.defaults(kind).get("name", group)), kind
        for folder in self.folders[:-1]:
            for file in sorted((folder / group).glob("*.yaml")):
                node = self.choices.compose([f"{group}={file.stem}"])[group]
                if (own := registry.options_of(str(node.get("_target_")))) is not None:
                    yield file.stem, own

    def options(self, place: str, known: dict[str, Description], names: list[str], config: DictConfig) -> str:
        """Options with their values in a config."""
        empty = Description("", (), "")
        keys = {name: f"{place}.{name}".lstrip(".") for name in names}
        return "\n".join(
            _block(key, _value(config, key), known.get(name, empty)) for name, key in keys.items()
        )

    def about(self, group: str, name: str, whole: bool = False) -> str:
        """The description of a choice in its file or table: the first sentence, or all of it."""
        text = tables.about(group, name) or self._comment(group, name)
        match = None if whole else SENTENCE.match(text)
        return match[0].rstrip(":") if match else text

    def _comment(self, group: str, name: str) -> str:
        file = next(
            (file for folder in self.folders if (file := folder / group / f"{name}.yaml").is_file()), None
        )
        if file is None:
            return ""
        lines = file.read_text(encoding="utf-8").splitlines()
        said = [line.lstrip("# ") for line in lines if line.startswith("#")]
        if text := " ".join(line for line in said if not line.startswith(NOT_ABOUT)):
            return text
        node = OmegaConf.load(file)
        kind = registry.options_of(str(OmegaConf.select(node, "_target_")))
        return summary_of(kind) if kind is not None else ""


def _describe(node: Any) -> dict[str, Description]:
    kind = registry.options_of(str(node.get("_target_")))
    return described(kind) if kind is not None else {}


def _width() -> int:
    """Columns of an explanation."""
    return min(WIDTH, shutil.get_terminal_size().columns) if sys.stdout.isatty() else WIDTH


def _few(names: list[str]) -> str:
    return ", ".join(names[:FEW]) + (f", ... ({len(names)})" if len(names) > FEW else "")


def _value(config: DictConfig, key: str) -> str:
    group, _, name = key.rpartition(".")
    node = OmegaConf.to_container(OmegaConf.select(config, group) if group else config, resolve=False)
    assert isinstance(node, dict)
    return _written(node[name])


def _written(value: object) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(map(str, value))}}}"
    blank = isinstance(value, str) and (not value or value != value.strip())
    return repr(value) if blank else written(value)


def _block(key: str, value: str, description: Description, where: str = "") -> str:
    """An option with its value and type, then its meaning."""
    one_of = f": {', '.join(description.choices)}" if description.choices else ""
    kind = f"   ({description.kind}{one_of})" if description.kind else ""
    first = f"  {key}={value}{kind}" + (f"   {where}" if where else "")
    meaning = textwrap.fill(
        description.meaning,
        _width(),
        initial_indent=" " * 6,
        subsequent_indent=" " * 6,
        break_on_hyphens=False,
    )
    return "\n".join(filter(None, [first, meaning]))
