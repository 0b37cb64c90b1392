"""lmms-eval on models in memory, with tasks of local files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import ecoflap
from ecoflap.data.example import Example, Generation
from ecoflap.data.image_in_memory import ImageInMemory
from ecoflap.errors import NumericalError, UserError
from ecoflap.evaluate import lmms_eval_tasks
from ecoflap.evaluate.harness_scores import reported, scores
from ecoflap.evaluate.lmms_eval_harness import LmmsEval, changes, dense_scores
from ecoflap.evaluate.lmms_eval_model import answers, cut, generation_of, loss_of, question
from ecoflap.evaluate.prediction_log import PredictionLog
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.vlm.vlm import VisionLanguage
from tests import tiny
from tests.api.conftest import llava, picture
from tests.distributed.together import together
from tests.evaluate.lmms_tasks import FILTERED, HARNESS, TASK, index_alone, write_tasks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tasks(tmp_path)


@pytest.fixture
def own_index(monkeypatch: pytest.MonkeyPatch) -> None:
    index_alone(monkeypatch)


@pytest.fixture(scope="module")
def model() -> PrunableModel:
    one = llava()
    return ecoflap.load(one.module, one.processor)


def written(model: PrunableModel, images: int, number: int) -> str:
    """What the model writes about a picture, shown so many times, through transformers alone."""
    processor, module = model.processor, model.module
    text = f"USER: {'<image>' * images}what shape is there ? ASSISTANT:"
    shown = [picture(number)] * images or None
    inputs = processor(images=shown, text=text, return_tensors="pt")
    tokens = module.generate(**inputs, max_new_tokens=3, do_sample=False)  # type: ignore[operator]
    return str(
        processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ).strip()


@HARNESS
@pytest.mark.usefixtures("own_index")
def test_pictures_that_are_cut_off_are_filled_in_its_tasks_alone(folder: Path, model: PrunableModel) -> None:
    """As in its own figures; importing it would let Pillow fill those of the calibration, too."""
    cut = folder / "pictures" / "0.png"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    shown = warnings.filters[:]
    evaluation = LmmsEval(["one"], include_path=str(folder)).load(model)
    assert evaluation(model)["one/samples"] == 5
    assert warnings.filters == shown
    with pytest.raises(UserError, match=r"read .*truncated.*; .*take it out"):
        ecoflap.calibrate(model, [{"image": str(cut), "caption": "a circle"}])


@HARNESS
def test_importing_the_harness_leaves_the_process_as_it_was() -> None:
    code = """if True:
        import warnings
        from PIL import ImageFile
        from ecoflap.evaluate.lmms_eval_tasks import import_harness
        import accelerate, datasets, torch  # other packages have filters of their own
        shown = warnings.filters[:]
        import_harness()
        assert not ImageFile.LOAD_TRUNCATED_IMAGES
        assert warnings.filters == shown
    """
    subprocess.run([sys.executable, "-c", code], check=True)


@HARNESS
@pytest.mark.usefixtures("own_index")
@pytest.mark.parametrize(("name", "images"), [("one", 1), ("two", 2), ("none", 0)])
def test_answers_are_those_of_the_model_in_memory(
    folder: Path, model: PrunableModel, name: str, images: int, tmp_path: Path
) -> None:
    evaluation = LmmsEval([name], include_path=str(folder), batch_size=2).load(model)
    log = PredictionLog(tmp_path / "log" / "lmms_eval_dense.jsonl", "key")
    found = evaluation(model, log)
    answers = [written(model, images, number) for number in range(5)]
    assert found == {
        f"{name}/length": pytest.approx(sum(map(len, answers)) / 5),
        f"{name}/samples": 5,
        f"{name}/length_stderr": pytest.approx(stdev(map(len, answers)) / 5**0.5),
    }
    assert log.items is not None
    assert log.items.metric == f"{name}/length"
    assert log.file is not None
    line = log.read()[0][0]
    assert [sample["filtered_resps"] for sample in line["samples"][name]] == [[one] for one in answers]
    assert line["scores"][name]["length"] == {str(i): len(one) for i, one in enumerate(answers)}


@HARNESS
@pytest.mark.usefixtures("own_index")
def test_each_filter_of_a_task_scores_every_example(folder: Path, model: PrunableModel) -> None:
    text = (folder / "one.yaml").read_text().replace("task: one", "task: filtered")
    (folder / "filtered.yaml").write_text(text + FILTERED)
    evaluation = LmmsEval(["filtered"], include_path=str(folder)).load(model)
    dense = PredictionLog(folder / "dense.jsonl", "dense")
    evaluation(model, dense)
    found = evaluation(model, log := PredictionLog(folder / "pruned.jsonl", "pruned", dense))
    answers = [written(model, 1, number) for number in range(5)]
    lengths = list(map(len, answers))
    assert all(lengths)
    assert found == {
        "filtered/length,strict": pytest.approx(sum(lengths) / 5),
        "filtered/length,letter": 1,
        "filtered/samples": 5,
        "filtered/length,strict_change": 0,
        "filtered/length,strict_change_error": 0,
        "filtered/length,letter_change": 0,
        "filtered/length,letter_change_error": 0,
        "filtered/length,strict_stderr": pytest.approx(stdev(lengths) / 5**0.5),
        "filtered/length,letter_stderr": 0,
    }
    assert log.items is not None
    assert (log.items.metric, len(log.items.scores)) == ("filtered/length,strict", 5)
    samples = log.read()[0][0]["samples"]["filtered"]
    assert [one["filter"] for one in samples] == ["strict"] * 5 + ["letter"] * 5
    assert [one["filtered_resps"] for one in samples] == [[one] for one in answers + [a[0] for a in answers]]


@HARNESS
@pytest.mark.usefixtures("own_index")
@pytest.mark.parametrize("names", [["one"], ["one", "choice"]])
def test_two_processes_find_what_one_finds(folder: Path, model: PrunableModel, names: list[str]) -> None:
    """Each takes whole tasks; lmms-eval would divide the pictures of a task among them, too."""
    evaluation = LmmsEval(names, include_path=str(folder)).load(model)
    whole = evaluation(model)
    assert together(2, lambda: evaluation(model)) == [whole, whole]


@HARNESS
@pytest.mark.usefixtures("own_index")
def test_choices_go_by_their_loss(folder: Path, model: PrunableModel) -> None:
    found = LmmsEval(["choice"], include_path=str(folder), limit=3).load(model)(model)
    right = []
    for number in range(3):
        rows = [question("what shape is there ?", [picture(number)], word) for word in ("circle", "triangle")]
        right.append(int(torch.tensor([loss_of(model, row) for row in rows]).argmin()) == number % 2)
    assert found == {
        "choice/acc": pytest.approx(sum(right) / 3),
        "choice/samples": 3,
        "choice/acc_stderr": pytest.approx(stdev(right) / 3**0.5),
    }


def test_the_loss_is_that_of_all_tokens_of_an_answer(model: PrunableModel) -> None:
    processor, module = model.processor, model.module
    text = "USER: <image>what shape is there ? ASSISTANT:"
    # This template writes ASSISTANT: behind every turn, so that ends an answer, too.
    inputs = processor(images=picture(0), text=f"{text} circle ASSISTANT:", return_tensors="pt")
    with torch.no_grad():
        logits = module(**inputs).logits[0, :-1].log_softmax(dim=-1)
    wanted = logits.gather(1, inputs["input_ids"][0, 1:, None])[-2:].mean()
    row = question("what shape is there ?", [picture(0)], " circle")
    assert loss_of(model, row) == pytest.approx(-float(wanted), rel=1e-5)
    brief = VisionLanguage("brief", brief=" is it red ?").from_module(module, processor, Selection())
    assert loss_of(brief, row) == loss_of(model, row), "tasks say themselves how to answer"
    torch.nn.init.constant_(model.layers[-1].weight, float("nan"))
    with pytest.raises(NumericalError, match="not finite"):
        loss_of(model, row)


@HARNESS
@pytest.mark.usefixtures("own_index")
def test_changes_are_paired_with_the_dense_model(folder: Path, tmp_path: Path) -> None:
    one = llava()
    model = ecoflap.load(one.module, one.processor)
    evaluation = LmmsEval(["one"], include_path=str(folder)).load(model)
    log = PredictionLog(tmp_path / "lmms_eval_dense.jsonl", "dense")
    dense = evaluation(model, log)
    with torch.no_grad():
        one.module.lm_head.weight.mul_(-1)
    pruned = evaluation(model, PredictionLog(tmp_path / "lmms_eval_pruned.jsonl", "pruned", log))
    change = pruned.pop("one/length_change")
    assert change == pytest.approx(pruned["one/length"] - dense["one/length"])
    assert change != 0
    assert pruned.pop("one/length_change_error") > 0
    assert list(pruned) == list(dense)


def test_changes() -> None:
    dense = {"pope": {"accuracy": {"0": 1.0, "1": 0.0, "2": 1.0}, "other": {"0": 1.0}}}
    pruned = {
        "pope": {"accuracy": {"0": 1.0, "1": 0.0, "2": 0.0}, "other": {"1": 1.0}},
        "new": {"a": {"0": 1.0}},
    }
    assert changes(dense, pruned) == {
        "pope/accuracy_change": pytest.approx(-1 / 3),
        "pope/accuracy_change_error": pytest.approx(1 / 3),
    }
    samples = [{"doc_id": i, "a": {"score": i}, "b": "x", "c": i / 2} for i in range(2)]
    metrics = {"a": 0.5, "b": 0.5, "c": 0.25, "d": 0.5}
    assert scores(samples, metrics) == {"a": {"0": 0.0, "1": 1.0}, "c": {"0": 0.0, "1": 0.5}}
    assert scores(samples, {"a": 0.6}) == {}, "F1, say"
    assert reported({"pope/a": 1.0, "other/b": 0.0}, "pope") == {"a": 1.0}
    assert dense_scores(None) == {}


def test_dense_scores_are_those_of_the_same_evaluation(tmp_path: Path) -> None:
    """A folder may hold the log of other options, or one whose last line was being written."""
    file = tmp_path / "lmms_eval_dense.jsonl"
    log, scores = PredictionLog(file, "dense"), [{"scores": {"pope": {"accuracy": {"0": 1.0}}}}]
    assert dense_scores(log) == {}
    log.run([["pope"]], lambda names: scores)
    assert dense_scores(log) == scores[0]["scores"]
    assert dense_scores(PredictionLog(file, "other options")) == {}
    file.write_text(file.read_text() + '[{"scores": {"chartqa": {"a')
    assert dense_scores(log) == scores[0]["scores"]


@HARNESS
@pytest.mark.usefixtures("own_index")
def test_identity_changes_with_what_the_numbers_depend_on(folder: Path, model: PrunableModel) -> None:
    identity = LmmsEval(["one"], include_path=str(folder)).load(model).identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity["higher_is_better"] == {"one/length": True}
    assert identity == LmmsEval(["one"], include_path=str(folder), batch_size=1).load(model).identity()
    assert identity != LmmsEval(["one"], include_path=str(folder), limit=3).load(model).identity()
    assert identity != LmmsEval(["two"], include_path=str(folder)).load(model).identity()


def test_pictures_that_differ_in_their_palette_only_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def fingerprint(palette: list[int]) -> str:
        image = Image.new("P", (4, 4))
        image.putpalette(palette)
        task = SimpleNamespace(
            VERSION=0,
            dump_config=dict,
            has_test_docs=lambda: True,
            test_docs=lambda: [{"image": image}],
            doc_to_text=lambda _: "what shape is there ?",
            doc_to_target=lambda _: "circle",
            doc_to_visual=lambda document: [document["image"]],
        )
        monkeypatch.setattr(lmms_eval_tasks, "members", lambda _: {"one": task})
        return lmms_eval_tasks.fingerprint({"one": {}}, None)

    assert fingerprint([255, 0, 0]) == fingerprint([255, 0, 0]) != fingerprint([0, 0, 255])


@HARNESS
@pytest.mark.usefixtures("own_index")
def test_refusals(folder: Path, model: PrunableModel) -> None:
    with pytest.raises(UserError, match=r"task\.harness_tasks: lmms-eval has no oner; did you mean one"):
        LmmsEval(["oner"], include_path=str(folder)).check_data("task")
    with pytest.raises(UserError, match="needs a model that describes, and llama reads only text"):
        LmmsEval(["one"], include_path=str(folder)).load(tiny.build("llama"))
    (folder / "log.yaml").write_text(
        TASK.format(name="log", folder=folder, kind="loglikelihood", show="one", metric="acc")
    )
    with pytest.raises(UserError, match="log is of the kind loglikelihood"):
        LmmsEval(["log"], include_path=str(folder)).check_data("task")
    choice = (folder / "choice.yaml").read_text().replace("task: choice", "task: greedy")
    (folder / "greedy.yaml").write_text(choice.replace("{metric: acc,", "{metric: exact_match,"))
    with pytest.raises(UserError, match="greedy asks for the exact_match of choices"):
        LmmsEval(["greedy"], include_path=str(folder)).check_data("task")
    (folder / "list.yaml").write_text("[model=vlm]")
    with pytest.raises(UserError, match=r"task\.include_path=.*: a YAML file there is not a task"):
        LmmsEval(["one"], include_path=str(folder)).check_data("task")
    (folder / "list.yaml").unlink()
    (folder / "one.yaml").write_text((folder / "one.yaml").read_text().replace("/pictures", "/nowhere"))
    with pytest.raises(UserError, match="one could not be read"):
        LmmsEval(["one"], include_path=str(folder)).check_data("task")


@HARNESS
@pytest.mark.variant  # it reads all files of the package
def test_the_tasks_of_the_package_have_their_names() -> None:
    named = {"pope", "textvqa_val", "vizwiz_vqa_val", "mmmu_val", "scienceqa_img", "scienceqa", "chartqa"}
    assert named <= set(lmms_eval_tasks.task_manager(None).all_tasks)


def test_options_that_are_refused_without_the_harness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"task\.harness_tasks is empty"):
        LmmsEval([])
    with pytest.raises(UserError, match=r"task\.include_path=.*nowhere: there is no such folder"):
        LmmsEval(["one"], include_path=str(tmp_path / "nowhere"))
    for name in ("lmms_eval", *(name for name in sys.modules if name.startswith("lmms_eval."))):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        UserError, match=r"task=lmms_eval needs lmms-eval .*'\.\[lmms-eval\]' and .*--no-deps"
    ):
        LmmsEval(["one"]).check_data("task")


@pytest.mark.parametrize("file", ["Makefile", "docs/experiments.md", "pyproject.toml"])
def test_the_release_is_the_same_wherever_it_is_named(file: str) -> None:
    text = Path(__file__).parents[2].joinpath(file).read_text()
    assert set(re.findall(r"lmms-eval>=[\d.]+,<[\d.]*\d", text)) == {lmms_eval_tasks.PACKAGE}


def test_how_answers_are_generated_and_cut() -> None:
    assert generation_of({"max_new_tokens": 16, "temperature": 0, "do_sample": False}) == Generation(1, 16)
    assert generation_of({"do_sample": True, "temperature": 0, "num_beams": 3}) == Generation(3, 1024)
    with pytest.raises(UserError, match="samples its answers"):
        generation_of({"do_sample": True, "temperature": 0.7})
    assert cut("a\n\nb", {"until": ["\n\n"]}) == "a\n\nb"
    assert cut("a b; c", {"until": [";", "b"]}) == "a"
    with pytest.raises(UserError, match="shows a str"):
        question("what ?", ["video.mp4"])
    row = question("what ?", [picture(0)], "circle")
    assert row.example() == Example("what ?", "circle", ImageInMemory(picture(0)))


def test_a_model_that_reads_one_picture_refuses_more(model: PrunableModel) -> None:
    class Describer:
        sees = True

        def answer(self, *_: Any) -> list[str]:
            return ["circle"]

    describer = replace(model, interface=Describer())
    assert answers(describer, [(question("what ?", [picture(0)]), {})], 2) == ["circle"]
    with pytest.raises(UserError, match=r"has 2 pictures, and .* reads one at a time"):
        answers(describer, [(question("what ?", [picture(0)] * 2), {})], 2)
