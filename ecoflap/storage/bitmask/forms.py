"""The forms in which a model can be saved."""

from __future__ import annotations

from collections.abc import Sequence

from ecoflap.errors import UserError, did_you_mean, written

DENSE, BITMASK, CODED = "dense", "bitmask", "coded"
FORMS = (DENSE, BITMASK, CODED)
"""What ``from_pretrained`` loads; without the zeros; and with the remaining values coded as well."""


def form_of(save: bool | str) -> str | None:
    """The form that ``model.save`` asks for; None for no checkpoint.

    Args:
        save: a form, True for the dense one, or False.

    Raises:
        UserError: if it is none of these.
    """
    if isinstance(save, bool):
        return DENSE if save else None
    check_form(save, "model.save", (*FORMS, "true", "false"))
    return save


def check_form(form: str, option: str, choices: Sequence[str] = FORMS) -> None:
    """Refuse a form that there is not.

    Args:
        form: the form.
        option: the option's name, for the message.
        choices: what there is.

    Raises:
        UserError: if it is none of the choices.
    """
    if form not in choices:
        raise UserError(f"{option}={written(form)} is not known; {did_you_mean(str(form), choices)}")
