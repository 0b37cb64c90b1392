"""Locate a checkpoint: in a local folder, or on the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from ecoflap.errors import NumericalError, UnavailableError, UserError
from ecoflap.models.loading.checkpoint_folder import local_settings
from ecoflap.storage.file_names import BITMASK_INDEX
from ecoflap.storage.saved_model import FOREIGN_WEIGHTS, model_folder


def require_folder(path: str, option: str = "model.path") -> str:
    """The path, if it is a hub id or an existing folder; of a run's folder that of the model in it.

    Args:
        path: hub id or folder.
        option: the option that names it, for the message.

    Raises:
        UserError: if it is empty, looks like a folder that doesn't exist, or is of a run that has saved no
            model.
    """
    if not path:  # as a folder, the current one
        raise UserError(
            f"{option} is empty; give a folder that save_pretrained wrote, or a hub id such as org/name"
        )
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not Path(path).expanduser().is_dir():
        raise UserError(
            f"{option}={path}: there is no such folder; give a folder that save_pretrained wrote, or a hub id"
            " such as org/name"
        )
    folder = Path(path).expanduser()
    return str(model_folder(folder)) if folder.is_dir() else path


def from_hub(load: Callable[[], Any], path: str, part: str = "") -> Any:
    """Run a ``from_pretrained`` call and turn its failures into one message that names the path.

    Args:
        load: the call.
        path: hub id or folder.
        part: what is loaded, for the message, such as "the tokenizer of ".

    Raises:
        UserError: if nothing can be loaded from the path.
        UnavailableError: if the path is no folder, and nothing can be loaded from the hub.
    """
    try:
        with _no_progress_bar():
            return load()
    except (UserError, NumericalError):
        raise
    # transformers, the hub and the libraries that they read files with raise errors of every kind.
    except Exception as error:
        kind = UserError if Path(path).is_dir() else UnavailableError
        raise kind(f"{part}model.path={path} {_in_short(error, Path(path))}") from error


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Turn transformers' progress bars off, which would break ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _in_short(error: Exception, path: Path) -> str:
    """Why a ``from_pretrained`` call failed, and what to change, in one line."""
    if _unpickled(error):
        return (
            "has a pytorch_model.bin that is damaged or holds other things than tensors, and they are not"
            " unpickled; give safetensors instead"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # The first line may only announce the second.
    said = (" ".join(lines[:2]) if lines[0].endswith(":") else lines[0]).rstrip(".")
    if path.is_dir():
        return f"could not be loaded: {said}; check the files there"
    here = "" if path.exists() else "there is no such folder here, and from the hub: "
    return (
        f"could not be loaded: {here}{said}; give a local folder, or a hub id while online (HF_HUB_OFFLINE"
        " unset)"
    )


def _unpickled(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, is PyTorch's refusal to unpickle."""
    if error is None:
        return False
    return isinstance(error, UnpicklingError) or _unpickled(error.__cause__ or error.__context__)


def read_settings(path: str, revision: str | None) -> dict[str, Any]:
    """The config.json of a checkpoint.

    Raises:
        UserError: if it is missing or can't be read, or a revision of a local folder is asked for.
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
    """The folder of a checkpoint's local files: the folder itself, or the hub's cache of it.

    Raises:
        UserError: if not even its config.json is available.
    """
    if Path(path).is_dir():
        return Path(path)
    from transformers.utils.hub import cached_file

    return Path(str(from_hub(lambda: cached_file(path, "config.json", revision=revision), path))).parent


def bitmask_folder(path: str, revision: str | None) -> str:
    """The path; for a bitmask checkpoint of the hub, which transformers doesn't read, its cached folder.

    Raises:
        UserError: if the files of a bitmask checkpoint are not available.
    """
    if Path(path).is_dir():
        return path
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(path, BITMASK_INDEX, revision=revision)
    except Exception:  # there is none, or from_pretrained says what is wrong
        return path
    return str(checkpoint_folder(path, revision))


def checkpoint_folder(path: str, revision: str | None) -> Path:
    """The folder of a checkpoint's files: the folder itself, or the hub's cache, complete after a download.

    Raises:
        UserError: if the files are not available.
    """
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    taken, others = ["*.safetensors", "*.json"], list(FOREIGN_WEIGHTS)

    def download() -> str:
        return snapshot_download(path, revision=revision, allow_patterns=taken, ignore_patterns=others)

    return Path(from_hub(download, path))
