"""Options that fit no model, no file with an allocation, or no step of the run."""

from __future__ import annotations

from tests.refusals.case import DENSE, LLAMA, ONLY, Case
from tests.refusals.folders import allocation, language_models

MODELS: list[Case] = [
    Case((*LLAMA, *ONLY, "calibration=easy_vqa", "towers=[vision]"), ("vision", "language"), language_models),
    Case(("skip_layers=[layer.99]",), ("layer.99", "matches none")),
    Case(("model=causal_lm", "model.path={tmp}/nowhere", *ONLY, "calibration=easy_vqa"), ("no such folder",)),
    Case(
        ("model=blip_vqa_mini", *DENSE, "task.max_new_tokens=9999"),
        ("task.max_new_tokens=9999", "positions for"),
    ),
]

FILE = (
    *LLAMA,
    "allocation=file",
    "allocation.path={tmp}/allocation.json",
    "pruner=magnitude",
    "steps=[allocate,prune]",
    "sparsity=0.5",
)
LAYER = "model.layers.0.mlp.up_proj.weight"

ALLOCATIONS: list[Case] = [
    Case(FILE, ("allocation.path={tmp}/allocation.json", "no such file"), language_models),
    Case(
        (*FILE, "skip_layers=[q_proj]"),
        ("model.layers.0.self_attn.q_proj.weight", "not a layer to prune here", "skip_layers"),
        allocation(lambda value: None),
    ),
    Case(
        FILE,
        ("model.layers.2.mlp.up_proj.weight", "not a layer to prune here"),
        allocation(
            lambda value: [
                value[part].update({"model.layers.2.mlp.up_proj.weight": 8}) for part in ("keep", "sizes")
            ]
        ),
    ),
    Case(
        FILE,
        (f"has no entry for {LAYER}",),
        allocation(lambda value: [value[p].pop(LAYER) for p in ("keep", "sizes")]),
    ),
    Case(
        FILE,
        (f"{LAYER} keeps 256 of 511, but has 512",),
        allocation(lambda value: value["sizes"].update({LAYER: 511})),
    ),
    Case(
        ("allocation=file", "allocation.path={tmp}/allocation.json", "sparsity=0.5"),
        ("has no entry for", "made for other layers"),
        allocation(lambda value: None),
    ),
]
IDLE = ("calibration.samples=4", "model=blip2_mini")

UNUSED: list[Case] = [
    Case(
        (*IDLE, "steps=[calibrate,score]", "pruner.mask=2:4"),
        ("pruner.mask=2:4 changes nothing", "steps=[calibrate,score] has no allocate or prune"),
        warns=True,
    ),
    Case((*IDLE, "finetune.epochs=3"), ("finetune.epochs=3 changes nothing", "has no finetune"), warns=True),
    Case(
        (*IDLE, "steps=[calibrate,score]", "model.save=true"),
        ("model.save=true changes nothing", "steps=[calibrate,score] has no prune"),
        warns=True,
    ),
    Case((*IDLE, "finetune=lora"), ("finetune=lora changes nothing", "has no finetune"), warns=True),
    Case(
        (*IDLE, "steps=[calibrate,score,allocate,prune]", "task.limit=5"),
        ("task.limit=5 changes nothing", "has no evaluate"),
        warns=True,
    ),
    Case(
        (*IDLE, "score=none", "score.samples=8"),
        ("score.samples=8 changes nothing", "score=none"),
        warns=True,
    ),
    Case(
        (*IDLE, "pruner=magnitude", "score=none", "allocation=water_filling", "propagate=dense"),
        ("propagate=dense changes nothing: pruner=magnitude reads no inputs of layers",),
        warns=True,
    ),
    Case(
        (*IDLE, "pruner=global_magnitude", "batch_size=2"),
        ("batch_size=2 changes nothing: pruner=global_magnitude reads no inputs of layers",),
        warns=True,
    ),
    Case(
        (*IDLE, "pruner.swaps=5"),
        ("pruner.swaps=5 changes nothing: pruner.refine=none swaps no weights",),
        warns=True,
    ),
    Case(
        (*IDLE, "score=none", "allocation=water_filling", "allocation.cap=0.9"),
        ("allocation.cap=0.9 changes nothing: score=none gives all layers the same sparsity",),
        warns=True,
    ),
    Case(
        (*IDLE, "score=none", "allocation=water_filling", "allocation.granularity=layer"),
        ("allocation.granularity=layer changes nothing: score=none gives all layers the same sparsity",),
        warns=True,
    ),
    Case(
        (*IDLE, "allocation=owl", "allocation.samples=8"),
        ("allocation.samples=8 changes nothing: only allocation.spread=auto compares samples",),
        warns=True,
    ),
    Case(
        (*IDLE, "pruner=admm", "allocation=er", "pruner.trial_iterations=8"),
        ("pruner.trial_iterations=8 changes nothing: allocation=er prunes in no trials",),
        warns=True,
    ),
    Case(
        (*IDLE, "score=zeroth_order", "score.probe=derivative", "score.eps=0.01"),
        ("score.eps=0.01 changes nothing: score.probe=derivative probes nothing",),
        warns=True,
    ),
    Case(
        (*DENSE, "calibration.samples=9"),
        ("calibration.samples=9 changes nothing", "has no calibrate"),
        warns=True,
    ),
    Case(
        (*FILE, "score.samples=8"),
        ("score.samples=8", "allocation=file takes no scores"),
        allocation(lambda value: None),
        warns=True,
    ),
    Case(
        ("score=zeroth_order", "calibration.samples=32", "score.samples=128"),
        ("score.samples=128 is more than the 32 of calibration.samples",),
        warns=True,
    ),
    Case(
        (*IDLE, "pruner=global_gradient", "pruner.samples=8"),
        ("pruner.samples=8 is more than the 4 of calibration.samples: 4 are used",),
        warns=True,
    ),
    Case(
        (*IDLE, "allocation=in_context", "allocation.samples=8"),
        ("allocation.samples=8 is more than the 4 of calibration.samples: 4 are used",),
        warns=True,
    ),
    Case(
        (*IDLE, "allocation=evopress", "allocation.samples=[2,3,8]"),
        ("allocation.samples=[2,3,8] is more than the 4 of calibration.samples: 4 are used",),
        warns=True,
    ),
    Case(
        (*IDLE, "pruner=sparsegpt", "pruner.mask=2:4", "sparsity=0.5", "pruner.block=64"),
        ("pruner.block=64 changes nothing: pruner.mask=2:4 is chosen for each group of 4 columns",),
        warns=True,
    ),
]

CASES: list[Case] = [*MODELS, *ALLOCATIONS, *UNUSED]
