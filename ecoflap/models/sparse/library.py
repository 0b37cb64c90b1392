"""Compile the products with sparse weights for this machine, and load them."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ecoflap.errors import UserError

SOURCE = Path(__file__).with_name("products.c")
COMPILE = ("-O3", "-fopenmp", "-shared", "-fPIC", "-mavx512f", "-mpopcnt")
FLAGS: Mapping[torch.dtype, tuple[str, ...]] = {
    torch.float32: (),
    torch.bfloat16: ("-DBF16", "-mavx512bw", "-mavx512vbmi2", "-mavx512bf16"),
}
MOST_TOKENS = 8
"""What ``product`` takes at a time."""
COLUMNS = 32
"""A row of the mask has a multiple of them."""
PADDING = 64
"""Bytes that must be readable behind the last value."""


@cache
def products(dtype: torch.dtype) -> ctypes.CDLL:
    """The functions ``product`` and ``dense`` of ``products.c`` for a dtype.

    They are compiled once in a process, in about a second, by the compiler that ``CC`` names or ``cc``.
    OpenMP's threads are those that torch has started.

    Raises:
        UserError: if there are none for the dtype, no compiler, or the processor lacks the instructions.
    """
    if dtype not in FLAGS:
        raise UserError(f"there is no sparse product for {dtype}, only for {', '.join(map(str, FLAGS))}")
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise UserError("sparse products need a C compiler; install gcc or clang, or name one in CC")
    with TemporaryDirectory(prefix="ecoflap-") as folder:
        file = Path(folder) / "products.so"
        command = [compiler, *COMPILE, *FLAGS[dtype], str(SOURCE), "-o", str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{compiler} can't compile the sparse products: {done.stderr.strip()[-500:]}")
        library = ctypes.CDLL(str(file))
    if not library.supported():
        raise UserError(f"this processor lacks the instructions of the sparse {dtype} product (AVX-512)")
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.product.restype = library.dense.restype = None
    library.product.argtypes = [*5 * [pointer], *3 * [count]]
    library.dense.argtypes = [*4 * [pointer], *3 * [count]]
    return library
