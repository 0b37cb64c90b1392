"""Our caption scores are those of pycocoevalcap called plainly, and NoCaps is scored against its own
references.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from torch import nn

from ecoflap.data.captions.metrics import CaptionMetrics, scores
from ecoflap.data.captions.reading import CaptionSource
from ecoflap.data.captions.task import Captioning
from ecoflap.data.captions.words import simple_words
from ecoflap.data.example import Example, Generation
from ecoflap.errors import UserError
from ecoflap.evaluate.prediction_log import PredictionLog
from ecoflap.models.core.prunable import PrunableModel
from tests.data import caption_folders as folders

pytestmark = [pytest.mark.any_release, pytest.mark.long]
COCO_MINI = Path(__file__).parents[4] / "shared" / "data" / "coco_mini" / "captions.jsonl"
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None, reason="pip install -e '.[captions]'"
)
needs_java = pytest.mark.skipif(
    shutil.which("java") is None, reason="the tokenizer of the published scores needs java"
)

REFERENCES = [
    ["A man can't find the dog's bone, and he's sad.", 'Two long-haired cats & a "tv"!'],
    ["3,000 people (most of them old) at 10:30 a.m. in the U.S.", "People cannot see it..."],
    ['Mr. Smith wears a T-shirt;  it says "STOP".', "A red stop sign -- with 1/2 off", "they'll be back"],
    ["A bus.", "the big red bus on a street"],
]
PREDICTIONS = [
    "a man finds the dog's bone",
    "people in the u.s. at 10:30 a.m.",
    "",
    "a big red bus, on a street.",
]


class Writes:
    """Writes one of each picture's captions, or nothing good."""

    prompt = "a picture of"
    sees = True

    def __init__(self, folder: Path, right: bool = True) -> None:
        pictures = CaptionSource(str(folder), "nocaps", "val").pictures("task")
        self.captions = {
            one.image: one.captions[1] if right or one.domain == "near" else "nothing" for one in pictures
        }
        self.asked: list[str] = []
        self.generation = Generation()

    def answer(self, model: PrunableModel, examples: Sequence[Example], generation: Generation) -> list[str]:
        self.asked += [example.text for example in examples]
        self.generation = generation
        return [self.captions[example.image or ""] for example in examples]


@pytest.fixture
def without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR's program needs seconds to start."""
    monkeypatch.setattr(shutil, "which", lambda _: None)


def model(interface: object) -> PrunableModel:
    return PrunableModel("tiny", nn.Module(), (), (), (), lambda *_: torch.zeros(1), None, interface)


def nocaps(folder: Path, **options: Any) -> Captioning:
    return Captioning(str(folder), "nocaps", "val", name="nocaps", **options)


def plainly(references: Sequence[Sequence[str]], predictions: Sequence[str], java: bool) -> dict[str, float]:
    """The package's own way: its tokenizer, then its scorers."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    gts = PTBTokenizer().tokenize(
        {row: [{"caption": text} for text in texts] for row, texts in enumerate(references)}
    )
    res = PTBTokenizer().tokenize({row: [{"caption": text}] for row, text in enumerate(predictions)})
    scores = {"cider": Cider().compute_score(gts, res)[0], "rouge_l": Rouge().compute_score(gts, res)[0]}
    scores |= {f"bleu_{size + 1}": value for size, value in enumerate(Bleu(4).compute_score(gts, res)[0])}
    return scores | ({"meteor": Meteor().compute_score(gts, res)[0]} if java else {})


@needs_package
@needs_java
@pytest.mark.parametrize("java", [True, False])
@pytest.mark.every_run("False")
def test_scores_are_the_packages_own(java: bool) -> None:
    metrics = CaptionMetrics(java=java, spice=False)
    found = scores(
        metrics.scorers(), metrics.words(REFERENCES), metrics.words([[text] for text in PREDICTIONS])
    )
    assert found == pytest.approx(
        {name: 100 * value for name, value in plainly(REFERENCES, PREDICTIONS, java).items()}, abs=1e-9
    )
    assert next(iter(found)) == "cider"


@needs_package
@needs_java
@pytest.mark.skipif(not COCO_MINI.is_file(), reason="needs the captions of coco_mini beside the repository")
def test_own_words_of_real_captions() -> None:
    captions = [json.loads(line)["captions"] for line in COCO_MINI.read_text().splitlines()]
    assert CaptionMetrics(False, False).words(captions) == CaptionMetrics(True, False).words(captions)
    metrics = CaptionMetrics(False, False)
    words = metrics.words([texts[1:] for texts in captions]), metrics.words([texts[:1] for texts in captions])
    wanted = plainly([texts[1:] for texts in captions], [texts[0] for texts in captions], False)
    assert scores(metrics.scorers(), *words) == pytest.approx(
        {name: 100 * value for name, value in wanted.items()}, abs=1e-9
    )


@needs_package
@needs_java
def test_empty_captions_and_line_ends_keep_their_place() -> None:
    captions = [["", "\n"], ["a\u2028dog", " "], ["café"], [""]]
    assert CaptionMetrics(True, False).words(captions) == {
        0: ["", ""],
        1: ["a dog", ""],
        2: ["café"],
        3: [""],
    }


def test_own_words() -> None:
    said = "The two-story house isn't Mr. O'Neil's (at 9:30pm): they cannot see 5'10\" dogs!"
    assert (
        simple_words(said)
        == "the two-story house is n't mr. o'neil 's -lrb- at 9:30 pm -rrb- they can not see 5 10 dogs"
    )


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("एक कुत्ता घास में दौड़ रहा है", "एक कुत्ता घास में दौड़ रहा है"),
        ("หมาวิ่งอยู่บนหญ้า", "หมาวิ่งอยู่บนหญ้า"),
        ("السَّلامُ عليكم", "السَّلامُ عليكم"),
        ("Un café, à l'e\u0301te\u0301.", "un café à l'été"),
        ("x\u0327y isn't", "x\u0327y is n't"),
        ("a dog\U0001f600runs \U0001f44d\U0001f3fd!", "a dog runs"),
        ("\U0001f468\u200d\U0001f469 I \u2764\ufe0f dogs", "i \u2764 dogs"),
        ("\ufeffa so\u00adft\u200b bed 1\ufe0f\u20e3", "a soft bed 1"),
        ("☀ 狗在草地上", "☀ 狗在草地上"),
    ],
)
def test_words_of_other_scripts_and_emoji(caption: str, words: str) -> None:
    assert simple_words(caption) == unicodedata.normalize("NFC", words)


@needs_package
@needs_java
def test_words_of_other_scripts_are_those_of_stanfords_tokenizer() -> None:
    captions = [
        ["एक कुत्ता घास में दौड़ रहा है।", "หมาวิ่งอยู่บนหญ้า", "السَّلامُ عليكم", "தமிழ் நாய்"],
        [
            "a dog\U0001f600runs",
            "I \u2764\ufe0f dogs",
            "join\u200der so\u00adft",
            "family \U0001f468\u200d\U0001f469 here",
        ],
    ]
    theirs, ours = (CaptionMetrics(java, False).words(captions) for java in (True, False))
    assert ours == {
        index: [unicodedata.normalize("NFC", words) for words in texts] for index, texts in theirs.items()
    }


@needs_package
@pytest.mark.usefixtures("without_java")
def test_nocaps_overall_and_per_domain(tmp_path: Path) -> None:
    folders.nocaps(tmp_path)
    writes, half = model(Writes(tmp_path)), model(Writes(tmp_path, right=False))
    found = nocaps(tmp_path, prompt="a photo of").load(writes)(writes)
    assert next(iter(found)) == "cider"
    assert found["cider"] > 100
    assert found["bleu_1"] == pytest.approx(100)
    assert {
        f"{name}_{domain}" for name in ("cider", "bleu_4", "rouge_l") for domain in ("in", "near", "out")
    } < set(found)
    assert found["pictures"] == 24
    assert writes.interface.asked == ["a photo of"] * 24
    assert writes.interface.generation == Generation(3, 16, 1)
    worse = nocaps(tmp_path).load(half)(half)
    assert worse["cider_near"] == found["cider_near"]
    assert worse["cider_in"] == worse["rouge_l_out"] == 0
    assert worse["cider"] < found["cider"] / 2


@needs_package
@pytest.mark.usefixtures("without_java")
def test_a_domain_is_scored_by_its_own_references(tmp_path: Path) -> None:
    folders.nocaps(tmp_path)
    writes = model(Writes(tmp_path))
    task = nocaps(tmp_path)
    found = task.load(writes)(writes)
    pictures = [one for one in task.pictures("task") if one.domain == "out"]
    metrics = CaptionMetrics.here("task=nocaps")
    predictions = metrics.words([[writes.interface.captions[one.image]] for one in pictures])
    alone = scores(metrics.scorers(), metrics.words([one.captions for one in pictures]), predictions)
    assert {f"{name}_out": value for name, value in alone.items()}.items() <= found.items()


@needs_package
@pytest.mark.usefixtures("without_java")
def test_cider_is_the_mean_of_its_items(tmp_path: Path) -> None:
    folders.nocaps(tmp_path)
    half = model(Writes(tmp_path, right=False))
    found = nocaps(tmp_path).load(half)(half, log := PredictionLog(tmp_path / "log.jsonl"))
    assert log.items is not None
    scores_of = list(log.items.scores)
    assert (log.items.metric, len(scores_of)) == ("cider", 24)
    assert found["cider"] == pytest.approx(100 * fmean(scores_of))
    assert found["cider_stderr"] == pytest.approx(100 * stdev(scores_of) / math.sqrt(24))
    assert found["rouge_l_stderr"] > 0
    assert "bleu_4_stderr" not in found


@needs_package
@pytest.mark.usefixtures("without_java")
def test_what_is_left_out_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        metrics = CaptionMetrics.here("task=nocaps")
    assert metrics == CaptionMetrics(java=False, spice=False)
    assert [record.message.split(":")[1] for record in caplog.records] == [
        " no METEOR and SPICE, and words by a tokenizer of ours"
    ]
    words = metrics.words(REFERENCES)
    assert set(scores(metrics.scorers(), words, {row: texts[:1] for row, texts in words.items()})) == {
        "cider",
        "bleu_1",
        "bleu_2",
        "bleu_3",
        "bleu_4",
        "rouge_l",
    }
    assert metrics.identity() != CaptionMetrics(java=True, spice=False).identity()


@needs_package
@pytest.mark.usefixtures("without_java")
def test_identity_changes_with_what_the_numbers_depend_on(tmp_path: Path) -> None:
    folders.nocaps(tmp_path)
    writes = model(Writes(tmp_path))
    identity = nocaps(tmp_path).load(writes).identity()
    assert identity == nocaps(tmp_path, batch_size=3).load(writes).identity()
    for changed in ({"limit": 20}, {"beams": 1}, {"prompt": "this is"}, {"min_new_tokens": 4}):
        assert nocaps(tmp_path, **changed).load(writes).identity() != identity
    with_java = CaptionMetrics(java=True, spice=False)
    assert replace(nocaps(tmp_path).load(writes), metrics=with_java).identity() != identity


@needs_package
@pytest.mark.usefixtures("without_java")
def test_a_caption_of_two_lines_is_not_two(tmp_path: Path) -> None:
    """What a dense model scored with it must not be taken for two captions, into which a user split it."""
    folders.nocaps(tmp_path)
    evaluation = nocaps(tmp_path).load(model(Writes(tmp_path)))
    one, *others = evaluation.pictures
    identities = [
        replace(evaluation, pictures=[replace(one, captions=captions), *others]).identity()
        for captions in (("a dog\na cat",), ("a dog", "a cat"), ("a dog a cat",))
    ]
    assert identities[0] == identities[2] != identities[1]


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"task\.min_new_tokens=9 must be 0 to 8"):
        nocaps(tmp_path, min_new_tokens=9, max_new_tokens=8)
    with pytest.raises(UserError, match="task=nocaps needs a model that describes"):
        nocaps(tmp_path).load(model(None))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        UserError, match=r"task=nocaps needs the package pycocoevalcap: pip install -e '\.\[captions\]'"
    ):
        nocaps(tmp_path).load(model(Writes(folders.nocaps(tmp_path))))
