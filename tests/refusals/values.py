"""Values that are out of range, of the wrong type or no choice."""

from __future__ import annotations

from pathlib import Path

from tests.refusals.case import Case

TRAINED = ("steps=[calibrate,score,allocate,prune,finetune]",)


def taken(folder: Path) -> None:
    """A file where a folder is wanted."""
    (folder / "file").write_text("taken")


RUN: list[Case] = [
    Case(("sparsity=1.0",), ("sparsity=1.0", "[0, 1)", "such as 0.6")),
    Case(("sparsity=-0.1",), ("sparsity=-0.1", "[0, 1)")),
    Case(("sparsity=60",), ("sparsity=60", "[0, 1)")),
    Case(("sparsity=60%",), ("sparsity=60% is not a number", "sparsity=0.6")),
    Case(("sparsity=half",), ("sparsity=half is not a number", "sparsity=0.6")),
    Case(("sparsity=nan",), ("sparsity=nan", "[0, 1)")),
    Case(("sparsity=null",), ("sparsity=null", "a number", "sparsity=0.6")),
    Case(("sparsity=[0.5]",), ("sparsity=[0.5] is not a number", "sparsity=0.6")),
    Case(("seed=-1",), ("seed=-1", "[0, 2**32)", "seed=0")),
    Case((f"seed={2**70}",), (f"seed={2**70}", "[0, 2**32)", "seed=0")),
    Case((f"seed={2**32}",), (f"seed={2**32}", "[0, 2**32)")),
    Case(("seed=1.5",), ("seed=1.5 is not a whole number", "seed=0")),
    Case(("seed=abc",), ("seed=abc is not a whole number", "seed=0")),
    Case(("seed=true",), ("seed=true is not a whole number", "seed=0")),
    Case(("seed=null",), ("seed=null", "a whole number", "seed=0")),
    Case(("batch_size=0",), ("batch_size=0 must be at least 1",)),
    Case(("batch_size=-4",), ("batch_size=-4 must be at least 1",)),
    Case(("batch_size=big",), ("batch_size=big is not a whole number", "batch_size=16")),
    Case(("device=tpu9",), ("device=tpu9 is not a device; use auto, cpu, cuda or cuda:N",)),
    Case(("device=gpu",), ("device=gpu is not a device; did you mean cuda? use auto",)),
    Case(("device=cuad",), ("device=cuad is not a device; did you mean cuda? use auto",)),
    Case(("device=",), ("device= is not a device; use auto, cpu",)),
    Case(("device=meta",), ("device=meta is not usable here", "device=cpu")),
    Case(("inspect=maybe",), ("inspect=maybe is not true or false", "inspect=false")),
    Case(("resume=perhaps",), ("resume=perhaps is not true or false", "resume=true")),
    Case(
        ("cache_mode=of",), ("cache_mode=of is not known", "did you mean off?", "use, refresh, readonly, off")
    ),
    Case(("cache_mode=sometimes",), ("cache_mode=sometimes is not known", "readonly")),
    Case(("cache=",), ("cache= is not a folder", "cache=outputs/cache")),
    Case(("cache={tmp}/file",), ("cache={tmp}/file is not a folder", "another place"), taken),
    Case(("propagate=sparse",), ("propagate=sparse is not known", "auto, pruned, layer, compensated, dense")),
    Case(
        ("propagate=compensated", "pruner=wanda"),
        (
            "propagate=compensated changes the weights that stay",
            "pruner=wanda leaves them",
            "pruner=admm",
            "pruner.repair=true",
        ),
    ),
    Case(("tokens=visual",), ("tokens=visual is not known", "all, text, answer, atv")),
    Case(("tokens=text", "pruner=global_magnitude"), ("tokens=text", "measures no inputs", "tokens=all")),
    Case(
        ("runtime.offload=dsk",),
        ("runtime.offload=dsk is not known", "did you mean disk?", "none, cpu, disk"),
    ),
    Case(("runtime.offload=gpu",), ("runtime.offload=gpu is not known; the choices are none, cpu, disk",)),
    Case(("towers=vision",), ("towers=vision is a single value", "'towers=[vision]'")),
    Case(("towers=[]",), ("towers=[] names none", "towers=null")),
    Case(("towers=[vision,vision]",), ("towers=[vision,vision] names one twice",)),
    Case(("towers=[vison]",), ("no tower 'vison'", "did you mean vision?")),
    Case(("skip_layers=lm_head",), ("skip_layers=lm_head is a single value", "'skip_layers=[lm_head]'")),
    Case(("skip_layers=[nothing_here]",), ("'nothing_here' matches none", "such as")),
    Case(("steps=prune",), ("steps=prune is a single value", "'steps=[prune]'")),
    Case(
        ("steps=[tune]",),
        ("no step 'tune'", "did you mean finetune?", "calibrate, score, allocate, prune, finetune, evaluate"),
    ),
    Case(("steps=[]",), ("steps=[]", "calibrate, score, allocate")),
    Case(("steps=[score,calibrate]",), ("steps=[score,calibrate]", "in this order")),
    Case(("steps=[prune,prune]",), ("steps=[prune,prune]", "each once")),
    Case(("steps=[prune]",), ("prune needs allocate", "allocation=file")),
    Case(
        ("allocation=water_filling", "score=zeroth_order", "steps=[calibrate,allocate]"),
        ("allocate needs score", "add it"),
    ),
    Case(("steps=[score]",), ("score needs calibrate", "add it")),
    Case(("steps=[calibrate,finetune]",), ("finetune needs prune", "add it")),
]
PARTS: list[Case] = [
    Case(
        (
            "score=zeroth_order",
            "score.samples=many",
        ),
        ("score.samples=many is not a whole number",),
    ),
    Case(
        (
            "score=zeroth_order",
            "score.samples=0",
        ),
        ("score.samples=0 must be at least 1",),
    ),
    Case(
        (
            "score=zeroth_order",
            "score.noises=0",
        ),
        ("score.noises=0 must be at least 1",),
    ),
    Case(
        (
            "score=zeroth_order",
            "score.batch_size=0",
        ),
        ("score.batch_size=0 must be at least 1",),
    ),
    Case(
        (
            "score=zeroth_order",
            "score.samples_per_pass=0",
        ),
        ("score.samples_per_pass=0 must be at least 1",),
    ),
    Case(
        (
            "score=zeroth_order",
            "score.eps=0",
        ),
        ("score.eps=0", "more than 0", "0.001"),
    ),
    Case(
        (
            "score=zeroth_order",
            "score.eps=inf",
        ),
        ("score.eps=inf", "finite", "0.001"),
    ),
    Case(
        (
            "score=zeroth_order",
            "score.eps=small",
        ),
        ("score.eps=small is not a number",),
    ),
    Case(
        (
            "score=zeroth_order",
            "score.probe=blocks",
        ),
        ("score.probe=blocks is not known", "did you mean block?"),
    ),
    Case(
        ("score=first_order", "score.measure=grad"),
        ("score.measure=grad is not known", "did you mean gradient"),
    ),
    Case(("score=local", "score.measure=wand"), ("score.measure=wand is not known", "did you mean wanda?")),
    Case(
        (
            "allocation=water_filling",
            "allocation.granularity=blocks",
        ),
        ("allocation.granularity=blocks", "layer, block, tower, model"),
    ),
    Case(
        (
            "allocation=water_filling",
            "allocation.scope=all",
        ),
        ("allocation.scope=all", "model, tower"),
    ),
    Case(
        (
            "allocation=water_filling",
            "allocation.aggregate=mean",
        ),
        ("allocation.aggregate=mean", "sum, average"),
    ),
    Case(
        (
            "allocation=water_filling",
            "allocation.cap=0.5",
        ),
        ("allocation.cap=0.5 with sparsity=0.6", "between sparsity and 1"),
    ),
    Case(
        (
            "allocation=water_filling",
            "allocation.cap=2",
        ),
        ("allocation.cap=2", "between sparsity and 1"),
    ),
    Case(
        (
            "allocation=water_filling",
            "allocation.cap=x",
        ),
        ("allocation.cap=x is not a number",),
    ),
    Case(("allocation=owl", "allocation.spread=much"), ("allocation.spread=much", "number nor auto")),
    Case(("allocation=owl", "allocation.spread=-1"), ("allocation.spread=-1", "at least 0", "auto")),
    Case(("allocation=neuronal", "allocation.spreads=[a]"), ("allocation.spreads[0]=a is not a number",)),
    Case(
        ("allocation=neuronal", "allocation.spreads=[[0.1]]"), ("allocation.spreads=[[0.1]]", "0.01 to 0.25")
    ),
    Case(
        ("allocation=evopress", "allocation.survivors=[a]"),
        ("allocation.survivors[0]=a is not a whole number",),
    ),
    Case(("allocation=in_context", "steps=[allocate]"), ("allocation=in_context looks at data", "calibrate")),
    Case(("allocation=in_context", "allocation.band=2"), ("allocation.band=2", "(0, 1)")),
    Case(
        ("allocation=in_context", "allocation.granularity=row", "pruner=sparsegpt"),
        ("pruner.mask=matrix", "pruner.mask=row", "allocation.granularity=layer"),
    ),
    Case(
        ("allocation=in_context", "allocation.rows=weighted", "pruner=sparsegpt", "pruner.mask=n:4"),
        ("pruner.mask=n:4 can't weigh", "matrix (sparsegpt", "allocation.rows=even"),
    ),
    Case(
        ("allocation=in_context", "allocation.rows=weighted", "allocation.granularity=row"),
        ("allocation.granularity=row", "allocation.rows=weighted", "leave out one"),
    ),
    Case(("allocation=in_context", "sparsity=0.99"), ("0.98", "allocation=water_filling")),
    Case(("allocation=file",), ("allocation.path is required", "allocation.path=VALUE")),
    Case(("calibration.samples=0",), ("calibration.samples=0 must be at least 1",)),
    Case(("calibration.samples=-1",), ("calibration.samples=-1 must be at least 1",)),
    Case(("calibration.samples=few",), ("calibration.samples=few is not a whole number",)),
    Case(("task.limit=0",), ("task.limit=0 must be at least 1",)),
    Case(("task.batch_size=0",), ("task.batch_size=0 must be at least 1",)),
    Case(("task.beams=0",), ("task.beams=0 must be at least 1",)),
    Case(("task.max_new_tokens=0",), ("task.max_new_tokens=0 must be at least 1",)),
    Case(("task.length_penalty=x",), ("task.length_penalty=x is not a number",)),
    Case(("pruner.mask=diagonal",), ("pruner.mask=diagonal is not known", "row, matrix, or N:M")),
    Case(("pruner.mask=4:2",), ("pruner.mask=4:2 is not known", "2:4")),
    Case(("pruner.mask=0:4",), ("pruner.mask=0:4 is not known", "2:4")),
    Case(("pruner.mask=",), ("pruner.mask= is not known", "row, matrix, or N:M")),
    Case(("pruner.mask=null",), ("pruner.mask=null", "a single text")),
    Case(("pruner.mask=[row]",), ("pruner.mask=[row] is not a single text",)),
    Case(("pruner.mask=2:4",), ("pruner.mask=2:4 removes 0.5", "set sparsity=0.5")),
    Case(
        ("pruner.mask=3:5", "sparsity=0.4", "score=none"),
        ("pruner.mask=3:5", "32 columns, which 5 does not divide", "skip_layers"),
    ),
    Case(("pruner=sparsegpt", "pruner.mask=row"), ("pruner.mask=row is not known", "matrix")),
    Case(("pruner=sparsegpt", "pruner.block=0"), ("pruner.block=0",)),
    Case(("pruner.mask=n:4", "sparsity=0.8"), ("pruner.mask=n:4 keeps at least one", "sparsity=0.75")),
    Case(("pruner.mask=n:5", "score=none"), ("pruner.mask=n:5", "columns", "skip_layers")),
    Case(("pruner.refine=swap",), ("pruner.refine=swap is not known", "did you mean swaps?")),
    Case(("pruner.swaps=0",), ("pruner.swaps=0 must be at least 1",)),
    Case(("pruner.repair=maybe",), ("pruner.repair=maybe is not true or false",)),
    Case(("pruner=ria", "pruner.power=-1"), ("pruner.power=-1", "at least 0", "0.5")),
    Case(("pruner=ria", "pruner.power=nan"), ("pruner.power=nan", "at least 0", "0.5")),
    Case(("pruner=ria", "pruner.power=x"), ("pruner.power=x is not a number",)),
    Case(("pruner=admm", "pruner.penalty=0"), ("pruner.penalty=0", "penalty above 0")),
    Case(("pruner=admm", "pruner.penalty=nan"), ("pruner.penalty=nan", "penalty above 0")),
    Case(("pruner=admm", "pruner.damping=inf"), ("pruner.damping=inf", "damping is at least 0")),
    Case(("pruner=admm", "pruner.relaxation=2"), ("pruner.relaxation=2", "below 2")),
    Case(("pruner=admm", "pruner.schedule=30"), ("pruner.schedule=30 with pruner.iterations=",)),
    Case(("pruner=admm", "pruner.trial_iterations=0"), ("pruner.trial_iterations=0",)),
    Case(("pruner=admm", "pruner.schedule=0"), ("pruner.schedule=0 must be at least 1",)),
    Case(("pruner=sparsegpt", "pruner.damping=-1"), ("pruner.damping=-1", "at least 0")),
    Case(("pruner=sparsegpt", "pruner.damping=nan"), ("pruner.damping=nan", "finite")),
    Case(
        ("pruner=global_magnitude", "score=none", "runtime.offload=cpu"),
        ("pruner=global_magnitude compares all weights at once", "runtime.offload=none"),
    ),
    Case(
        ("pruner=global_gradient", "score=none", "steps=[prune]"),
        ("looks at data, so prune needs calibrate", "add it"),
    ),
    Case(("pruner=upop", "pruner.steps=5"), ("pruner.interval=10 is more than pruner.steps=5",)),
    Case(("pruner=upop", "pruner.learning_rate=0"), ("pruner.learning_rate=0",)),
    Case(("pruner=upop", "score=none"), ("cuts whole attentions and MLPs", "choose another pruner")),
    Case(("pruner=reap", "pruner.batch_size=0"), ("pruner.batch_size=0 must be at least 1",)),
    Case(("pruner=reap",), ("has no experts that share parameters", "choose another pruner")),
    Case(("model.save=maybe",), ("model.save=maybe is not known", "dense, bitmask, coded, true, false")),
    Case(("model.save=bitmsk",), ("model.save=bitmsk is not known", "did you mean bitmask?")),
    Case(("model.save=[a]",), ("model.save=[a] is not true or false",)),
    Case(
        ("model.save=bitmask", "model.save_lavis=true"),
        ("model.save=bitmask", "LAVIS' format, which is dense", "model.save=dense"),
    ),
    Case(
        ("model.save=true", "model.save_lavis=true", "runtime.offload=disk"),
        ("runtime.offload=disk saves a block at a time", "which is one file; use runtime.offload=cpu"),
    ),
    Case(("model.path=[a]",), ("model.path=[a] is not a single text",)),
    Case(
        ("tracking=wandb", "tracking.mode=loud"),
        ("tracking.mode=loud is not known", "offline, online, disabled"),
    ),
    Case(("tracking=wandb", "tracking.tags=a"), ("tracking.tags=a is a single value", "'tracking.tags=[a]'")),
    Case((*TRAINED, "finetune=lora", "finetune.rank=0"), ("finetune.rank=0 must be at least 1",)),
    Case((*TRAINED, "finetune=lora", "finetune.alpha=0"), ("finetune.alpha=0 must be at least 1",)),
    Case((*TRAINED, "finetune.weight_decay=nan"), ("finetune.weight_decay=nan must be at least 0",)),
    Case(
        (*TRAINED, "finetune=reconstruct", "finetune.learning_rate=nan"),
        ("finetune.learning_rate=nan must be above 0",),
    ),
    Case(
        (*TRAINED, "finetune.samples=8", "finetune.held_out=8"),
        ("finetune.held_out=8 of finetune.samples=8 leaves nothing to train on",),
    ),
    Case(
        (*TRAINED, "finetune.precision=float16", "device=cpu"),
        ("finetune.precision=float16 needs an accelerator",),
    ),
    Case((*TRAINED, "finetune.epochs=0"), ("finetune.epochs=0", "above 0")),
    Case((*TRAINED, "finetune.learning_rate=-1"), ("finetune.learning_rate=-1", "above 0")),
    Case((*TRAINED, "finetune.clip=0"), ("finetune.clip=0", "above 0")),
    Case((*TRAINED, "finetune.warmup=2"), ("finetune.warmup=2", "[0, 1)")),
    Case((*TRAINED, "finetune.held_out=-1"), ("finetune.held_out=-1 must be at least 0",)),
    Case((*TRAINED, "finetune.workers=-1"), ("finetune.workers=-1 must be at least 0",)),
    Case((*TRAINED, "finetune.batch_size=0"), ("finetune.batch_size=0 must be at least 1",)),
    Case((*TRAINED, "finetune.accumulation=0"), ("finetune.accumulation=0 must be at least 1",)),
    Case((*TRAINED, "finetune.every=0"), ("finetune.every=0 must be at least 1",)),
    Case((*TRAINED, "finetune.patience=1"), ("finetune.patience=1 needs samples", "finetune.held_out")),
    Case(
        (*TRAINED, "finetune.data=trainin"), ("finetune.data=trainin is not known", "training, calibration")
    ),
    Case((*TRAINED, "finetune.precision=fp8"), ("finetune.precision=fp8 is not known", "bfloat16")),
    Case((*TRAINED, "finetune.loss=nothing"), ("finetune.loss=nothing is not known", "module.function")),
    Case((*TRAINED, "finetune=reconstruct", "finetune.epochs=0"), ("finetune.epochs=0 must be at least 1",)),
    Case(
        ("steps=[allocate,prune,finetune]", "score=none", "pruner=magnitude", "finetune=reconstruct"),
        ("finetune=reconstruct trains on the calibration samples", "add calibrate"),
    ),
    Case(
        ("steps=[allocate,prune,finetune]", "score=none", "pruner=magnitude", "finetune.data=calibration"),
        ("finetune=full trains on the calibration samples", "add calibrate"),
    ),
    Case((*TRAINED, "runtime.offload=cpu"), ("runtime.offload=cpu", "have to be in memory")),
]
CASES = [*RUN, *PARTS]
