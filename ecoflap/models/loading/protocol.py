"""What a model's entry in the config is: it loads the model."""

from __future__ import annotations

from typing import Protocol

import torch

from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection


class Loader(Protocol):
    """Loads one model.

    It may have ``shapes_first``: loading on the meta device reads no weights, so that plans are checked
    against the model's shapes before anything is loaded. And ``in_lavis_format``: its checkpoints are LAVIS'
    files, which are dense.

    Attributes:
        name: shown in logs and written to result files.
        save: write the pruned checkpoint into the run's folder: true or dense, bitmask, coded.
    """

    name: str
    save: bool | str

    def load(self, device: torch.device, selection: Selection) -> PrunableModel:
        """Load the model, in evaluation mode.

        Raises:
            UserError: if there is no such model, tower or layer.
        """
