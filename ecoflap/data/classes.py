"""The classes of a data set, and the templates that make texts of their names."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ecoflap.data.example import has_one_place
from ecoflap.errors import UserError


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, as a text tower reads them.

    Attributes:
        names: in the order of the labels.
        templates: each with one ``{}`` for a name; a class is the mean over them.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]


def check_templates(templates: list[str], option: str, names: Collection[str] = ()) -> None:
    """Refuse caption templates without a place for the name.

    Args:
        templates: the templates of the config.
        option: the option that holds them, for the message.
        names: names of sets of templates, such as ``openai``.

    Raises:
        UserError: if a template has no place for the name or other braces, or there are no templates.
    """
    if not templates:
        raise UserError(
            f"{option}=[] must hold at least one template, with {{}} where the name goes; null, where it is"
            " allowed, is the set's own"
        )
    for template in templates:
        if template not in names and not has_one_place(template):
            raise UserError(
                f"{option}={template!r} must hold {{}} once, where the name goes, and no other braces"
            )
