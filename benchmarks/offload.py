"""The rows of disk offload: a run from safetensors shards into safetensors shards, and passes that read the
next block ahead, in processes of their own.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.measure import Row, in_child, medians
from benchmarks.models import smollm2, tokens
from ecoflap.blocks.capture import Flow
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language.causal_lm import CausalLM
from ecoflap.models.offload.load import load_offloaded
from ecoflap.score.pass_size import LiveBytes

SAMPLES, LENGTH, BATCH = 16, 256, 8


def prepare(folder: str) -> dict[str, Any]:
    """Save SmolLM2 as a checkpoint folder in several shards, and tokens; how large the model is and what one
    block makes of one batch.
    """
    model, calibration = smollm2(), tokens(SAMPLES, LENGTH, 49152)
    module: Any = model.module
    module.save_pretrained(f"{folder}/model", max_shard_size="100MB")
    model.processor.save_pretrained(f"{folder}/model")
    save_file(
        {"calibration": torch.stack([sample["input_ids"] for sample in calibration.samples])},
        f"{folder}/tokens.safetensors",
    )
    with quiet_forward(module), torch.no_grad():
        stream = Flow(model, model.towers[0], [calibration.batches(BATCH)[0]]).streams[0]
        with LiveBytes() as live:
            stream.call(0).run(model.blocks[0].module, stream.hidden)
    return {
        "model_bytes": sum(p.numel() * p.element_size() for p in module.parameters()),
        "activation_bytes": live.peak,
    }


def baseline() -> dict[str, Any]:
    """Import what a run imports, and do nothing."""
    import transformers  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401

    from ecoflap.run import pipeline  # noqa: F401

    torch.randn(64, 64) @ torch.randn(64, 64)
    return {}


def run(folder: str, offload: str) -> dict[str, Any]:
    """Prune the checkpoint as main.py does."""
    import contextlib
    import io

    from ecoflap.run import pipeline
    from tests.cli.conftest import composed

    torch.set_num_threads(1)
    out = Path(folder) / offload
    out.mkdir()
    overrides = [
        "model=causal_lm",
        f"model.path={folder}/model",
        "calibration=token_file",
        f"calibration.path={folder}/tokens.safetensors",
    ]
    overrides += [
        "calibration.key=calibration",
        "score=none",
        "task=token_perplexity",
        f"task.path={folder}/tokens.safetensors",
        "task.key=calibration",
        "sparsity=0.5",
        f"batch_size={BATCH}",
        "model.save=true",
    ]
    overrides += [
        "steps=[calibrate,allocate,prune]",
        "tracking=none",
        "device=cpu",
        "cache_mode=off",
        f"runtime.offload={offload}",
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        pipeline.run(composed(overrides), out)
    return {}


def passes(folder: str, runs: int, cached: bool) -> dict[str, Any]:
    """Wall-clock seconds of forward passes with and without the next block read ahead, in turns, the median;
    and whether the losses are the same. The pages of the files are forgotten before each pass that is to read
    them from the disk.
    """
    torch.set_num_threads(1)
    loader, work = CausalLM(path=f"{folder}/model"), Path(folder) / "work"
    model = load_offloaded(loader, torch.device("cpu"), Selection(), "disk", work)
    batch, files = tokens(2, LENGTH, 49152).batches(2)[0], sorted(Path(folder, "model").glob("*.safetensors"))
    seconds: dict[str, list[float]] = {"without": [], "ahead": []}
    losses = []
    with quiet_forward(model.module), torch.no_grad():
        for _ in range(runs + 1):
            for side, taken in seconds.items():
                model.placement.reads_ahead = side == "ahead"
                if not cached:
                    forget(files)
                started = time.perf_counter()
                losses.append(model.loss(batch))
                taken.append(time.perf_counter() - started)
    same = all(torch.equal(loss, losses[0]) for loss in losses)
    return {"same": same, **medians({side: taken[1:] for side, taken in seconds.items()})}


def forget(files: list[Path]) -> None:
    """Take files out of the page cache."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def same_weights(one: Path, other: Path) -> bool:
    """Whether two checkpoint folders hold the same weights, bit for bit; tied ones may be stored once."""
    first, second = _tensors(one), _tensors(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def rows(runs: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        sizes = in_child("benchmarks.offload:prepare", folder=folder)
        idle = in_child("benchmarks.offload:baseline")["peak_bytes"]
        peaks = {
            kind: in_child("benchmarks.offload:run", folder=folder, offload=kind)["peak_bytes"] - idle
            for kind in ("none", "disk")
        }
        same = same_weights(Path(folder) / "none" / "checkpoint", Path(folder) / "disk" / "checkpoint")
        read = {
            where: in_child("benchmarks.offload:passes", folder=folder, runs=max(runs, 5), cached=cached)
            for where, cached in (("from the page cache", True), ("from the disk", False))
        }
    share = (peaks["disk"] - sizes["activation_bytes"]) / sizes["model_bytes"]
    megabytes = {kind: peak / 2**20 for kind, peak in peaks.items()}
    details = {"baseline_bytes": idle, **sizes}
    yield Row(
        "disk offload, SmolLM2, peak above the interpreter",
        "in memory; the ratio is (ours less one batch's activations) / the model's bytes",
        "MiB",
        megabytes["none"],
        megabytes["disk"],
        share,
        ("<=", 0.35),
        "same weights bit for bit" if same else "WEIGHTS DIFFER",
        details,
    )
    for where, found in read.items():
        yield Row(
            f"disk offload, SmolLM2, a pass of 2 x {LENGTH}, blocks {where}, wall clock",
            "without reading the next block ahead",
            "s",
            found["without"],
            found["ahead"],
            found["without"] / found["ahead"],
            None,
            "same losses bit for bit" if found["same"] else "LOSSES DIFFER",
            found,
        )
