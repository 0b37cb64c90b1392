"""Perplexity against a plain loop, and against the rolling log-likelihood of lm-evaluation-harness."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from ecoflap.data.batch import samples_in
from ecoflap.data.text.perplexity import PerplexityEvaluation, TextPerplexity, TokenPerplexity
from ecoflap.errors import UserError
from ecoflap.evaluate.prediction_log import PredictionLog
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language.causal_lm import CausalLM
from ecoflap.run.instantiate import build
from tests import tiny
from tests.cli.conftest import composed, text_file, tiny_llama  # noqa: F401

HARNESS = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-evaluation-harness is not installed: extra lm-eval",
)
TOKENS = torch.randint(3, tiny.VOCABULARY, (50,), generator=torch.Generator().manual_seed(3))


class Numbers:
    """A tokenizer whose words are ids."""

    def __call__(self, text: str, **_: Any) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([[int(word) if word.isdigit() else 0 for word in text.split()]])}


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> PrunableModel:
    built = tiny.build(request.param)
    return PrunableModel(
        "tiny", built.module, built.every_tower, built.towers, (), built.loss_function, Numbers()
    )


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(" ".join(str(token) for token in TOKENS.tolist()))
    return str(tmp_path / "text.txt")


@torch.no_grad()
def plain_loss(module: Any, length: int, stride: int | None) -> float:
    """Token by token: each is scored in the first window that it counts in."""
    losses = []
    for start in range(0, len(TOKENS) - length + 1, stride or length):
        window = TOKENS[start : start + length]
        logits = module(window[None]).logits[0].log_softmax(dim=-1)
        first = 1 if stride is None or start == 0 else length - stride
        losses += [-float(logits[place - 1, window[place]]) for place in range(first, length)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("length", "stride"), [(8, None), (50, None), (8, 7), (8, 3), (12, 1), (50, 20)])
def test_loss_is_that_of_a_plain_loop(
    model: PrunableModel, path: str, length: int, stride: int | None
) -> None:
    if length > 32 and model.module.config.model_type == "gpt2":
        pytest.skip("its positions end before")
    model = replace(model, loss_function=lambda _, batch, __=1: torch.full((samples_in(batch),), 9.0))
    found = [
        TextPerplexity(path=path, sequence_length=length, stride=stride, batch_size=size).load(model)(model)
        for size in (1, 4)
    ]
    expected = plain_loss(model.module, length, stride)
    for metrics in found:
        assert next(iter(metrics)) == "perplexity"
        assert metrics["loss"] == pytest.approx(expected, rel=1e-5), "not that which scores the model"
        assert metrics["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
        assert metrics["rows"] == (50 - length) // (stride or length) + 1
        if metrics["rows"] > 1:
            ratio = metrics["perplexity_stderr"] / metrics["loss_stderr"]
            assert ratio == pytest.approx(metrics["perplexity"])
        else:
            assert math.isnan(metrics["loss_stderr"])


def test_every_token_but_the_first_counts_once(model: PrunableModel, path: str) -> None:
    evaluation = TextPerplexity(path=path, sequence_length=8, stride=3).load(model)
    counted: list[float] = []

    def count(places: list[int]) -> Tensor:
        counted.extend(7 if place == 0 else 3 for place in places)
        return torch.ones(len(places))

    evaluation._losses = lambda _, places: count(places)  # type: ignore[method-assign]
    assert evaluation(model)["loss"] == pytest.approx(1)
    assert sum(counted) == 49  # of 50: the last window ends with the text


def test_limit_and_identity(model: PrunableModel, path: str) -> None:
    assert TextPerplexity(path=path, sequence_length=8, limit=2).load(model)(model)["rows"] == 2
    identities = [
        TextPerplexity(path=path, sequence_length=8, **options).load(model).identity()
        for options in ({}, {"stride": 7}, {"limit": 2}, {"batch_size": 1})
    ]
    assert identities[0] == identities[3]
    assert identities[0] not in identities[1:3]
    Path(path).write_text(" ".join(str(token) for token in TOKENS.flip(0).tolist()))
    assert TextPerplexity(path=path, sequence_length=8).load(model).identity() != identities[0]


def test_fewer_rows_than_the_limit_are_warned_of(
    model: PrunableModel, path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Papers measure on 256 windows of C4, and a file of one's own may have fewer."""
    save_file({"test": TOKENS[:48].reshape(6, 8)}, tmp_path / "tokens.safetensors")
    tokens = str(tmp_path / "tokens.safetensors")
    for limit, said in ((6, False), (7, True)):
        caplog.clear()
        for task in (
            TextPerplexity(path=path, sequence_length=8, limit=limit),
            TokenPerplexity(tokens, "test", limit=limit),
        ):
            assert len(task.load(model).rows) == 6
        message = f"task.limit={limit} was asked for and there are only 6 rows"
        assert caplog.messages == [message] * 2 * said


def test_journal_goes_on(model: PrunableModel, path: str, tmp_path: Path) -> None:
    evaluation = TextPerplexity(path=path, sequence_length=8, stride=3, batch_size=4).load(model)
    first = evaluation(model, log := PredictionLog(tmp_path / "rows.jsonl", "key"))
    assert log.items is not None
    assert fmean(log.items.scores) == pytest.approx(first["loss"])  # the first row has more tokens
    of_first_row = fmean(loss for _, loss in log.items.passage)
    assert of_first_row == pytest.approx(log.read()[0][0], rel=1e-5)
    broken = PerplexityEvaluation(evaluation.rows, 4, 3)
    broken._losses = lambda *_: pytest.fail("all rows are in the prediction_log")  # type: ignore[method-assign]
    assert broken(model, PredictionLog(tmp_path / "rows.jsonl", "key")) == first


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: TextPerplexity(sequence_length=8, stride=8),
            r"task\.stride=8 must be less than task\.sequence_length=8; null is for windows",
        ),
        (lambda: TextPerplexity(stride=0), r"task\.stride=0 must be at least 1"),
        (
            lambda: TextPerplexity(sequence_length=1),
            r"task\.sequence_length=1: a language model is measured on the next token",
        ),
        (lambda: TextPerplexity(documents=0), r"task\.documents=0 must be at least 1"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(("name", "column"), [("wikitext2", "text"), ("ptb", "sentence"), ("c4", "text")])
def test_configs_measure_local_files(model: PrunableModel, tmp_path: Path, name: str, column: str) -> None:
    lines = [{column: "5 6 7 8 9"}, {column: "10 11 12 13"}] * 4
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = build(
        "task",
        composed([f"task={name}", f"task.path={tmp_path / 'lines.jsonl'}", "task.sequence_length=12"]).task,
    )
    assert task.load(model)(model)["rows"] == 3


@HARNESS
def test_stride_of_a_window_less_one_is_the_harness_rolling(
    tiny_llama: Path, text_file: Path, tmp_path: Path
) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    length, tokenizer = 20, AutoTokenizer.from_pretrained(tiny_llama)  # 600 tokens: a whole number of windows
    text = text_file.read_text()
    beginning = tokenizer.convert_tokens_to_ids("the")
    harness = HFLM(
        AutoModelForCausalLM.from_pretrained(tiny_llama),
        tokenizer=tokenizer,
        max_length=length,
        prefix_token_id=beginning,
        batch_size=4,
    )
    rolling = harness.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])[0]
    (tmp_path / "text.txt").write_text(f"the {text}")
    ours = CausalLM(str(tiny_llama)).load(torch.device("cpu"), Selection(None, []))
    found = TextPerplexity(path=str(tmp_path / "text.txt"), sequence_length=length + 1, stride=length).load(
        ours
    )(ours)
    assert found["loss"] == pytest.approx(-rolling / 600, rel=1e-6)
