"""The forms in which a model can be saved."""

from __future__ import annotations

from ecoflap.errors import UserError, did_you_mean, written

DENSE, BITMASK, CODED = "dense", "bitmask", "coded"
FORMS = (DENSE, BITMASK, CODED)
"""What ``from_pretrained`` loads; without the zeros; and with the remaining values coded as well."""


def form_of(save: bool | str, option: str = "model.save") -> str | None:
    """The form that an option asks for; None for no checkpoint.

    Args:
        save: a form, True for the dense one, or False.
        option: the option's name, for the message.

    Raises:
        UserError: if it is none of these.
    """
    if isinstance(save, bool):
        return DENSE if save else None
    if save not in FORMS:
        raise UserError(
            f"{option}={written(save)} is not known; {did_you_mean(str(save), (*FORMS, 'true', 'false'))}"
        )
    return save
