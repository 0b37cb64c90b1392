"""Where a checkpoint lies: in a local folder, or on the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from ecoflap.errors import NumericalError, UserError
from ecoflap.models.checkpoint_folder import local_settings


def require_folder(path: str, option: str = "model.path") -> str:
    """The path, when it is a hub id or an existing folder.

    Raises:
        UserError: it looks like a folder, and isn't there.
    """
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not Path(path).expanduser().is_dir():
        raise UserError(f"{option}={path}: there is no such folder; give a folder that save_pretrained wrote, or a hub id such as org/name")
    return str(Path(path).expanduser()) if looks_local else path


def from_hub(load: Callable[[], Any], path: str) -> Any:
    """Run a ``from_pretrained`` call and turn its many failures into one message that says where it looked.

    Raises:
        UserError: nothing loadable at the path.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # its bars would tear ours
    try:
        return load()
    except UnpicklingError as error:
        raise UserError(
            f"model.path={path}: its pytorch_model.bin is damaged or holds other things than tensors, and nothing else is unpickled; "
            "give a copy of it in safetensors"
        ) from error
    except (UserError, NumericalError):
        raise
    except Exception as error:  # transformers, its hub and what they read configs and tokenizers with raise errors of every kind
        advice = "check the files there" if Path(path).is_dir() else "give a local folder, or a hub id while online (HF_HUB_OFFLINE unset)"
        raise UserError(f"model.path={path} could not be loaded: {_in_short(error)}; {advice}") from error


def _in_short(error: Exception) -> str:
    """The first line of what an error says, and the second where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return (" ".join(lines[:2]) if lines[0].endswith(":") else lines[0]).rstrip(".")


def read_settings(path: str, revision: str | None) -> dict[str, Any]:
    """The config.json of a checkpoint.

    Raises:
        UserError: it can't be had or read, or a revision of a local folder is asked for.
    """
    if Path(path).is_dir():
        if revision is not None:
            raise UserError(f"model.revision={revision} is for models of the hub, and model.path={path} is a local folder; leave it out")
        return local_settings(Path(path))
    from transformers import PretrainedConfig

    settings, _ = from_hub(lambda: PretrainedConfig.get_config_dict(path, revision=revision), path)
    return dict(settings)


def cached_folder(path: str, revision: str | None) -> Path:
    """Where a checkpoint's files are, as far as they are on this machine: the folder itself, or the hub's copy of it.

    Raises:
        UserError: not even its config.json can be had.
    """
    if Path(path).is_dir():
        return Path(path)
    from transformers.utils.hub import cached_file

    return Path(str(from_hub(lambda: cached_file(path, "config.json", revision=revision), path))).parent


def checkpoint_folder(path: str, revision: str | None) -> Path:
    """Where the files of a checkpoint are: the folder itself, or the hub's copy on this machine, fetched where it is missing.

    Raises:
        UserError: they can't be had.
    """
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(from_hub(lambda: snapshot_download(path, revision=revision, allow_patterns=["*.safetensors", "*.json"]), path))
