"""Build the object that a config group describes, and explain values that don't fit; imports no torch."""

from __future__ import annotations

import importlib
import re
from dataclasses import fields, is_dataclass
from traceback import extract_tb
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ecoflap.errors import UserError, did_you_mean, wrong_type
from ecoflap.run.config import METHODS


def build(group: str, node: DictConfig) -> Any:
    """Build the object that a config group describes, with values checked against the types of its dataclass.

    Raises:
        UserError: if a key is unknown, a value is missing or of a wrong type, or the class does not fit the
            group.
    """
    target = _target(group, node)
    schema = OmegaConf.structured(target)
    OmegaConf.set_readonly(schema, False)  # frozen dataclasses give read-only configs
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    del values["_target_"]
    try:
        return OmegaConf.to_object(OmegaConf.merge(schema, values))
    except OmegaConfBaseException as error:
        raise UserError(_explain(group, error, values, target)) from None


def _target(group: str, node: Any) -> type:
    """The class that a config group names.

    Raises:
        UserError: if it names none, or one that does not fit the group.
    """
    name = OmegaConf.select(node, "_target_") if OmegaConf.is_dict(node) else None
    if not isinstance(name, str) or "." not in name:
        raise UserError(
            f"{group}._target_={name} is not a class; add a line `_target_: module.Class` to the file of"
            f" {group}=OPTION"
        )
    module_name, _, class_name = name.rpartition(".")
    try:
        target = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        top, own = module_name.partition(".")[0], ""
        if isinstance(error, ModuleNotFoundError) and error.name == top:
            own = f"; a part of your own needs --config-dir FOLDER, with {top}.py beside the folder"
        raise UserError(
            f"{group}._target_={name} can't be loaded here ({error}{_place(error)}); check its name, install"
            f" what it needs, or a newer transformers{own}"
        ) from error
    wanted = METHODS[group.split(".")[0]]
    if not (isinstance(target, type) and is_dataclass(target)):
        raise UserError(
            f"{group}._target_={name} is not a dataclass; a {group} is one with {' or '.join(wanted)},"
            " as in ecoflap"
        )
    if not any(callable(getattr(target, method, None)) for method in wanted):
        raise UserError(
            f"{group}._target_={name} is not a valid {group}: it has no method {' or '.join(wanted)}; name a"
            " class of this group"
        )
    if missing := sorted(getattr(target, "__abstractmethods__", ())):
        raise UserError(
            f"{group}._target_={name} has no {' and no '.join(missing)} of its own, which every {group} needs"
        )
    return target


def _place(error: BaseException) -> str:
    """The line of a module that can't be imported, for the message; "" if it is in no module."""
    machinery = (__file__, importlib.__file__, "<frozen")
    lines = [one for one in extract_tb(error.__traceback__) if not one.filename.startswith(machinery)]
    return f", {lines[-1].filename}, line {lines[-1].lineno}" if lines else ""


def _explain(group: str, error: OmegaConfBaseException, values: dict[Any, Any], target: type) -> str:
    """A message about a value that OmegaConf refuses."""
    key = f"{group}.{error.full_key}" if error.full_key else group
    first = str(error.msg or error).splitlines()[0]
    known = [entry.name for entry in fields(target) if entry.init]
    if "mandatory" in first:
        return f"{key} is required: add {key}=VALUE"
    if "not in" in first:
        return f"{key} is not an option of this {group}; {did_you_mean(str(error.key), known)}{_source(key)}"
    name = str(error.full_key)
    if name in values and name in known:
        return wrong_type(key, values[name], option_type(get_type_hints(target)[name]))
    if (entry := re.fullmatch(r"(\w+)\[(\d+)\]", name)) and entry[1] in values:
        return wrong_type(key, values[entry[1]][int(entry[2])], _entry_type(get_type_hints(target)[entry[1]]))
    return f"{key}: {first}"


def option_type(hint: Any) -> str:
    """The type of an option, as ``wrong_type`` takes it."""
    if get_origin(hint) is list or any(get_origin(kind) is list for kind in get_args(hint)):
        return "list"
    plain = (kind.__name__ for kind in (hint, *get_args(hint)) if kind in (bool, int, float, str))
    return next(plain, "value of its type")


def _entry_type(hint: Any) -> str:
    """The type of the entries of a list, as ``wrong_type`` takes it."""
    lists = [kind for kind in (hint, *get_args(hint)) if get_origin(kind) is list]
    return option_type(get_args(lists[0])[0]) if lists else option_type(hint)


def _source(key: str) -> str:
    """The end of a message about an option that no one typed: it may come from the chosen experiment."""
    if not HydraConfig.initialized():
        return ""
    if any(override.lstrip("+").startswith(f"{key}=") for override in HydraConfig.get().overrides.task):
        return ""
    experiment = HydraConfig.get().runtime.choices.get("experiment")
    return f". +experiment={experiment} sets it; leave it out with ~{key}" if experiment else ""
