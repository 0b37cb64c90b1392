"""Windows of a text behind the token that begins texts, for calibration and for perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ecoflap.data.text.calibration import Documents, Text
from ecoflap.data.text.perplexity import PerplexityEvaluation, TextPerplexity
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from tests import tiny

BOS, WORDS = 1, [f"w{number}" for number in range(30)]


def tokenizer(begins: bool | str, token: str | None = "<bos>", ends: bool = False) -> PreTrainedTokenizerFast:
    """A word tokenizer that puts <bos>, or other tokens, before a text, or </s> behind it, or neither."""
    first = begins if isinstance(begins, str) else "<bos> " * begins
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<bos>", "</s>", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single=f"{first}$A{' </s>' if ends else ''}", special_tokens=[("<bos>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token=token)


@pytest.fixture
def model() -> Callable[..., PrunableModel]:
    built = tiny.build("llama")

    def with_tokenizer(**how: Any) -> PrunableModel:
        return PrunableModel(
            "tiny", built.module, built.every_tower, built.towers, (), built.loss_function, tokenizer(**how)
        )

    return with_tokenizer


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(
        "\n\n".join(" ".join(WORDS[(25 * part + step) % 30] for step in range(25)) for part in range(4))
    )
    return str(tmp_path / "text.txt")


@pytest.mark.parametrize(
    ("how", "choice", "begun"),
    [
        ({"begins": True}, "auto", True),
        ({"begins": False}, "auto", False),
        ({"begins": False, "ends": True}, "auto", False),
        ({"begins": False, "token": None}, "auto", False),
        ({"begins": False}, "true", True),
        ({"begins": False}, "True", True),  # as Hydra writes a flag
        ({"begins": False}, "false", False),
    ],
)
@pytest.mark.parametrize("kind", [Text, Documents])
def test_windows_begin_as_asked(
    model: Callable[..., PrunableModel], path: str, kind: Any, how: dict[str, Any], choice: str, begun: bool
) -> None:
    drawn = kind(path=path, samples=3, sequence_length=8, bos=choice).load(model(**how), 0)
    assert len(drawn) == 3
    for sample in drawn.samples:
        ids = sample["input_ids"].tolist()
        assert len(ids) == 8
        assert (ids[0] == BOS) == begun
        words = ids[begun:]
        assert words == [
            3 + (words[0] - 3 + step) % 30 for step in range(len(words))
        ]  # an unbroken piece of the text
    measured = TextPerplexity(path=path, sequence_length=8, bos=choice).load(model(**how))
    assert ((measured.rows[:, 0] == BOS) == begun).all()
    assert measured.rows.shape == (100 // (8 - begun), 8)


@pytest.mark.parametrize("choice", ["false", "False"])  # as Hydra writes a flag
@pytest.mark.parametrize("how", [{"begins": True}, {"begins": True, "ends": True}, {"begins": False}])
def test_false_cuts_the_windows_of_papers(
    model: Callable[..., PrunableModel], path: str, how: dict[str, Any], choice: str
) -> None:
    """They tokenise the whole text, or each document, once, with the tokenizer's own token in front."""
    built = model(**how)
    whole = built.processor(Path(path).read_text())["input_ids"]
    rows = [whole[start : start + 8] for start in range(0, len(whole) - 7, 8)]
    assert (rows[0][0] == BOS) == how["begins"]
    assert TextPerplexity(path=path, sequence_length=8, bos=choice).load(built).rows.tolist() == rows
    drawn = Text(path=path, sequence_length=8, bos=choice).load(built, 0).samples
    assert sorted(sample["input_ids"].tolist() for sample in drawn) == sorted(rows)
    documents = [built.processor(part)["input_ids"][:26] for part in Path(path).read_text().split("\n\n")]
    windows = [row[start : start + 24] for row in documents for start in range(len(row) - 23)]
    found = [
        sample["input_ids"].tolist()
        for seed in range(20)
        for sample in Documents(path=path, sequence_length=24, bos=choice).load(built, seed).samples
    ]
    assert len(found) == 80
    assert {tuple(row) for row in found} == {tuple(row) for row in windows}


@pytest.mark.parametrize("stride", [None, 3])
def test_perplexity_is_of_the_text_behind_the_token(
    model: Callable[..., PrunableModel], path: str, stride: int | None
) -> None:
    """Each token by itself, in the first window that it counts in; the first word of a window is predicted
    from <bos>.
    """
    built = model(begins=True)
    found = TextPerplexity(path=path, sequence_length=8, stride=stride).load(built)(built)
    text = built.processor(Path(path).read_text(), add_special_tokens=False)["input_ids"]
    losses = []
    for start in range(0, len(text) - 7 + 1, stride or 7):
        window = torch.tensor([BOS, *text[start : start + 7]])
        logits = built.module(window[None]).logits[0].log_softmax(dim=-1)
        first = 1 if stride is None or start == 0 else 8 - stride
        losses += [-float(logits[place - 1, window[place]].detach()) for place in range(first, 8)]
    assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


TWO = {"begins": "</s> <bos> ", "token": None}
"""As GLM-4's tokenizer puts [gMASK] and <sop> before a text, and names neither its BOS token."""


@pytest.mark.parametrize("choice", ["auto", "true"])
@pytest.mark.parametrize("kind", [Text, Documents])
def test_windows_begin_with_all_that_the_tokenizer_puts_before_a_text(
    model: Callable[..., PrunableModel], path: str, kind: Any, choice: str
) -> None:
    drawn = kind(path=path, samples=3, sequence_length=8, bos=choice).load(model(**TWO), 0)
    for sample in drawn.samples:
        first, *words = sample["input_ids"].split([2, *[1] * 6])
        assert first.tolist() == [2, BOS]
        assert words == [3 + (words[0] - 3 + step) % 30 for step in range(6)]


@pytest.mark.parametrize("stride", [None, 3, 6])
def test_perplexity_is_of_the_text_alone(
    model: Callable[..., PrunableModel], path: str, stride: int | None
) -> None:
    """The second of the tokens before it is predicted as well, and doesn't count."""
    built = model(**TWO)
    evaluation = TextPerplexity(path=path, sequence_length=8, stride=stride, batch_size=5).load(built)
    text = built.processor(Path(path).read_text(), add_special_tokens=False)["input_ids"]
    losses = []
    for start in range(0, len(text) - 6 + 1, stride or 6):
        window = torch.tensor([2, BOS, *text[start : start + 6]])
        logits = built.module(window[None]).logits[0].log_softmax(dim=-1)
        first = 2 if stride is None or start == 0 else 8 - stride
        losses += [-float(logits[place - 1, window[place]].detach()) for place in range(first, 8)]
    assert evaluation(built)["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    scored = PerplexityEvaluation(evaluation.rows, 5, stride)  # the same rows, and all that is predicted
    assert scored.identity() != evaluation.identity()
    shown = evaluation._passage(built)
    assert [word for word, _ in shown] == [built.processor.decode([token]) for token in text[:6]]
    assert [loss for _, loss in shown] == pytest.approx(losses[:6], rel=1e-5)


def test_windows_without_room_for_the_text(model: Callable[..., PrunableModel], path: str) -> None:
    built = model(**TWO)
    for part, group in ((Text, "calibration"), (Documents, "calibration"), (TextPerplexity, "task")):
        with pytest.raises(
            UserError, match=rf"{group}\.sequence_length=2 leaves no room behind the 2 tokens"
        ):
            part(path=path, sequence_length=2).load(built, *[0] * (group == "calibration"))
    with pytest.raises(UserError, match=r"task\.stride=7 is more than the 6 tokens that a window of 8 has"):
        TextPerplexity(path=path, sequence_length=8, stride=7).load(built)


@pytest.mark.parametrize(
    ("part", "group"), [(Text, "calibration"), (Documents, "calibration"), (TextPerplexity, "task")]
)
def test_refusals(model: Callable[..., PrunableModel], path: str, part: Any, group: str) -> None:
    with pytest.raises(UserError, match=rf"{group}\.bos=yes is not known; the choices are auto, true, false"):
        part(path=path, bos="yes")
    without = model(begins=False, token=None)
    asked, seed = part(path=path, sequence_length=8, bos="true"), [0] if group == "calibration" else []
    with pytest.raises(
        UserError, match=rf"{group}\.bos=true: the model's tokenizer has no token that begins a text"
    ):
        asked.load(without, *seed)
