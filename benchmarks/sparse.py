"""Speed without the zeros: python -m benchmarks.sparse [--threads 1]. Writes the tables in docs/sharing.md.

Products of single matrices in each variant that this machine has, and passes of SmolLM2-135M, pruned by
magnitude within rows, against torch's dense product. AVX2 is measured against a torch that is held to AVX2.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import ROOT, clock, in_child, interleaved, write_between
from benchmarks.models import smollm2
from benchmarks.sizes import pruned
from ecoflap.errors import UserError
from ecoflap.models.sparse import library
from ecoflap.models.sparse.linear import SparseLinear
from ecoflap.models.sparse.sparsify import sparsify

BEGIN, END = "<!-- written by python -m benchmarks.sparse --threads {} -->", "<!-- end -->"
SHAPES = ((1536, 576), (4096, 4096), (11008, 4096))  # [rows, cols]
TOKENS = (1, 8, 16, 32, 64, 512)
SPARSITIES = (0.5, 0.7)
PASSES = ((1, 1), (8, 1), (1, 16), (1, 32), (1, 64), (1, 256))  # [sequences, tokens]
ROUNDS = 5
CACHE = 2**26
"""Bytes of dense matrices that take turns, so that they come from memory, as those of a model do."""
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def faster(dense: Callable[[], Any], sparse: Callable[[], Any]) -> float:
    """The least time of the dense side over the least of the sparse one; they take turns."""
    read = clock if torch.get_num_threads() == 1 else time.perf_counter
    seconds = interleaved({"dense": dense, "sparse": sparse}, 1 + ROUNDS, read)
    return min(seconds["dense"]) / min(seconds["sparse"])


def use(dtype: str, place: int) -> torch.dtype:
    """Take one variant of the products for a dtype, and no other.

    Raises:
        UserError: if this machine lacks it.
    """
    found: torch.dtype = getattr(torch, dtype)
    variants = dict(library.VARIANTS)
    variants[found] = (variants[found][place],)
    library.VARIANTS = variants
    library.products(found)
    return found


@torch.no_grad()
def products(dtype: str, place: int, threads: int) -> dict[str, list[list[float]]]:
    """The speeds of matrices, by shape: a row per sparsity, a column per number of tokens."""
    torch.set_num_threads(threads)
    kind = use(dtype, place)
    return {
        f"{rows} x {cols}": [_speeds(rows, cols, kind, sparsity) for sparsity in SPARSITIES]
        for rows, cols in SHAPES
    }


def _speeds(rows: int, cols: int, dtype: torch.dtype, sparsity: float) -> list[float]:
    count = max(1, CACHE // (rows * cols * dtype.itemsize))
    dense = [_layer(rows, cols, dtype, sparsity) for _ in range(count)]
    sparse = [SparseLinear(layer) for layer in dense]
    inputs = [torch.randn(tokens, cols).to(dtype) for tokens in TOKENS]
    return [faster(lambda x=x: _all(dense, x), lambda x=x: _all(sparse, x)) for x in inputs]  # type: ignore[misc]


def _layer(rows: int, cols: int, dtype: torch.dtype, sparsity: float) -> nn.Linear:
    layer = nn.Linear(cols, rows, bias=False, dtype=dtype)
    layer.weight.copy_(pruned(layer.weight, sparsity))
    return layer


def _all(layers: list[nn.Module], inputs: Tensor) -> None:
    for layer in layers:
        layer(inputs)


@torch.no_grad()
def passes(dtype: str, place: int, threads: int) -> dict[str, list[list[float]]]:
    """The speeds of forward passes of SmolLM2 up to the logits of the last token, as of ``products``."""
    torch.set_num_threads(threads)
    kind = use(dtype, place)
    return {"SmolLM2-135M": [_speeds_of_passes(kind, sparsity) for sparsity in SPARSITIES]}


def _speeds_of_passes(dtype: torch.dtype, sparsity: float) -> list[float]:
    model = smollm2()
    for layer in model.layers:
        layer.weight.copy_(pruned(layer.weight, sparsity))
    dense = model.module.to(dtype).eval()
    sparse = copy.deepcopy(dense)
    sparsify(sparse)
    inputs = [torch.randint(5, 49152, shape) for shape in PASSES]
    return [
        faster(lambda x=x: dense(x, logits_to_keep=1), lambda x=x: sparse(x, logits_to_keep=1))  # type: ignore[misc]
        for x in inputs
    ]


def variants() -> Iterator[tuple[str, int, str]]:
    """Each dtype, the place of one of its variants, and what the rows call it."""
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        for place, variant in enumerate(library.VARIANTS[dtype]):
            yield name, place, variant.instructions.partition(" ")[0]


def table(function: str, columns: list[str], threads: int) -> Iterator[str]:
    """The table of ``products`` or ``passes``, a line at a time."""
    yield f"| dense time / sparse time | | | {' | '.join(columns)} |"
    yield "|---|---|---|" + "---:|" * len(columns)
    for dtype, place, instructions in variants():
        held: Mapping[str, str] = AVX2 if instructions == "AVX2" else {}
        where = {"dtype": dtype, "place": place, "threads": threads}
        try:
            library.compiled(library.VARIANTS[getattr(torch, dtype)][place])
        except UserError as error:
            print(f"not measured: {error}", flush=True)
            continue
        for name, rows in in_child(f"benchmarks.sparse:{function}", held, **where).items():
            if name == "peak_bytes":
                continue
            for sparsity, speeds in zip(SPARSITIES, rows, strict=True):
                cells = " | ".join(f"{speed:.2f}" for speed in speeds)
                yield f"| {name} | {dtype}, {instructions} | {sparsity:.0%} | {cells} |"


def main() -> None:
    """Measure both, and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sparse")
    parser.add_argument("--threads", type=int, default=1, help="threads; the clock is the CPU's with one")
    threads = parser.parse_args().threads
    lines: list[str] = []
    tables = {
        "products": [f"{tokens} token{'s' * (tokens > 1)}" for tokens in TOKENS],
        "passes": [f"{sequences} x {tokens}" for sequences, tokens in PASSES],
    }
    for function, columns in tables.items():
        for line in table(function, columns, threads):
            print(line, flush=True)
            lines.append(line)
        lines.append("")
    write_between(ROOT / "docs" / "sharing.md", BEGIN.format(threads), END, lines[:-1])


if __name__ == "__main__":
    main()
