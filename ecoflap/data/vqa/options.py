"""Options of visual question answering: calibration and tasks."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class VqaV2CalibrationOptions:
    """Calibration on questions about COCO's train2014, with the answer that most annotators gave.

    Attributes:
        path: folder with the published files and pictures; null names what is needed.
        split: train is the only choice.
        clean: ask in lower case and without most punctuation, as ``task=vqav2`` does.
        samples: number of questions.
        name: what logs and result files call it.
    """

    path: str | None = None
    split: str = "train"
    clean: bool = True
    samples: int = 128
    name: str = "vqav2"


@dataclass(frozen=True)
class PublishedQuestionsOptions:
    """What the three data sets share; the defaults are those that BLIP-2 was published with.

    Attributes:
        path: folder with the published files and pictures; null for the hub.
        limit: number of questions, evenly spaced; null for all.
        batch_size: questions per generation; changes nothing beyond rounding.
        beams: width of the beam search; 1 is greedy.
        max_new_tokens: length of the longest answer, in tokens.
        length_penalty: exponent of the length in the score of a beam; below 0 prefers short answers.
        clean: ask in lower case and without most punctuation, as LAVIS does.
        name: what logs and result files call it.
    """

    path: str | None = None
    limit: int | None = None
    batch_size: int = 64
    beams: int = 5
    max_new_tokens: int = 10
    length_penalty: float = -1.0
    clean: bool = True
    name: str = ""


@dataclass(frozen=True)
class VqaV2TaskOptions(PublishedQuestionsOptions):
    """VQA accuracy on VQAv2.

    Attributes:
        split: val, or test-dev or test, whose answers are not public: the run writes a file for the EvalAI
            server instead of an accuracy.
        answer_list: a JSON list of answers in the folder, of which the model chooses (how BLIP is measured);
            null lets it write its own.
        k_test: how many answers of the list are scored to their end: those with the likeliest first tokens.
    """

    split: str = field(default="val", metadata={"choices": ("val", "test-dev", "test")})
    answer_list: str | None = None
    k_test: int = 128
    name: str = "vqav2"


@dataclass(frozen=True)
class OkVqaOptions(PublishedQuestionsOptions):
    """VQA accuracy on OK-VQA's validation split.

    Attributes:
        lemmatize: reduce nouns and verbs of answers to their base forms before they are compared, as for
            BLIP-2's published figure.
    """

    lemmatize: bool = False
    name: str = "okvqa"


@dataclass(frozen=True)
class GqaOptions(PublishedQuestionsOptions):
    """Exact match on GQA's balanced testdev split."""

    name: str = "gqa"
