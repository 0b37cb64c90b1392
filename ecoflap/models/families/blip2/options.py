"""Options of BLIP-2."""

from __future__ import annotations

from dataclasses import dataclass

from ecoflap.models.loading.options import PretrainedOptions


@dataclass(frozen=True)
class Blip2Options(PretrainedOptions):
    """BLIP-2 that answers questions and writes captions.

    Attributes:
        prompt: template of a question, with one ``{}``.
        loss: answer, or a function by its dotted path.
        lavis_checkpoint: a file in LAVIS' format whose weights, all or some, replace those of ``path``: a
            pruned model of the paper's authors.
        vision_from: checkpoint folder of another BLIP-2 whose (pruned) vision tower is used.
        language_from: checkpoint folder of another BLIP-2 whose (pruned) language model is used.
        save_lavis: write the pruned weights in LAVIS' format too, as ``lavis.pth`` beside the checkpoint's
            other files.
    """

    name: str = "blip2"
    prompt: str = "Question: {} Short answer:"
    loss: str = "answer"
    lavis_checkpoint: str | None = None
    vision_from: str | None = None
    language_from: str | None = None
    save_lavis: bool = False


@dataclass(frozen=True)
class Blip2ItmOptions(PretrainedOptions):
    """BLIP-2's first stage, which finds pictures and texts.

    Attributes:
        loss: match_and_contrastive, match, contrastive, or a function by its dotted path.
        vision_from: checkpoint folder of another BLIP-2 whose (pruned) vision tower is used.
    """

    name: str = "blip2_itm"
    loss: str = "match_and_contrastive"
    vision_from: str | None = None
