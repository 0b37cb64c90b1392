"""lm-evaluation-harness on models in memory, with tasks of local files."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from ecoflap.errors import NumericalError, UserError
from ecoflap.evaluate.harness_scores import by_filter, flatten
from ecoflap.evaluate.lm_eval_harness import LmEval, harness_model, untied
from ecoflap.evaluate.lm_eval_tasks import examples
from ecoflap.evaluate.prediction_log import PredictionLog
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language.causal_lm import CausalLM
from ecoflap.models.families.vlm.vlm import VisionLanguage
from tests import tiny
from tests.api.conftest import llava
from tests.cli.conftest import WORDS, tiny_llama  # noqa: F401
from tests.cli.test_vlm import save_llava
from tests.distributed.together import together
from tests.zoo.architectures import ARCHITECTURES

HARNESS = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-evaluation-harness is not installed: extra lm-eval",
)
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{train: {folder}/lines.jsonl, test: {folder}/lines.jsonl}}}}
training_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm, aggregation: mean, higher_is_better: false}}]
"""
WRITTEN = """
task: written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/lines.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["</s>"], max_gen_toks: 3, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
PICTURES = """
task: shapes
dataset_path: imagefolder
dataset_kwargs: {{data_dir: {folder}/pictures}}
test_split: train
output_type: generate_until
doc_to_image: [image]
doc_to_text: "USER: <image> what shape is this ? ASSISTANT:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["</s>"], max_gen_toks: 3, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


def questions() -> list[dict[str, Any]]:
    picks = torch.randint(len(WORDS), (12, 6), generator=torch.Generator().manual_seed(5)).tolist()
    rows = [[WORDS[pick] for pick in row] for row in picks]
    return [
        {"question": " ".join(row[:4]), "choices": [row[4], row[5]], "answer": index % 2}
        for index, row in enumerate(rows)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions()))
    for name in ("one", "other"):
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, folder=tmp_path))
    return tmp_path


@pytest.fixture
def own_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a test's own tasks: the harness's index has thousands, and building it takes seconds."""
    from lm_eval import tasks

    monkeypatch.setattr(tasks, "TaskManager", partial(tasks.TaskManager, include_defaults=False))


@pytest.fixture
def llama(tiny_llama: Path) -> PrunableModel:
    model = CausalLM(str(tiny_llama)).load(torch.device("cpu"), Selection(None, []))
    model.processor.bos_token = "<pad>"  # what the harness puts before a text without any
    return model


@torch.no_grad()
def accuracy(model: PrunableModel) -> float:
    """Of the likelier continuation, one question at a time."""
    module: Any = model.module
    right = []
    for question in questions():
        ids = model.processor(question["question"], return_tensors="pt")["input_ids"]
        choices = [model.processor(choice)["input_ids"][0] for choice in question["choices"]]
        right.append(int(module(ids).logits[0, -1, choices].argmax()) == question["answer"])
    return sum(right) / len(right)


@HARNESS
def test_accuracy_of_own_tasks_on_the_model_in_memory(folder: Path, llama: PrunableModel) -> None:
    evaluation = LmEval(["one"], include_path=str(folder), batch_size=5).load(llama)
    dense = accuracy(llama)
    # Choices of one word; the norm is of their letters.
    error = (dense * (1 - dense) / 11) ** 0.5  # s / sqrt(n) of zeros and ones
    assert evaluation(llama, log := PredictionLog(folder / "log.jsonl")) == pytest.approx(
        {
            "one/acc": dense,
            "one/acc_norm": dense,
            "one/samples": 12,
            "one/acc_stderr": error,
            "one/acc_norm_stderr": error,
        }
    )
    assert log.items is not None
    assert (log.items.metric, len(log.items.scores)) == ("one/acc", 12)
    assert 100 * sum(log.items.scores) / 12 == pytest.approx(dense)  # the report takes a mean in percent
    with torch.no_grad():
        llama.module.model.layers[0].mlp.down_proj.weight.mul_(-3)
        llama.module.lm_head.weight.mul_(-1)
    pruned = accuracy(llama)
    assert pruned != dense
    assert evaluation(llama)["one/acc"] == pytest.approx(pruned)


@HARNESS
@pytest.mark.usefixtures("own_index")
@pytest.mark.parametrize("names", [["one"], ["one", "other"]])
def test_two_processes_find_what_one_finds(folder: Path, llama: PrunableModel, names: list[str]) -> None:
    """Each takes whole tasks; by itself, the harness would return nothing in the second one."""
    evaluation = LmEval(names, include_path=str(folder)).load(llama)
    whole = evaluation(llama)
    assert together(2, lambda: evaluation(llama)) == [whole, whole]


@HARNESS
def test_likelihoods_of_a_bf16_model_are_sums_in_fp32(llama: PrunableModel) -> None:
    """In bf16, a sum of some -30 is a multiple of an eighth, and choices tie."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    if "softmax_dtype" not in signature(HFLM.__init__).parameters:
        pytest.skip("this release of the harness sums in the model's dtype")
    module: Any = llama.module.to(torch.bfloat16)
    asked = [(" ".join(WORDS[:3]), f" {' '.join(WORDS[end - 9 : end])}") for end in (9, 11, 13)]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in asked]
    found = [value for value, _ in harness_model(llama, False, 1).loglikelihood(requests)]
    wanted = []
    for text, more in asked:
        begun, ids = (llama.processor(one, return_tensors="pt")["input_ids"] for one in (text, text + more))
        with torch.no_grad():
            logs = module(ids[:, :-1]).logits[0].float().log_softmax(dim=-1)
        of_tokens = logs.gather(1, ids[0, 1:, None])[begun.shape[1] - 1 :]
        wanted.append(float(of_tokens.sum()))
    assert found == pytest.approx(wanted, rel=1e-5)


@HARNESS
def test_likelihoods_of_an_encoder_decoder_that_reads_pictures(llama: PrunableModel) -> None:
    """By its kind alone, the harness would take it for a decoder."""
    from lm_eval.api.instance import Instance

    if (reason := ARCHITECTURES["florence2"].missing()) is not None:
        pytest.skip(reason)
    florence: Any = ARCHITECTURES["florence2"].prunable()
    model = replace(florence, processor=llama.processor)
    text, more = " ".join(WORDS[:3]), f" {' '.join(WORDS[3:7])}"
    ((found, _),) = harness_model(model, False, 1).loglikelihood(
        [Instance("loglikelihood", {}, (text, more), 0)]
    )
    ids, labels = (llama.processor(one, return_tensors="pt")["input_ids"] for one in (text, more))
    begun = torch.cat([torch.tensor([[model.module.config.text_config.decoder_start_token_id]]), labels], 1)
    with torch.no_grad():
        logs = model.module(input_ids=ids, decoder_input_ids=begun[:, :-1]).logits.log_softmax(dim=-1)
    assert found == pytest.approx(float(logs.gather(2, labels[..., None]).sum()), rel=1e-5)


@HARNESS
@pytest.mark.usefixtures("own_index")
def test_a_model_that_computes_nan_has_no_accuracy(folder: Path, llama: PrunableModel) -> None:
    evaluation = LmEval(["one"], include_path=str(folder)).load(llama)
    torch.nn.init.constant_(llama.layers[3].weight, float("nan"))
    with pytest.raises(NumericalError, match="one: the model gives likelihoods that are NaN"):
        evaluation(llama)


@HARNESS
@pytest.mark.usefixtures("own_index")
def test_nothing_is_written_from_nan(folder: Path, llama: PrunableModel) -> None:
    llama.processor.eos_token = "<pad>"  # where the harness ends a text
    (folder / "written.yaml").write_text(WRITTEN.format(folder=folder))
    evaluation = LmEval(["written"], include_path=str(folder)).load(llama)
    assert evaluation(llama)["written/samples"] == 12
    torch.nn.init.constant_(llama.layers[3].weight, float("nan"))
    with pytest.raises(NumericalError, match="the model generates from logits that are not finite"):
        evaluation(llama)


@HARNESS
@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "rwkv", "BartForCausalLM", "bart", "t5"])
def test_what_a_model_writes_does_not_depend_on_the_size_of_batches(llama: PrunableModel, name: str) -> None:
    """The harness pads on the left, encoders too, whose positions BART counts; RWKV mixes rows."""
    from lm_eval.api.instance import Instance

    if (reason := ARCHITECTURES[name].missing()) is not None:
        pytest.skip(reason)
    tokenizer = llama.processor
    tokenizer.eos_token = "<pad>"  # where the harness ends a text
    model = replace(ARCHITECTURES[name].prunable(), processor=tokenizer)
    module: Any = model.module
    texts = [" ".join(WORDS[first : first + count]) for first, count in enumerate((7, 2, 4, 1, 4))]
    options = {"until": ["</s>"], "max_gen_toks": 4, "do_sample": False}
    found = {
        size: harness_model(model, False, size).generate_until(
            [Instance("generate_until", {}, (text, dict(options)), row) for row, text in enumerate(texts)]
        )
        for size in (1, 5)
    }
    expected = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        tokens = module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, pad_token_id=0
        )[0]
        prompt = 0 if module.config.is_encoder_decoder else ids.shape[1]
        expected.append(tokenizer.decode(tokens[prompt:], skip_special_tokens=True))
    assert found[1] == expected
    assert found[5] == expected


@HARNESS
@pytest.mark.usefixtures("own_index")
def test_several_tasks_their_mean_first_and_a_journal(
    folder: Path, llama: PrunableModel, tmp_path: Path
) -> None:
    task = LmEval(["one", "other"], num_fewshot=1, limit=3, include_path=str(folder))
    evaluation = task.load(llama)
    found = evaluation(llama, log := PredictionLog(tmp_path / "tasks.jsonl", "key"))
    assert log.items is None  # a mean of tasks is none of items
    assert [name for name in found if not name.endswith("_stderr")] == [
        "mean/acc",
        "one/acc",
        "one/acc_norm",
        "one/samples",
        "other/acc",
        "other/acc_norm",
        "other/samples",
    ]
    assert found["one/samples"] == found["other/samples"] == 3  # the limit
    assert found["mean/acc"] == pytest.approx((found["one/acc"] + found["other/acc"]) / 2)
    assert found["one/acc"] in (0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1)
    lines = list(log.read().values())
    assert [
        [sample["doc_id"] for sample in line[0]["samples"][name]]
        for line, name in zip(lines, ("one", "other"), strict=True)
    ] == [[0, 4, 8]] * 2
    assert all(len(sample["filtered_resps"]) == 2 for sample in lines[0][0]["samples"]["one"])
    assert task.load(llama)(llama) == found, "the shots are the same each time"
    evaluation._measure = lambda *_: pytest.fail("both are in the prediction_log")  # type: ignore[method-assign]
    assert evaluation(llama, PredictionLog(tmp_path / "tasks.jsonl", "key")) == found


@HARNESS
@pytest.mark.usefixtures("own_index")
def test_the_headline_of_a_group_is_its_own(folder: Path, llama: PrunableModel) -> None:
    (folder / "both.yaml").write_text(
        "group: both\ntask: [one, other]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    evaluation = LmEval(["both"], include_path=str(folder)).load(llama)
    found = evaluation(llama, log := PredictionLog(folder / "log.jsonl"))
    assert next(iter(found)) == "both/acc"
    assert found["both/acc"] == pytest.approx((found["one/acc"] + found["other/acc"]) / 2)
    assert log.items is None, "the items of its first task are those of another metric"


@HARNESS
def test_a_limit_is_spread_over_each_task(monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval

    members = {"long": SimpleNamespace(eval_docs=[{}] * 12), "short": SimpleNamespace(eval_docs=[{}] * 2)}
    assert examples(members, 3) == {"samples": {"long": [0, 4, 8], "short": [0, 1]}}
    assert examples(members, None) == {"limit": None}
    monkeypatch.setattr(lm_eval, "simple_evaluate", lambda model, limit=None: None)  # as before 0.4.9
    assert examples(members, 3) == {"limit": 3}


@HARNESS
@pytest.mark.usefixtures("own_index")
def test_identity_changes_with_what_the_numbers_depend_on(folder: Path, llama: PrunableModel) -> None:
    identity = LmEval(["one"], include_path=str(folder)).load(llama).identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity["higher_is_better"] == {"one/acc": True, "one/acc_norm": False}  # as the task says
    assert identity == LmEval(["one"], include_path=str(folder), batch_size=1).load(llama).identity()
    limited = LmEval(["one"], include_path=str(folder), limit=3).load(llama)
    assert identity != limited.identity() != replace(limited, examples={"limit": 3}).identity() != identity
    file = folder / "one.yaml"
    as_it_was = file.read_text()
    for line in ("description: Choose.", 'target_delimiter: ""', "repeats: 2"):
        file.write_text(f"{as_it_was}{line}\n")
        assert identity != LmEval(["one"], include_path=str(folder)).load(llama).identity()
    file.write_text(as_it_was.replace(", {metric: acc_norm, aggregation: mean, higher_is_better: false}", ""))
    assert identity != LmEval(["one"], include_path=str(folder)).load(llama).identity()
    file.write_text(as_it_was)
    assert identity == LmEval(["one"], include_path=str(folder)).load(llama).identity()
    (folder / "utils.py").write_text("LIMIT = 1\n")
    beside = LmEval(["one"], include_path=str(folder)).load(llama).identity()
    (folder / "utils.py").write_text("LIMIT = 2\n")
    assert beside != LmEval(["one"], include_path=str(folder)).load(llama).identity() != identity
    (folder / "utils.py").unlink()
    changed = [{**questions()[0], "choices": ["cat", "dog"]}, *questions()[1:]]
    (folder / "lines.jsonl").write_text("".join(json.dumps(question) + "\n" for question in changed))
    assert identity != LmEval(["one"], include_path=str(folder)).load(llama).identity()


@HARNESS
@pytest.mark.usefixtures("own_index")
def test_identity_has_the_examples_before_a_question(folder: Path, llama: PrunableModel) -> None:
    file, shown = folder / "one.yaml", folder / "shown.jsonl"
    own = file.read_text().replace(f"{{train: {folder}/lines.jsonl", f"{{train: {shown}")
    for shots, counts in (("", False), ("num_fewshot: 2\n", True)):
        file.write_text(own + shots)
        found = []
        for end in ("", "?"):
            lines = [{**one, "question": one["question"] + end} for one in questions()]
            shown.write_text("".join(json.dumps(line) + "\n" for line in lines))
            found.append(LmEval(["one"], include_path=str(folder)).load(llama).identity())
        assert (found[0] != found[1]) == counts, "as many as the task says, unless the run says how many"


def test_weights_are_left_as_they_are() -> None:
    model = tiny.build("t5")
    module: Any = model.module
    module.lm_head.weight = nn.Parameter(torch.randn_like(module.shared.weight))
    module.config.tie_word_embeddings = True  # as a checkpoint's settings can say although it holds both
    with untied(module):
        module.tie_weights()
    assert module.lm_head.weight is not module.shared.weight
    assert "tie_weights" not in vars(module)


@HARNESS
@pytest.mark.usefixtures("own_index")
def test_pictures_through_the_processor_in_memory(folder: Path) -> None:
    (folder / "pictures").mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (8, 8), colour).save(folder / "pictures" / f"{name}.png")
    lines = [{"file_name": "a.png", "answer": "circle"}, {"file_name": "b.png", "answer": "triangle"}]
    (folder / "pictures" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "shapes.yaml").write_text(PICTURES.format(folder=folder))
    torch.manual_seed(0)
    save_llava(folder / "llava")
    model = VisionLanguage(str(folder / "llava"), prompt="USER: <image> {} ASSISTANT:").load(
        torch.device("cpu"), Selection(None, [])
    )
    model.module.config._name_or_path = "nowhere"
    found = LmEval(["shapes", "one"], include_path=str(folder)).load(model)(model)
    assert [name for name in found if not name.endswith("_stderr")] == [
        "shapes/exact_match",
        "shapes/samples",
        "one/acc",
        "one/acc_norm",
        "one/samples",
    ]
    torch.nn.init.constant_(model.layers[-1].weight, float("nan"))
    with pytest.raises(NumericalError, match="the model generates from logits that are not finite"):
        LmEval(["shapes"], include_path=str(folder)).load(model)(model)


@HARNESS
@pytest.mark.usefixtures("own_index")
def test_identity_tells_pictures_apart_that_differ_in_their_palette_only(tmp_path: Path) -> None:
    model = llava()

    def identity(palette: list[int]) -> dict[str, Any]:
        image = Image.new("P", (4, 4))
        image.putpalette(palette)
        image.save(tmp_path / "pictures" / "0.png")
        return LmEval(["shapes"], include_path=str(tmp_path)).load(model).identity()

    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "metadata.jsonl").write_text('{"file_name": "0.png", "answer": "circle"}\n')
    (tmp_path / "shapes.yaml").write_text(PICTURES.format(folder=tmp_path))
    red = identity([255, 0, 0])
    assert red != identity([0, 0, 255])
    assert red == identity([255, 0, 0])


@HARNESS
@pytest.mark.usefixtures("own_index")
def test_tasks_that_the_harness_would_refuse_once_the_model_is_there(folder: Path) -> None:
    (folder / "written.yaml").write_text(WRITTEN.format(folder=folder) + "unsafe_code: true\n")
    with pytest.raises(UserError, match=r"task\.harness_tasks: written runs the code that the model writes"):
        LmEval(["written"], include_path=str(folder)).check_data("task")
    (folder / "chosen.yaml").write_text(
        TASK.format(name="chosen", folder=folder) + "doc_to_image: [question]\n"
    )
    with pytest.raises(UserError, match="chosen has pictures and is of the kind multiple_choice"):
        LmEval(["chosen"], include_path=str(folder)).check_data("task")


@HARNESS
@pytest.mark.usefixtures("own_index")
def test_refusals(folder: Path, llama: PrunableModel) -> None:
    with pytest.raises(UserError, match=r"task\.harness_tasks: the harness has no oner; did you mean one"):
        LmEval(["oner"], include_path=str(folder)).load(llama)
    with pytest.raises(UserError, match="asks models that read and write text, and vit doesn't"):
        LmEval(["one"], include_path=str(folder)).load(tiny.build("vit"))
    processor = SimpleNamespace(image_processor=None, tokenizer=llama.processor)
    describer = replace(ARCHITECTURES["blip-2"].prunable(), processor=processor)
    with pytest.raises(UserError, match=r"one has no pictures, and blip-2 reads no text without one"):
        LmEval(["one"], include_path=str(folder)).load(describer)
    (folder / "lines.jsonl").unlink()
    with pytest.raises(UserError, match="one could not be read"):
        LmEval(["one"], include_path=str(folder)).load(llama)


def test_options_that_are_refused_without_the_harness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"task\.harness_tasks is empty"):
        LmEval([])
    with pytest.raises(UserError, match=r"task\.num_fewshot=-1"):
        LmEval(["one"], num_fewshot=-1)
    with pytest.raises(UserError, match=r"task\.include_path=.*nowhere: there is no such folder"):
        LmEval(["one"], include_path=str(tmp_path / "nowhere"))
    for name in ("lm_eval", *(name for name in sys.modules if name.startswith("lm_eval."))):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        UserError, match=r"task=lm_eval needs lm-evaluation-harness .*pip install -e '\.\[lm-eval\]'"
    ):
        LmEval(["one"]).load(tiny.build("llama"))


def test_examples_are_scored_by_filter() -> None:
    samples = [
        {"doc_id": document, "filter": rule, "exact_match": float(right)}
        for rule, rights in (("strict-match", (1, 0, 0)), ("flexible-extract", (1, 1, 0)))
        for document, right in enumerate(rights)
    ]
    found = by_filter(samples, {"exact_match,strict-match": 1 / 3, "exact_match,flexible-extract": 0.5})
    assert found == {"exact_match,strict-match": {"0": 1, "1": 0, "2": 0}}  # the other one is no mean of them


def test_flatten_names_filters_and_leaves_standard_errors_out() -> None:
    metrics = {
        "alias": "one",
        "acc,none": 0.5,
        "acc_stderr,none": 0.1,
        "acc_stderr_clt,none": 0.1,
        "acc_norm,none": "N/A",
        "exact_match,strict-match": 1,
    }
    assert flatten({"one": metrics}) == {"one/acc": 0.5, "one/exact_match,strict-match": 1.0}
