"""Where a checkpoint lies: in a local folder, or on the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from ecoflap.errors import NumericalError, UserError
from ecoflap.models.loading.checkpoint_folder import local_settings


def require_folder(path: str, option: str = "model.path") -> str:
    """The path, when it is a hub id or an existing folder.

    Raises:
        UserError: it looks like a folder, and isn't there.
    """
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not Path(path).expanduser().is_dir():
        raise UserError(
            f"{option}={path}: there is no such folder; give a folder that save_pretrained wrote, or a hub id"
            " such as org/name"
        )
    return str(Path(path).expanduser()) if looks_local else path


def from_hub(load: Callable[[], Any], path: str, part: str = "") -> Any:
    """Run a ``from_pretrained`` call and turn its many failures into one message that says where it looked.

    Args:
        load: the call.
        path: hub id or folder.
        part: what of it is loaded, for the message, such as "the tokenizer of ".

    Raises:
        UserError: nothing loadable at the path.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # its bars would tear ours
    try:
        return load()
    except (UserError, NumericalError):
        raise
    # transformers, its hub and what they read configs and tokenizers with raise errors of every kind
    except Exception as error:
        raise UserError(f"{part}model.path={path} {_in_short(error, Path(path).is_dir())}") from error


def _in_short(error: Exception, local: bool) -> str:
    """What a ``from_pretrained`` call died of and what to change, in one line."""
    if _unpickled(error):
        return (
            "has a pytorch_model.bin that is damaged or holds other things than tensors, and they are not"
            " unpickled; give safetensors instead"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # The first line may only announce the second.
    said = (" ".join(lines[:2]) if lines[0].endswith(":") else lines[0]).rstrip(".")
    advice = (
        "check the files there"
        if local
        else "give a local folder, or a hub id while online (HF_HUB_OFFLINE unset)"
    )
    return f"could not be loaded: {said}; {advice}"


def _unpickled(error: BaseException | None) -> bool:
    """Whether an error, or what it was made of, is PyTorch's refusal to unpickle."""
    return error is not None and (
        isinstance(error, UnpicklingError) or _unpickled(error.__cause__ or error.__context__)
    )


def read_settings(path: str, revision: str | None) -> dict[str, Any]:
    """The config.json of a checkpoint.

    Raises:
        UserError: it can't be had or read, or a revision of a local folder is asked for.
    """
    if Path(path).is_dir():
        if revision is not None:
            raise UserError(
                f"model.revision={revision} is for models of the hub, and model.path={path} is a local"
                " folder; leave it out"
            )
        return local_settings(Path(path))
    from transformers import PretrainedConfig

    settings, _ = from_hub(lambda: PretrainedConfig.get_config_dict(path, revision=revision), path)
    return dict(settings)


def cached_folder(path: str, revision: str | None) -> Path:
    """Where a checkpoint's files are, as far as they are on this machine: the folder itself, or the hub's
    copy of it.

    Raises:
        UserError: not even its config.json can be had.
    """
    if Path(path).is_dir():
        return Path(path)
    from transformers.utils.hub import cached_file

    return Path(str(from_hub(lambda: cached_file(path, "config.json", revision=revision), path))).parent


def checkpoint_folder(path: str, revision: str | None) -> Path:
    """Where the files of a checkpoint are: the folder itself, or the hub's copy on this machine, fetched
    where it is missing.

    Raises:
        UserError: they can't be had.
    """
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(
        from_hub(
            lambda: snapshot_download(path, revision=revision, allow_patterns=["*.safetensors", "*.json"]),
            path,
        )
    )
