"""Options of the caption sets: where pictures with captions come from, calibration and tasks."""

from __future__ import annotations

from dataclasses import dataclass, field

from ecoflap.data.captions.layouts import LAYOUTS


@dataclass(frozen=True)
class CaptionSourceOptions:
    """Where pictures with captions come from.

    Attributes:
        path: folder of the data set.
        layout: how the folder is laid out: coco and flickr30k (Karpathy's lists of captions), nocaps, cc3m
            (JSON), cc3m_tsv, or folder (a metadata.jsonl, a metadata.csv or a text per picture beside
            the pictures).
        split: split of the data set.
        name: what logs and result files call it.
    """

    path: str | None = None
    layout: str = field(default="folder", metadata={"choices": tuple(LAYOUTS)})
    split: str = "train"
    name: str = "captions"


@dataclass(frozen=True)
class CaptionsOptions(CaptionSourceOptions):
    """Calibration on pictures of a training split, each with one of its captions.

    Attributes:
        samples: number of pictures.
        prefix: cut each caption after a random word of its first half; the model reads the beginning and
            writes the rest.
    """

    samples: int = 128
    prefix: bool = False


@dataclass(frozen=True)
class RetrievalOptions(CaptionSourceOptions):
    """Retrieval of captions by pictures, and of pictures by captions.

    Attributes:
        split: split of the data set.
        limit: number of pictures, evenly spaced over the split; null for all.
        batch_size: pictures, captions or pairs per forward pass.
        k_test: how many of the best candidates are ranked again by a pass over picture and text together, if
            the model has one; 0 for none.
    """

    split: str = "test"
    limit: int | None = None
    batch_size: int = 64
    k_test: int = 128
    name: str = "retrieval"


@dataclass(frozen=True)
class CaptioningOptions(CaptionSourceOptions):
    """Captions that the model writes, scored against those of people.

    Attributes:
        split: split of the data set.
        prompt: the beginning of every caption, which the model reads as it stands; BLIP has its own,
            ``model.prompt``.
        limit: number of pictures, evenly spaced over the split; null for all.
        batch_size: pictures per generation; changes nothing beyond rounding.
        beams: width of the beam search; 1 is greedy.
        max_new_tokens: length of the longest caption in tokens, without the prompt.
        min_new_tokens: length of the shortest caption in tokens.
    """

    split: str = "test"
    prompt: str = "a photo of"
    limit: int | None = None
    batch_size: int = 16
    beams: int = 3
    max_new_tokens: int = 16
    min_new_tokens: int = 1
    name: str = "captioning"
