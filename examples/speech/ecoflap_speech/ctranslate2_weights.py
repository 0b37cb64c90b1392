"""Weights of a CTranslate2 ``model.bin``: a header, a record per tensor, then aliases of tensors."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

TYPES: dict[int, Any] = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_ctranslate2(path: Path) -> dict[str, Tensor]:
    """Read every tensor by name in its stored precision; settings are tensors without dimensions."""
    with path.open("rb") as file:
        _number(file, "I")  # version of the format
        _text(file)  # kind of model
        _number(file, "I")  # its revision
        tensors = dict(_tensor(file) for _ in range(_number(file, "I")))
        for _ in range(_number(file, "I")):
            alias = _text(file)
            tensors[alias] = tensors[_text(file)]
    return tensors


def _number(file: BinaryIO, kind: str) -> int:
    """One little-endian integer: B, H or I for 8, 16 or 32 bits."""
    (value,) = struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))
    return value


def _text(file: BinaryIO) -> str:
    """A string with its length before it and a zero byte at its end."""
    return file.read(_number(file, "H"))[:-1].decode()


def _tensor(file: BinaryIO) -> tuple[str, Tensor]:
    name = _text(file)
    shape = [_number(file, "I") for _ in range(_number(file, "B"))]
    kind = TYPES[_number(file, "B")]
    values = np.frombuffer(bytearray(file.read(_number(file, "I"))), kind)
    return name, torch.from_numpy(values).reshape(shape)
