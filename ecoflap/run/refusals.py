"""Describe errors that a user or the machine can cause in one line.

An error that is not described here is a bug, and keeps its traceback.
"""

from __future__ import annotations

import errno
import re

from hydra.errors import CompactHydraException, HydraException
from omegaconf.errors import (
    GrammarParseError,
    InterpolationKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)
from yaml import MarkedYAMLError, YAMLError

from ecoflap.errors import NumericalError, UserError, typed_command
from ecoflap.storage.disk_space import is_full

ADVICE = {
    errno.EACCES: "it may not be written or read by you; choose another place, or change its permissions",
    errno.EPERM: "it may not be written or read by you; choose another place, or change its permissions",
    errno.EROFS: "the disk is read-only; choose another place",
    errno.ENOTDIR: "a file is where a folder has to be; remove it or choose another place",
    errno.EEXIST: "a file is where a folder has to be; remove it or choose another place",
    errno.EISDIR: "it is a folder, where a file has to be; choose another",
    errno.ENAMETOOLONG: "the name is too long for the disk; choose a shorter one",
    errno.ENOENT: "there is no such file or folder, and none can be made there; check the path",
    errno.EMFILE: "too many files are open at once; raise the limit (ulimit -n)",
    errno.EIO: "the disk fails to read or write; choose another",
    errno.EINVAL: "the disk can't do that; choose another place",
}


def describe(error: BaseException) -> str | None:
    """An error in one line; None for a bug, which should show its traceback."""
    message = _describe(error)
    return None if message is None else " ".join(message.split())


def _describe(error: BaseException) -> str | None:
    if isinstance(error, UserError | NumericalError):
        return str(error)
    if is_full(error):
        return _disk_full(error)
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return _operating_system(error)
    if isinstance(error.__cause__, OSError) and str(error).startswith("Unable to configure"):  # a log file
        return _describe(error.__cause__)
    if isinstance(error, YAMLError):
        return _yaml(error)
    if isinstance(error, OmegaConfBaseException):
        return _omegaconf(error)
    if isinstance(error, CompactHydraException) and "Error instantiating" in str(error):
        return _describe(error.__cause__) if error.__cause__ is not None else str(error)
    if type(error).__name__ == "OutOfMemoryError":
        said = str(error).split(". ")[0]
        return (
            f"the accelerator's memory is full ({said}); use a smaller (score.)batch_size, or"
            " runtime.offload=cpu"
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # the latter is torch's
        return "the memory is full; use a smaller batch_size, runtime.offload=disk, or a smaller model"
    return None


def of_hydra(error: BaseException) -> str | None:
    """An error of Hydra in one line; None for other errors."""
    if not isinstance(error, HydraException):
        return None
    lines = [line.strip() for line in f"{error}\n{error.__cause__ or ''}".splitlines() if line.strip()]
    details = ("full_key:", "object_type=", "reference_type=", "See http", "Config search path", "provider=")
    told = [line.rstrip(".") for line in lines if not line.startswith(details)]
    return "; ".join(told[:3]) + f"; {typed_command()} --help lists what there is"


def _disk_full(error: BaseException) -> str:
    file = getattr(error, "filename", None)
    place = f" of {file}" if file else ""
    return (
        f"no space is left on the disk{place}; what was being written is gone; free some space, and start the"
        " run again"
    )


def _operating_system(error: OSError) -> str | None:
    advice = ADVICE.get(error.errno or 0)
    if advice is None or error.filename is None:
        return None
    name = str(error.filename)
    return f"{name if len(name) <= 200 else f'{name[:200]}...'}: {advice}"


def _yaml(error: YAMLError) -> str:
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    where = f"{mark.name}, line {mark.line + 1}" if mark is not None else "a config file"
    problem = str(getattr(error, "problem", None) or error)
    if "'\\t'" in problem:
        return f"{where}: a tab, which YAML doesn't allow; indent with spaces"
    return f"{where} is no YAML ({problem}); correct it there"


def _omegaconf(error: OmegaConfBaseException) -> str:
    key, first = str(error.full_key or ""), str(error.msg or error).splitlines()[0]
    refers = f"{key}: " if key else ""
    if missing := re.search(r"Environment variable '(.*?)' not found", first):
        name = missing[1]
        return (
            f"{refers}the environment variable {name} is not set; set it, or give a value for that case:"
            f" ${{oc.env:{name},VALUE}}"
        )
    if isinstance(error, InterpolationKeyError):
        name = re.sub(r".*'(.*)'.*", r"\1", first)
        return (
            f"{refers}${{{name}}} refers to an option that is not there; an environment variable is"
            f" ${{oc.env:{name}}}"
        )
    if isinstance(error, InterpolationToMissingValueError | MissingMandatoryValue):
        missing_key = re.sub(r".*: ", "", first) if isinstance(error, MissingMandatoryValue) else key
        return f"{missing_key or key} is required: add {missing_key or key}=VALUE"
    if isinstance(error, UnsupportedInterpolationType):
        return f"{refers}{first}; there are oc.env, now, hydra and package_file: ${{oc.env:NAME}}"
    if isinstance(error, GrammarParseError):
        return (
            f"{refers}a ${{ }} can't be read ({first}); write ${{option}} or ${{oc.env:NAME}}, or \\$ for the"
            " sign itself"
        )
    return f"{refers}{first}"
