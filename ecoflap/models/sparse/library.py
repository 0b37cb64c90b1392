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
COMPILE = ("-O3", "-fopenmp", "-shared", "-fPIC", "-mpopcnt", "-mbmi")
FEW_TOKENS = 8
"""What ``product`` takes in every variant."""
BLOCK = 64
"""Tokens for which ``product`` needs scratch, of one float per column and token; more come in blocks."""
COLUMNS = 64
"""A row of the mask has a multiple of them."""
PADDING = 64
"""Bytes that must be readable behind the last value."""


class Variant(NamedTuple):
    """The products for some instructions of processors.

    Attributes:
        instructions: what the processor must have.
        flags: what lets the compiler use them.
        inputs: the dtype of what is multiplied with the weights.
        many: whether ``product`` takes more than ``FEW_TOKENS`` tokens.
    """

    instructions: str
    flags: tuple[str, ...]
    inputs: torch.dtype
    many: bool = True


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
            many=False,
        ),
        Variant("AVX2 and FMA", ("-DBF16", "-mavx2", "-mfma"), torch.float32),
    ),
}
"""By the dtype of the weights, the fastest first."""


class Products(NamedTuple):
    """The functions of ``products.c``, and which inputs ``product`` takes, as in ``Variant``."""

    inputs: torch.dtype
    many: bool
    product: Any
    dense: Any


@cache
def products(dtype: torch.dtype) -> Products:
    """The products for weights of a dtype, in the first variant that this machine has.

    They are compiled once in a process, each that is tried in about a second, by the compiler that ``CC``
    names or ``gcc``. OpenMP's threads are those that torch has started.

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
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        raise UserError("sparse products need gcc; install it, or name it in CC")
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
    library.product.argtypes = [*6 * [pointer], *3 * [count]]
    library.dense.argtypes = [*4 * [pointer], *3 * [count]]
    return Products(variant.inputs, variant.many, library.product, library.dense)
