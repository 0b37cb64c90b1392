"""Every experiment and every sweep of the paper, with a mini model and small folders in the data sets'
published layouts under it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from ecoflap.data.classification.clip_sets import SETS
from ecoflap.data.vqa.reading import OKVQA, VQAV2
from ecoflap.models.core.towers import Selection
from ecoflap.run.instantiate import build
from ecoflap.run.plan.automatic import settle
from ecoflap.storage.results import Result
from ecoflap.storage.results.verification import verify
from tests.cli.conftest import ROOT, WORDS, composed, composed_as_given
from tests.data import caption_folders, picture_sets
from tests.data.vqa_folders import KINDS, write_coco_questions, write_gqa, write_test_questions

EXPERIMENTS = sorted(
    str(file.relative_to(ROOT / "conf/experiment").with_suffix(""))
    for file in (ROOT / "conf/experiment").rglob("*.yaml")
)
# Every run takes these; the others are variants.
ONE_OF_EACH_SYSTEM = (
    "blip2/ecoflap_zeroth",
    "blip2/iterative_global_gradient",
    "blip/coco/ecoflap_finetune",
    "blip/vqa/ecoflap",
    "clip/ecoflap_wanda",
    "eva_clip/ecoflap",
    "flan_t5/ecoflap",
    "llama/ecoflap_zeroth",
)
# Those of this project's own tables run for minutes; Optuna's has no list of jobs.
SWEEPS = sorted(
    file.stem
    for file in (ROOT / "sweeps").glob("*.yaml")
    if not file.stem.startswith(("readme_", "finetune_", "coarse_", "search"))
)
# These carry towers that another experiment pruned into another model: tests/cli/test_tower_transfer.py runs
# them.
CARRIED = ["blip2/flickr30k", "blip2/nocaps"]
# BLIP-NLVR is LAVIS' own model: tests/lavis/test_nlvr_experiments.py runs these.
RUN_HERE = [name for name in EXPERIMENTS if "nlvr2" not in name and name not in CARRIED]
SWEEPS_HERE = [
    name
    for name in SWEEPS
    if name not in ("blip_table_nlvr2", "blip2_table1_nocaps", "blip2_table1_flickr30k")
]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder per data set."""
    root = tmp_path_factory.mktemp("data")
    for name in ("vqa", "coco", "flickr30k", "cc3m"):
        (root / name).mkdir()
    for split in ("train", "val"):
        write_coco_questions(root / "vqa", VQAV2, split)
    write_coco_questions(root / "vqa", OKVQA, "val", KINDS)
    write_test_questions(root / "vqa", VQAV2)
    write_gqa(root / "vqa")
    caption_folders.karpathy(root / "coco")
    caption_folders.karpathy(root / "flickr30k", "flickr30k")
    caption_folders.cc3m(root / "cc3m")
    for name in picture_sets.COOP:
        picture_sets.write_set(root, name)
    documents = [
        " ".join(itertools.islice(itertools.cycle(WORDS[start:] + WORDS[:start]), 60)) for start in range(12)
    ]
    for name, texts in (("train", documents), ("test", documents[::-1])):  # the same file would be refused
        (root / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return root


# What is put under the experiments of each folder: a model that runs here, its data, and short everything.
SHORT = ["calibration.samples=8", "tracking=none", "device=cpu"]


def under(experiment: str, data: Path, llama: Path) -> list[str]:
    """Overrides that let an experiment run here in seconds."""
    family = experiment.split("/")[0]
    if family == "blip2":
        vqa = [f"task.path={data / 'vqa'}", "task.limit=3", "task.tasks.okvqa.lemmatize=false"]
        return [
            "model=blip2_mini",
            *vqa,
            *([] if "global_magnitude" in experiment else [f"calibration.path={data / 'cc3m'}"]),
        ]
    if family == "blip":
        return _blip(experiment, data)
    if family == "flan_t5":
        return ["model=t5_mini", "calibration=quiz", "task=quiz", "task.limit=2"]
    if family == "llama":
        text = [
            f"model.path={llama}",
            "model=causal_lm",
            f"calibration.path={data / 'train.jsonl'}",
            f"task.path={data / 'test.jsonl'}",
        ]
        return [*text, "calibration.sequence_length=16", "task.sequence_length=16", "task.limit=4"]
    names = [
        f"{group}.{option}"
        for group in ("task", "calibration")
        for option in (f"classes={data}/imagenet/classnames.txt", "templates=null")
    ]
    pictures = [f"task.path={data}", f"calibration.path={data}", "task.limit=12", "model=clip_mini"]
    return [*pictures, *names] if family == "eva_clip" else pictures


def _blip(experiment: str, data: Path) -> list[str]:
    task = experiment.split("/")[1]
    folder, model = {
        "coco": ("coco", "blip_caption_mini"),
        "flickr": ("flickr30k", "blip_retrieval_mini"),
        "vqa": ("vqa", "blip_vqa_mini"),
    }[task]
    return [
        f"model={model}",
        f"task.path={data / folder}",
        f"calibration.path={data / folder}",
        "task.limit=8",
    ]


def shortened(overrides: list[str]) -> list[str]:
    """Fewer samples in the coarse stage, which an experiment without one has no option for."""
    config = composed(overrides)
    has = [
        f"{group}.samples=4"
        for group in ("score", "pruner")
        if OmegaConf.is_dict(config[group]) and config[group].get("samples")
    ]
    trained = ["finetune.steps=2", "finetune.batch_size=2"] if "finetune" in config.steps else []
    return [*overrides, *has, *trained]


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name not in CARRIED])
@pytest.mark.every_run(*ONE_OF_EACH_SYSTEM)
def test_an_experiment_composes_as_published(experiment: str) -> None:
    config = composed([f"+experiment={experiment}"])
    assert config.sparsity in (0.4, 0.5, 0.6)
    if "global" not in experiment:  # a pruner of the whole model takes no allocation
        assert (config.allocation.granularity, config.allocation.cap) == ("block", None)
        averaged = experiment.startswith("flan_t5/ecoflap")
        assert config.allocation.aggregate == ("average" if averaged else "sum")
    if config.score.name == "zeroth_order":
        assert (config.score.samples, config.score.noises, config.score.eps) == (32, 1, 1e-3)
        assert config.score.batch_size == (16 if experiment.startswith("clip/") else 8)
    if config.score.name == "first_order" and config.pruner.name in ("wanda", "sparsegpt"):
        assert (config.score.samples, config.score.batch_size) == (128, 1)
        assert config.score.measure == (
            "gradient" if "llama" in experiment or "gradient" in experiment else "weight_gradient"
        )
    if config.score.name in ("zeroth_order", "first_order", "local") or config.pruner.name in (
        "wanda",
        "sparsegpt",
    ):
        assert config.calibration.samples == 128
    if config.pruner.name == "sparsegpt":
        assert (config.pruner.damping, config.pruner.block) == (0.01, 128)
    if experiment.startswith("llama"):
        assert config.calibration.sequence_length == config.task.sequence_length == 2048
    if experiment.startswith("flan_t5"):
        assert config.task.shots == 5
    if experiment.startswith("blip/vqa"):
        assert (config.task.split, config.task.answer_list, config.task.k_test) == (
            "test-dev",
            "answer_list.json",
            128,
        )
    if "finetune" in experiment:
        tasks = {
            "coco": (5, 1e-5, 32),
            "flickr": (12, 1e-5, 32),
            "nlvr2": (15, 3e-6, 16),
            "vqa": (10, 2e-5, 24),
        }
        published = tasks[experiment.split("/")[1]]
        assert (
            config.finetune.epochs,
            config.finetune.learning_rate,
            config.finetune.batch_size,
        ) == published
        assert config.finetune.weight_decay == 0.05
    first = (ROOT / "conf/experiment" / f"{experiment}.yaml").read_text()
    assert f"# ecoflap run +experiment={experiment}" in first


REPLACED = [
    "score=none",
    "allocation=file",
    "allocation.path=FILE",
    "pruner=magnitude",
    "task=easy_vqa",
    "calibration=easy_vqa",
]


@pytest.fixture(scope="module")
def options_alone() -> DictConfig:
    return composed(REPLACED)


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name not in CARRIED])
@pytest.mark.every_run(*ONE_OF_EACH_SYSTEM)
def test_no_option_is_left_of_a_choice_that_is_replaced(experiment: str, options_alone: DictConfig) -> None:
    """Those that an experiment alone sets, and the command line can leave out, are named when they are in the
    way.
    """
    config = composed([f"+experiment={experiment}", *REPLACED])
    known = {
        "allocation": {"aggregate"} if "flan_t5" in experiment else set(),
        "score": {"measure", "batch_size"},
        "pruner": {"scope", "iterations", "samples", "batch_size"},
    }
    for group in ("score", "allocation", "pruner", "task", "calibration"):
        assert set(config[group]) - set(options_alone[group]) <= known.get(group, set()), group


@pytest.mark.parametrize("experiment", RUN_HERE)
@pytest.mark.every_run(*ONE_OF_EACH_SYSTEM)
def test_an_experiment_runs(
    run: Callable[..., Result], data: Path, tiny_llama: Path, tmp_path: Path, experiment: str
) -> None:
    overrides = [f"+experiment={experiment}", *under(experiment, data, tiny_llama)]
    overrides += [
        override for override in SHORT if "samples" not in override or "global_magnitude" not in experiment
    ]
    result = run([*shortened(overrides), f"cache={tmp_path / 'cache'}"])
    config = composed([f"+experiment={experiment}"])
    assert result.sparsity["prunable"] == pytest.approx(config.sparsity, abs=2e-3)
    assert result.metrics["pruned"]
    blocks = {layer["sparsity"] for layer in result.sparsity["layers"].values()}
    if "ecoflap" in experiment or "local" in experiment:
        assert max(blocks) - min(blocks) > 0.01, "the coarse stage gave blocks different sparsities"
    if "finetune" in experiment:
        assert result.metrics.keys() == {"dense", "pruned", "finetuned"}
        assert verify(tmp_path / "run") == []


def jobs_of(sweep: str) -> list[list[str]]:
    """The overrides of every job of a sweep."""
    params = OmegaConf.to_container(OmegaConf.load(ROOT / "sweeps" / f"{sweep}.yaml").hydra.sweeper.params)
    assert isinstance(params, dict)
    return [
        list(job)
        for job in itertools.product(
            *([f"{key}={value}" for value in str(values).split(",")] for key, values in params.items())
        )
    ]


@pytest.mark.parametrize("sweep", [name for name in SWEEPS if not name.startswith("blip2_table1_")])
@pytest.mark.every_run("blip2_table1", "clip_table2", "llama_n_of_m", "ablation_scores")
def test_every_value_of_a_sweep_composes(sweep: str) -> None:
    """In as few jobs as have each value of each option at least once."""
    jobs = jobs_of(sweep)
    assert len(jobs) > 1
    left = {override for job in jobs for override in job}
    while left:
        job = max(jobs, key=lambda job: len(left.intersection(job)))
        composed(job)
        left -= set(job)


CASES = [file for file in sorted((ROOT / "sweeps/case").glob("*.yaml")) if "by ECoFLaP" in file.read_text()]


@pytest.mark.parametrize("case", [file.stem for file in CASES])
def test_a_case_that_names_ecoflap_uses_its_coarse_stage(case: str) -> None:
    config = settle(composed_as_given([f"+sweep/case={case}"]))
    assert (config.score.name, config.allocation.name) == ("zeroth_order", "water_filling")


def test_the_table_of_coarse_stages_has_all_of_them() -> None:
    files = {file.stem for file in (ROOT / "sweeps" / "coarse").glob("*.yaml")}
    values = {override for job in jobs_of("coarse_stages") for override in job}
    for_both = {"tamp", "tamp_auto"}  # they need a tower that reads text and pictures, which few models have
    assert {f"+sweep/coarse={name}" for name in files - for_both} <= values
    for name in files:
        config = composed([f"+sweep/coarse={name}"])
        assert name.split("_")[0] in f"{config.allocation.name} {config.score.name} uniform"


@pytest.mark.parametrize("name", ["reconstruct", "lora"])
def test_a_training_adds_its_step_to_any_run(name: str) -> None:
    config = composed([f"+sweep/training={name}", "+sweep/coarse=uniform", "pruner=admm", "sparsity=0.5"])
    assert config.steps == ["calibrate", "score", "allocate", "prune", "finetune", "evaluate"]
    assert (config.finetune.name, config.pruner.name, config.sparsity) == (name, "admm", 0.5)


@pytest.mark.parametrize("sweep", SWEEPS_HERE)
@pytest.mark.every_run("clip_table2", "llama_n_of_m")
def test_first_and_last_job_of_a_sweep_run(
    run: Callable[..., Result], data: Path, tiny_llama: Path, tmp_path: Path, sweep: str
) -> None:
    jobs = jobs_of(sweep)
    for number, job in enumerate((jobs[0], jobs[-1])):
        experiment = job[0].removeprefix("+experiment=")
        overrides = [*job, *under(experiment, data, tiny_llama)]
        overrides += [
            override
            for override in SHORT
            if "samples" not in override or "global_magnitude" not in experiment
        ]
        swept = {override.split("=")[0] for override in job}
        short = [
            override
            for override in shortened(overrides)
            if override.split("=")[0] not in swept or override in job
        ]
        mask = next((override for override in job if override.startswith("pruner.mask")), None)
        result = run([*short, f"cache={tmp_path / 'cache'}"], f"job{number}")
        assert result.metrics["pruned"], mask


def test_the_sets_of_clips_table_are_coops() -> None:
    assert {job[1].removeprefix("+sweep/case=clip_") for job in jobs_of("clip_table2")} == set(SETS) - {
        "image_folder"
    }


def test_blips_checkpoints_are_the_papers() -> None:
    flickr, vqa = (
        composed(["+experiment=blip/flickr/ecoflap"]).model,
        composed(["+experiment=blip/vqa/ecoflap"]),
    )
    assert (flickr.path, flickr.loss) == ("Salesforce/blip-itm-base-flickr", "match_and_contrastive")
    assert (vqa.model.path, vqa.model.image_size) == ("Salesforce/blip-vqa-capfilt-large", 480)
    assert (vqa.task.split, vqa.task.answer_list, vqa.task.k_test) == ("test-dev", "answer_list.json", 128)


def test_retrieval_is_calibrated_with_and_without_pictures(data: Path) -> None:
    """The original's flickr run never showed the text tower a caption alone."""
    config = composed(
        ["+experiment=blip/flickr/wanda", *_blip("blip/flickr/wanda", data), "calibration.samples=4"]
    )
    model = build("model", config.model).load(torch.device("cpu"), Selection())
    calibration, passes = build("calibration", config.calibration).load(model, 0), []
    model.module.text_encoder.register_forward_pre_hook(
        lambda _, args, inputs: passes.append(
            "pictures" if inputs.get("encoder_hidden_states") is not None else "alone"
        ),
        with_kwargs=True,
    )
    model.loss(calibration.batches(4)[0])
    assert passes == ["alone", "pictures", "pictures"]


def test_more_noises_take_fewer_samples() -> None:
    scores = [composed(job).score for job in jobs_of("ablation_noises")]
    assert [(score.noises, score.samples) for score in scores] == [(1, 32), (2, 16), (4, 8), (8, 4)]


def test_table_1_is_lemmatised_and_its_questions_share_a_folder_and_a_limit() -> None:
    tasks = composed(
        [
            "+experiment=blip2/wanda",
            "task.path=DATA",
            "task.limit=3",
            "task.batch_size=2",
            "task.tasks.gqa.path=GQA",
        ]
    ).task.tasks
    assert {name: (task.path, task.limit, task.batch_size) for name, task in tasks.items()} == {
        "vqav2": ("DATA", 3, 2),
        "okvqa": ("DATA", 3, 2),
        "gqa": ("GQA", 3, 2),
    }
    assert tasks.okvqa.lemmatize


def test_blips_table_has_four_columns() -> None:
    ran = {job[0].split("/")[1] for sweep in ("blip_table", "blip_table_nlvr2") for job in jobs_of(sweep)}
    assert ran == {"vqa", "flickr", "nlvr2", "coco"}
