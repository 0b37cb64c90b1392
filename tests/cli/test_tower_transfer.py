"""Table 1: towers that one BLIP-2 was pruned in are measured in the models that write and find captions, and
one table holds it all.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf

from ecoflap.data.vqa.reading import OKVQA, VQAV2
from ecoflap.errors import UserError
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.blip.positions import resized_positions
from ecoflap.models.families.blip2.generation import Blip2
from ecoflap.models.families.blip2.matching import Blip2Itm
from ecoflap.run.config import package_file
from ecoflap.storage.results import Result
from ecoflap.storage.saved_model import open_checkpoint
from ecoflap.sweeps.report.blip2_table import COLUMNS, macro_average, main
from tests import tiny
from tests.cli.conftest import composed
from tests.cli.test_experiments import jobs_of
from tests.data import caption_folders
from tests.data.vqa_folders import KINDS, write_coco_questions, write_gqa

MINI = package_file("mini/blip2")
POSITIONS = "vision_model.embeddings.position_embedding"
CPU = torch.device("cpu")
needs_captions = pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None, reason="pip install -e '.[captions]'"
)


def save_larger(folder: Path) -> Path:
    """The embedded BLIP-2 for pictures of 96 pixels, with random weights: as if it had been fine-tuned."""
    config = hf.Blip2Config.from_pretrained(MINI)
    config.vision_config.image_size = 96
    config.vision_config.initializer_range = 0.05
    processor = hf.Blip2Processor.from_pretrained(MINI)
    processor.image_processor.size = {"height": 96, "width": 96}
    torch.manual_seed(1)
    hf.Blip2ForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_retriever(folder: Path) -> Path:
    """A random BLIP-2 that finds, with the embedded one's image tower for pictures of 96 pixels."""
    vision = hf.Blip2Config.from_pretrained(MINI).vision_config.to_dict() | {
        "image_size": 96,
        "initializer_range": 0.05,
    }
    processor = hf.Blip2Processor.from_pretrained(MINI)
    processor.image_processor.size = {"height": 96, "width": 96}
    processor.num_query_tokens = 0
    qformer = {
        **tiny.QFORMER,
        "vocab_size": len(processor.tokenizer) + 1,
        "encoder_hidden_size": vision["hidden_size"],
    }
    sizes = {
        "num_query_tokens": 3,
        "image_text_hidden_size": 8,
        "text_config": hf.OPTConfig(**tiny.OPT).to_dict(),
    }
    config = hf.Blip2Config(
        vision_config=vision,
        qformer_config={**qformer, "max_position_embeddings": 64, "use_qformer_text_input": True},
        **sizes,
    )
    torch.manual_seed(2)
    hf.Blip2ForImageTextRetrieval(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_both_towers_are_taken_over(tmp_path: Path) -> None:
    larger = save_larger(tmp_path / "larger")
    model = Blip2(str(larger), vision_from=MINI, language_from=MINI).load(CPU, Selection())
    own, dense = model.module.state_dict(), Blip2(str(larger)).load(CPU, Selection()).module.state_dict()
    with open_checkpoint(Path(MINI)) as checkpoint:
        taken = {name: checkpoint.tensor(name).float() for name in checkpoint.names()}
    taken[POSITIONS] = resized_positions(taken[POSITIONS], own[POSITIONS].shape[1])
    for name, tensor in own.items():
        expected = taken.get(name) if name.startswith(("vision_model.", "language_model.")) else dense[name]
        assert expected is None or torch.equal(tensor, expected), name
    assert own[POSITIONS].shape == dense[POSITIONS].shape


def test_language_alone(tmp_path: Path) -> None:
    larger = save_larger(tmp_path / "larger")
    own = Blip2(str(larger), language_from=MINI).load(CPU, Selection()).module.state_dict()
    dense = Blip2(str(larger)).load(CPU, Selection()).module.state_dict()
    changed = {name.split(".")[0] for name, tensor in own.items() if not torch.equal(tensor, dense[name])}
    assert changed == {"language_model"}


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError,
        match=(
            r"model\.vision_from=.*empty: no model\.safetensors.*give the checkpoint folder of a run with"
            r" model\.save=true"
        ),
    ):
        Blip2(MINI, vision_from=str(tmp_path / "empty")).load(CPU, Selection())
    with pytest.raises(UserError, match=r"model\.language_from=\./nowhere: there is no such folder"):
        Blip2(MINI, language_from="./nowhere").load(CPU, Selection())
    retriever = save_retriever(tmp_path / "retriever")
    with pytest.raises(
        UserError,
        match=(
            r"model\.language_from=.*retriever has no 'language_model\..*give the checkpoint folder of a"
            r" BLIP-2 run"
        ),
    ):
        Blip2(MINI, language_from=str(retriever)).load(CPU, Selection())
    shutil.copytree(MINI, tmp_path / "other")
    config = hf.Blip2Config.from_pretrained(MINI)
    config.vision_config.intermediate_size += 8
    hf.Blip2ForConditionalGeneration(config).save_pretrained(tmp_path / "other")
    with pytest.raises(
        UserError, match=r"model\.vision_from=.*other: vision_model\..* is \[.*\] there and \[.*\] here"
    ):
        Blip2Itm(str(retriever), vision_from=str(tmp_path / "other")).load(CPU, Selection())


@needs_captions
def test_table_1(run: Callable[..., Result], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pruning run, its towers in a captioner and a retriever, the dense model in both, and the table."""
    for name in ("vqa", "cc3m", "nocaps", "flickr30k"):
        (tmp_path / name).mkdir()
    write_coco_questions(tmp_path / "vqa", VQAV2, "val")
    write_coco_questions(tmp_path / "vqa", OKVQA, "val", KINDS)
    write_gqa(tmp_path / "vqa")
    for name in ("cc3m", "nocaps"):
        getattr(caption_folders, name)(tmp_path / name)
    caption_folders.karpathy(tmp_path / "flickr30k", "flickr30k")
    shared = ["tracking=none", "device=cpu", f"cache={tmp_path / 'cache'}"]
    pruning = [
        "+experiment=blip2/wanda",
        "model=blip2_mini",
        "model.save=true",
        f"task.path={tmp_path / 'vqa'}",
        "task.limit=3",
    ]
    run(
        [
            *pruning,
            "task.tasks.okvqa.lemmatize=false",
            f"calibration.path={tmp_path / 'cc3m'}",
            "calibration.samples=8",
            *shared,
        ],
        "wanda",
    )

    larger, retriever = save_larger(tmp_path / "larger"), save_retriever(tmp_path / "retriever")
    nocaps = [
        "+experiment=blip2/nocaps",
        f"model.path={larger}",
        "model.dtype=float32",
        f"task.path={tmp_path / 'nocaps'}",
        "task.limit=4",
        *shared,
    ]
    flickr = [
        "+experiment=blip2/flickr30k",
        f"model.path={retriever}",
        "model.dtype=float32",
        f"task.path={tmp_path / 'flickr30k'}",
        *shared,
    ]
    flickr += ["task.limit=6", "task.k_test=3"]
    taken = f"model.vision_from={tmp_path / 'wanda' / 'checkpoint'}"
    captions = run([*nocaps, taken], "nocaps_wanda")
    found = run([*flickr, taken], "flickr_wanda")
    assert captions.sparsity["prunable"] == pytest.approx(0.5, abs=2e-3)
    assert found.sparsity["towers"]["vision"] == pytest.approx(0.5, abs=2e-3)
    assert run(nocaps, "nocaps_dense").sparsity["prunable"] == 0
    run(flickr, "flickr_dense")

    capsys.readouterr()
    assert main([str(tmp_path)]) == 0
    head, _, dense, pruned = capsys.readouterr().out.strip().splitlines()
    assert head.split(" | ")[1:-1] == list(COLUMNS)
    assert dense.startswith("| dense | ")
    assert pruned.startswith("| wanda/none/s0.5/seed0 | ")
    measured = [
        cell for column, cell in zip(COLUMNS, pruned.split(" | ")[1:], strict=False) if column != "SPICE"
    ]
    assert all(cell.strip() for cell in measured), "every column but the one that wants Java"


def test_the_macro_average_is_the_papers() -> None:
    """The formula gives every row of Table 1."""
    rows = {
        62.1: (63.1, 41.1, 44.1, 121.7, 15.8, 97.6, 89.7),
        55.4: (56.9, 35.3, 41.7, 96.8, 13.5, 93.0, 82.4),
        57.4: (57.4, 36.1, 40.8, 108.1, 14.1, 96.4, 86.3),
        57.2: (57.9, 35.3, 42.2, 106.9, 14.1, 95.1, 84.6),
        58.2: (59.4, 36.3, 42.3, 109.9, 14.2, 95.9, 86.2),
        58.0: (58.4, 35.6, 42.9, 110.2, 14.3, 95.5, 85.8),
        0.0: (0.0, 0.0, 0.0, 0.0, 0.0, 0.2, 0.1),
    }
    for average, row in rows.items():
        assert macro_average(dict(zip(COLUMNS, row, strict=True))) == pytest.approx(average, abs=0.0501)
    assert macro_average({"VQAv2": 50.0}) is None


def test_an_empty_folder_has_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no table: there is no run of task=blip2_vqa" in capsys.readouterr().err


def test_the_carrying_sweeps_take_the_jobs_of_table_1_in_order() -> None:
    pruning = jobs_of("blip2_table1")
    expected = [
        "null",
        *(f"outputs/sweeps/blip2_table1/{number}/checkpoint" for number in range(len(pruning))),
    ]
    for task in ("nocaps", "flickr30k"):
        jobs = jobs_of(f"blip2_table1_{task}")
        assert [job[0].removeprefix("model.vision_from=") for job in jobs] == expected
        config = composed([f"+sweep=blip2_table1_{task}", "task.path=FOLDER", *jobs[-1]])
        assert (config.task.name, config.task.path, config.steps) == (task, "FOLDER", ["evaluate"])
        assert config.model.vision_from == expected[-1]
        assert config.model.get("language_from", expected[-1]) == expected[-1]
    for job in pruning:
        config = composed([*job, "+calibration.path=PICTURES", "+task.path=QUESTIONS"])
        assert (config.model.save, config.calibration.path, config.task.tasks.okvqa.path) == (
            True,
            "PICTURES",
            "QUESTIONS",
        )
