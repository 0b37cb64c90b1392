"""Options of BLIP."""

from __future__ import annotations

from dataclasses import dataclass

from ecoflap.models.loading.options import PretrainedOptions

# [ENC], which the published tokenizers leave out: the token behind the one that the decoder starts with
ENC = 30523


@dataclass(frozen=True)
class BlipVqaOptions(PretrainedOptions):
    """BLIP that answers questions.

    Attributes:
        loss: answer, or a function by its dotted path.
        encoder_token: id of the token before a question. The published models were trained with [ENC], which
            transformers does not add; null keeps the tokenizer's [CLS].
        image_size: side of the pictures in pixels; positions are resized (bicubic) where the checkpoint has
            others. Null for the checkpoint's.
    """

    name: str = "blip_vqa"
    loss: str = "answer"
    encoder_token: int | None = ENC
    image_size: int | None = None


@dataclass(frozen=True)
class BlipCaptionOptions(PretrainedOptions):
    """BLIP that writes captions.

    Attributes:
        prompt: what every caption begins with.
        loss: caption, or a function by its dotted path.
    """

    name: str = "blip_caption"
    prompt: str = "a picture of"
    loss: str = "caption"


@dataclass(frozen=True)
class BlipRetrievalOptions(PretrainedOptions):
    """BLIP that finds pictures and texts.

    Attributes:
        loss: match_and_contrastive, match, contrastive, or a function by its dotted path.
        encoder_token: id of the token that a caption begins with when it is read with a picture, [ENC] in the
            published models; null keeps the tokenizer's [CLS].
    """

    name: str = "blip_retrieval"
    loss: str = "match_and_contrastive"
    encoder_token: int | None = ENC
