"""Whole runs on the pretend accelerator: nothing mixes devices, and the results are the CPU's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import ecoflap
from ecoflap.blocks.statistics import MeanSquare
from ecoflap.errors import UserError
from ecoflap.finetune.masked_parameters import MaskedParameter
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.offload.offloaded import Offloaded
from ecoflap.ops import sparsegpt
from ecoflap.run import pipeline
from ecoflap.score import derivative
from ecoflap.storage.masks import load_masks
from ecoflap.storage.results import Result, verify
from tests import tiny
from tests.accelerator.conftest import in_child, on_both
from tests.accelerator.rules import DeviceMixError
from tests.accelerator.state import without_fp64
from tests.cli.conftest import WORDS, composed
from tests.cli.test_vlm import save_llava

MINIS = {
    "clip": ["model=clip_mini", "task.limit=20"],
    "blip2": ["model=blip2_mini", "task.limit=4"],
    "blip": ["model=blip_vqa_mini", "task.limit=4"],
    "t5": ["model=t5_mini", "task.limit=1"],
}
LLAVA = [
    "model=vlm",
    "model.prompt='USER: <image> {} ASSISTANT:'",
    "calibration=easy_vqa",
    "task=easy_vqa",
    "task.limit=4",
]
FAMILIES = ["llama", "gpt2", "t5", "clip", "blip", "blip2", "llava"]
SAMPLES = ["score.samples=4", "score.batch_size=4"]
SCORES = {
    "layer": ["score=zeroth_order", "pruner=wanda"],
    "block": ["score=zeroth_order", "score.probe=block", "pruner=sparsegpt"],
    "derivative": ["score=zeroth_order", "score.probe=derivative", "pruner=magnitude"],
    "first_order": ["score=first_order", "pruner=wanda", "pruner.mask=matrix"],
    "local": ["score=local", "score.measure=sparsegpt", "pruner=wanda"],
}
EVERY_SCORE = ("llama", "llava")  # the other families: one score that moves weights, and one of gradients
PRUNERS = {
    "magnitude": ["score=none", "pruner=magnitude", "pruner.mask=row"],
    "wanda_2_4": ["score=none", "pruner=wanda", "pruner.mask=2:4", "sparsity=0.5"],
    "sparsegpt_2_4": ["score=none", "pruner=sparsegpt", "pruner.mask=2:4", "sparsity=0.5"],
    "admm": ["score=none", "pruner=admm"],
    "ria": ["score=none", "pruner=ria"],
    "swaps": ["score=none", "pruner=wanda", "pruner.refine=swaps", "pruner.repair=true"],
    "global_magnitude": ["pruner=global_magnitude"],
    "global_gradient": ["pruner=global_gradient", "pruner.samples=4", "pruner.batch_size=4"],
    "dense_inputs": ["score=none", "propagate=dense"],
    "layer_by_layer": ["score=none", "propagate=layer", "pruner=sparsegpt", "batch_size=2"],
    "compensated": ["score=none", "propagate=compensated", "pruner=admm", "batch_size=2"],
}
IN_CONTEXT = [
    "allocation=in_context",
    "allocation.steps=2",
    "allocation.ramp_steps=1",
    "allocation.samples=4",
]
ALLOCATIONS = {
    "in_context": IN_CONTEXT,
    "in_context_admm": [*IN_CONTEXT, "pruner=admm"],
    "in_context_sparsegpt": [*IN_CONTEXT, "pruner=sparsegpt"],
    "in_context_rows": [*IN_CONTEXT, "allocation.granularity=row"],
    "owl": ["allocation=owl", "allocation.spread=auto"],
    "dlp": ["allocation=dlp"],
    "lsa": ["allocation=lsa", "allocation.granularity=layer"],
    "neuronal": ["allocation=neuronal", "allocation.spreads=[0.05,0.2]"],
    "evopress": ["allocation=evopress", "allocation.generations=2", "allocation.offspring=4"],
}
TASKS = {
    "captions": ["model=blip_caption_mini", "task.limit=4"],
    "pairs": ["model=blip_retrieval_mini", "task.limit=4", "task.rerank=2"],
    "retrieval": ["model=clip_mini", "task=easy_retrieval", "task.limit=20"],
    "classes": ["model=vit_mini", "task.limit=20"],
}
FINETUNED = ["steps=[calibrate,allocate,prune,finetune,evaluate]", "score=none"]
FINETUNERS = {
    "full": ["finetune=full", "finetune.steps=3", "finetune.batch_size=2", "finetune.data=calibration"],
    "lora": ["finetune=lora", "finetune.steps=3", "finetune.batch_size=2", "finetune.data=calibration"],
    "reconstruct": ["finetune=reconstruct", "finetune.epochs=2"],
}


@pytest.fixture(scope="session")
def tiny_gpt2(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny_gpt2"
    torch.manual_seed(0)
    size = {"vocab_size": len(WORDS) + 2, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(**{**tiny.GPT2, **size}, initializer_range=0.3)).save_pretrained(folder)
    for file in tiny_llama.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny_llava"
    save_llava(folder)
    return folder


@pytest.fixture
def base(text_run: list[str], tiny_gpt2: Path, tiny_llava: Path) -> dict[str, list[str]]:
    """{family: overrides of its model, its data and its task}"""
    text = [override for override in text_run if not override.startswith(("score.", "device=", "cache="))]
    families = {
        **MINIS,
        "llama": text,
        "gpt2": [*text, f"model.path={tiny_gpt2}"],
        "llava": [*LLAVA, f"model.path={tiny_llava}"],
    }
    return {
        family: [*overrides, "calibration.samples=4", "batch_size=4", "model.save=true"]
        for family, overrides in families.items()
    }


def check_counts(overrides: list[str], folder: Path) -> tuple[Result, Result]:
    """Run on both, and compare the scores and how many weights the layers keep."""
    with (
        without_fp64(),
        pytest.MonkeyPatch.context() as patch,
    ):  # in the child too, which is a copy of this process
        patch.setattr(
            sparsegpt, "eliminate", sparsegpt.solve_batched
        )  # on the CPU too: the same numbers but for their last digits
        cpu, npy = on_both(overrides, folder)
    for name in ("scores.json", "allocation.json"):
        texts = [
            file.read_text() if (file := folder / place / name).exists() else None for place in ("cpu", "npy")
        ]
        assert texts[0] == texts[1], name
    return cpu, npy


def check_same(overrides: list[str], folder: Path) -> None:
    """Run on both, and compare all that the runs write."""
    cpu, npy = check_counts(overrides, folder)
    assert verify(folder / "npy") == []
    masks = [load_masks(folder / place / "checkpoint" / "masks.bits") for place in ("cpu", "npy")]
    assert masks[0].keys() == masks[1].keys()
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())
    for file in (folder / "cpu" / "checkpoint").glob("model*.safetensors"):
        ours, theirs = load_file(folder / "npy" / "checkpoint" / file.name), load_file(file)
        assert ours.keys() == theirs.keys()
        different = [name for name, weight in ours.items() if not torch.equal(weight, theirs[name])]
        assert different == []
    assert npy.metrics == cpu.metrics


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.every_run("llama", "blip2", "llava")
def test_families(base: dict[str, list[str]], tmp_path: Path, family: str) -> None:
    check_same([*base[family], *SCORES["first_order"], *SAMPLES], tmp_path)
    assert json.loads((tmp_path / "npy" / "scores.json").read_text())["importance"]


@pytest.mark.parametrize(
    ("family", "score"),
    [
        (family, score)
        for family in FAMILIES
        for score in (SCORES if family in EVERY_SCORE else ("layer",))
        if score != "first_order"
    ],
)
@pytest.mark.every_run("llama-block", "llama-derivative", "clip-layer")
def test_scores(base: dict[str, list[str]], tmp_path: Path, family: str, score: str) -> None:
    steps = "steps=[calibrate,score,allocate]"
    check_counts([*base[family], *SCORES[score], *SAMPLES, steps, "model.save=false"], tmp_path)
    for name, content in (("scores", "importance"), ("allocation", "keep")):
        assert json.loads((tmp_path / "npy" / f"{name}.json").read_text())[content]


@pytest.mark.parametrize(
    ("family", "pruner"),
    [
        *(("gpt2", pruner) for pruner in PRUNERS),
        ("clip", "global_gradient"),
        ("blip2", "global_magnitude"),
        ("t5", "sparsegpt_2_4"),
    ],
)
@pytest.mark.every_run("gpt2-wanda_2_4", "gpt2-swaps", "gpt2-compensated")
def test_pruners(base: dict[str, list[str]], tmp_path: Path, family: str, pruner: str) -> None:
    check_same([*base[family], *PRUNERS[pruner]], tmp_path)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.every_run("in_context", "evopress")
def test_allocations(base: dict[str, list[str]], tmp_path: Path, allocation: str) -> None:
    check_same([*base["gpt2"], *ALLOCATIONS[allocation]], tmp_path)


@pytest.mark.parametrize("option", ["tokens=text", "tokens=answer", "tokens=atv", "allocation=tamp"])
@pytest.mark.every_run("tokens=atv")
def test_tokens(base: dict[str, list[str]], tmp_path: Path, option: str) -> None:
    check_same([*base["llava"], "score=none", option], tmp_path)


def test_singular_values_differ_in_their_last_digits(base: dict[str, list[str]], tmp_path: Path) -> None:
    steps = "steps=[calibrate,allocate,prune]"
    with without_fp64():
        cpu, npy = on_both([*base["gpt2"], "allocation=alpha_pruning", steps], tmp_path)
    assert npy.sparsity == cpu.sparsity


@pytest.mark.variant
def test_units_are_cut(base: dict[str, list[str]], tmp_path: Path) -> None:
    search = ["pruner=upop", "pruner.steps=4", "pruner.interval=2", "pruner.batch_size=4"]
    cpu, npy = on_both([*base["blip"], *search], tmp_path)
    assert npy.sparsity == cpu.sparsity
    weights = [load_file(tmp_path / place / "checkpoint" / "model.safetensors") for place in ("cpu", "npy")]
    assert {name: weight.shape for name, weight in weights[0].items()} == {
        name: weight.shape for name, weight in weights[1].items()
    }
    assert verify(tmp_path / "npy") == []


@pytest.mark.parametrize(
    ("family", "options", "offload"),
    [
        *(("llama", [*options, *SAMPLES], "disk") for options in SCORES.values()),
        ("llama", ["score=none", "propagate=dense"], "cpu"),
        ("gpt2", ["score=none", "propagate=dense"], "disk"),
        ("t5", ["score=none", "propagate=layer"], "disk"),
        ("blip2", ["score=none", "propagate=layer", "pruner=sparsegpt", "batch_size=2"], "cpu"),
        ("llama", ["score=none", "propagate=compensated", "pruner=admm", "batch_size=2"], "disk"),
        ("llama", ["score=none", *IN_CONTEXT, "pruner=sparsegpt"], "cpu"),
        ("gpt2", ["score=none", *IN_CONTEXT, "pruner=admm"], "disk"),
        ("gpt2", [*SCORES["layer"], *SAMPLES], "disk"),
        ("t5", [*SCORES["derivative"], *SAMPLES], "cpu"),
        ("blip2", [*SCORES["first_order"], *SAMPLES], "cpu"),
        ("llava", [*SCORES["first_order"], *SAMPLES], "cpu"),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) else value,
)
@pytest.mark.every_run("llama-*=zeroth_order-pruner=wanda-disk", "llama-*=in_context-cpu", "llava-*")
def test_offload(
    base: dict[str, list[str]], tmp_path: Path, family: str, options: list[str], offload: str
) -> None:
    check_same([*base[family], *options, f"runtime.offload={offload}"], tmp_path)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.every_run("captions", "classes")
def test_evaluation(tmp_path: Path, task: str) -> None:
    cpu, npy = on_both([*TASKS[task], "steps=[evaluate]", "score=none"], tmp_path)
    assert npy.metrics == cpu.metrics
    assert npy.metrics["dense"]


@pytest.mark.parametrize(
    ("family", "method"),
    [*(("llama", method) for method in FINETUNERS), ("clip", "full"), ("blip2", "reconstruct")],
)
@pytest.mark.every_run("llama-full", "llama-reconstruct")
def test_finetuning(base: dict[str, list[str]], tmp_path: Path, family: str, method: str) -> None:
    check_same([*base[family], *FINETUNED, *FINETUNERS[method]], tmp_path)


def test_a_precision_that_the_trainer_refuses(base: dict[str, list[str]], tmp_path: Path) -> None:
    """It takes bfloat16 on the accelerators that it knows."""

    def run() -> None:
        config = composed(
            [
                *base["llama"],
                *FINETUNED,
                *FINETUNERS["full"],
                "finetune.precision=bfloat16",
                "device=npy",
                "cache_mode=off",
            ]
        )
        with pytest.raises(UserError, match=r"can't train so on npy.*use finetune\.precision=float32"):
            pipeline.run(config, tmp_path)

    in_child(run)


def test_auto_is_the_accelerator() -> None:
    from ecoflap.models.loading.device import resolve_device

    assert in_child(lambda: [str(resolve_device(name)) for name in ("auto", "npy", "npy:0", "cpu")]) == [
        "npy",
        "npy",
        "npy:0",
        "cpu",
    ]


def test_a_module_of_ones_own_gets_its_buffers_on_the_device(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    saved, other = make(), make()
    saved[1].running_mean.normal_()
    save_file(saved.state_dict(), tmp_path / "model.safetensors")

    def load() -> dict[str, list[float]]:
        loaded = ecoflap.load_pruned(tmp_path, other, device="npy").state_dict()
        assert {tensor.device.type for tensor in loaded.values()} == {"npy"}
        return {name: tensor.cpu().tolist() for name, tensor in loaded.items()}

    assert in_child(load) == {name: tensor.tolist() for name, tensor in saved.state_dict().items()}


def _mask_on_cpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        MaskedParameter, "__init__", lambda self, mask, made=MaskedParameter.__init__: made(self, mask.cpu())
    )


def _statistics_on_cpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        MeanSquare,
        "__init__",
        lambda self, cols, device, made=MeanSquare.__init__: made(self, cols, torch.device("cpu")),
    )


def _inputs_on_cpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PrunableModel, "device", torch.device("cpu"))


def _noise_on_cpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(derivative, "gaussian", lambda *args, device, drawn=derivative.gaussian: drawn(*args))


def _blocks_on_cpu(patch: pytest.MonkeyPatch) -> None:
    def make(
        self: Any,
        module: Any,
        blocks: Any,
        source: Any,
        device: Any,
        folder: Path,
        reads_ahead: bool,
        made: Any = Offloaded.__init__,
    ) -> None:
        made(self, module, blocks, source, torch.device("cpu"), folder, reads_ahead)

    patch.setattr(Offloaded, "__init__", make)


@pytest.mark.parametrize(
    ("plant", "options"),
    [
        (_blocks_on_cpu, ["score=none", "runtime.offload=cpu"]),
        (_mask_on_cpu, [*FINETUNED, *FINETUNERS["reconstruct"]]),
        (_statistics_on_cpu, ["score=none"]),
        (_inputs_on_cpu, ["score=none"]),
        (_noise_on_cpu, SCORES["derivative"]),
    ],
)
def test_what_stays_on_the_cpu_is_found(
    base: dict[str, list[str]], tmp_path: Path, plant: Any, options: list[str]
) -> None:
    def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            plant(patch)
            with pytest.raises(DeviceMixError, match="on the CPU"):
                pipeline.run(composed([*base["llama"], *options, "device=npy", "cache_mode=off"]), tmp_path)

    in_child(run)
