"""Compile the products with sparse weights for this machine, and load them."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from ecoflap.errors import UserError

SOURCE = Path(__file__).with_name("products.c")
COMPILE = ("-O3", "-fopenmp", "-shared", "-fPIC", "-mpopcnt")
MOST_TOKENS = 8
"""What ``product`` takes at a time."""
COLUMNS = 32
"""A row of the mask has a multiple of them."""
PADDING = 64
"""Bytes that must be readable behind the last value."""


class Variant(NamedTuple):
    """The products for some instructions of processors.

    Attributes:
        instructions: what the processor must have.
        flags: what lets the compiler use them.
        inputs: the dtype of what is multiplied with the weights.
    """

    instructions: str
    flags: tuple[str, ...]
    inputs: torch.dtype


VARIANTS: Mapping[torch.dtype, tuple[Variant, ...]] = {
    torch.float32: (
        Variant("AVX-512", ("-mavx512f",), torch.float32),
        Variant("AVX2 and FMA", ("-mavx2", "-mfma"), torch.float32),
    ),
    torch.bfloat16: (
        Variant(
            "AVX-512 with VBMI2 and BF16",
            ("-DBF16", "-mavx512f", "-mavx512bw", "-mavx512vbmi2", "-mavx512bf16"),
            torch.bfloat16,
        ),
        Variant("AVX2 and FMA", ("-DBF16", "-mavx2", "-mfma"), torch.float32),
    ),
}
"""By the dtype of the weights, the fastest first."""


class Products(NamedTuple):
    """The functions of ``products.c``, and the dtype of the inputs that ``product`` takes."""

    inputs: torch.dtype
    product: Any
    dense: Any


@cache
def products(dtype: torch.dtype) -> Products:
    """The products for weights of a dtype, in the first variant that this machine has.

    They are compiled once in a process, each that is tried in about a second, by the compiler that ``CC``
    names or ``cc``. OpenMP's threads are those that torch has started.

    Raises:
        UserError: if there are none for the dtype, no compiler, or the processor lacks the instructions.
    """
    if dtype not in VARIANTS:
        raise UserError(f"there is no sparse product for {dtype}, only for {', '.join(map(str, VARIANTS))}")
    *others, last = VARIANTS[dtype]
    for variant in others:
        with suppress(UserError):
            return compiled(variant)
    return compiled(last)  # it needs least, and says what is missing


@cache
def compiled(variant: Variant) -> Products:
    """A variant of the products.

    Raises:
        UserError: if there is no compiler, it fails, or the processor lacks the instructions.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise UserError("sparse products need a C compiler; install gcc or clang, or name one in CC")
    with TemporaryDirectory(prefix="ecoflap-") as folder:
        file = Path(folder) / "products.so"
        command = [compiler, *COMPILE, *variant.flags, str(SOURCE), "-o", str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{compiler} can't compile the sparse products: {done.stderr.strip()[-500:]}")
        library = ctypes.CDLL(str(file))
    if not library.supported():
        raise UserError(f"this processor lacks the instructions of sparse products: {variant.instructions}")
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.product.restype = library.dense.restype = None
    library.product.argtypes = [*5 * [pointer], *3 * [count]]
    library.dense.argtypes = [*4 * [pointer], *3 * [count]]
    return Products(variant.inputs, library.product, library.dense)
