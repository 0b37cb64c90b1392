"""The forms in which a model can be saved."""

from __future__ import annotations

from ecoflap.errors import require_choice

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
    require_choice("model.save", save, (*FORMS, "true", "false"))
    return save
