"""Transfer towers that were pruned inside one BLIP-2 into another.

The paper evaluates captions and retrieval so, on fine-tuned models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ecoflap.errors import UserError
from ecoflap.models.families.blip.positions import resized_positions
from ecoflap.models.loading.hub import require_folder
from ecoflap.storage.saved_model import open_checkpoint

POSITIONS = "vision_model.embeddings.position_embedding"


def transfer(module: Any, folder: str, tower: str, option: str) -> None:
    """Replace a tower by that of another BLIP-2's checkpoint; positions are resized bicubically.

    Args:
        module: the BLIP-2 to change.
        folder: the folder of the checkpoint.
        tower: ``vision_model`` or ``language_model``.
        option: the option that gives the folder, for messages.

    Raises:
        UserError: if the checkpoint has no such tower.
    """
    # A checkpoint holds a tensor with two names (tied embeddings) once, under the name of a parameter.
    own = {name: tensor for name, tensor in module.named_parameters() if name.startswith(f"{tower}.")}
    try:
        with open_checkpoint(Path(require_folder(folder, option))) as checkpoint:
            taken = {name: checkpoint.tensor(name).to(tensor.dtype) for name, tensor in own.items()}
    except FileNotFoundError as error:
        raise UserError(
            f"{option}={folder}: {error}; give the checkpoint folder of a run with model.save=true"
        ) from None
    except KeyError as error:
        raise UserError(
            f"{option}={folder} has no {error}; give the checkpoint folder of a BLIP-2 run"
        ) from None
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{option}={folder} is damaged ({error}); copy it anew") from None
    if POSITIONS in taken:
        taken[POSITIONS] = resized_positions(taken[POSITIONS], own[POSITIONS].shape[1])
    wrong = [name for name, tensor in taken.items() if tensor.shape != own[name].shape]
    if wrong:
        raise UserError(
            f"{option}={folder}: {wrong[0]} is {list(taken[wrong[0]].shape)} there and"
            f" {list(own[wrong[0]].shape)} here"
        )
    module.load_state_dict(taken, strict=False)
