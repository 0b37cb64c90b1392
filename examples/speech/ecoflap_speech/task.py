"""Speech recognition: the loss of the transcript, and the word error rate."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ecoflap.data.calibration_set import Sample
from ecoflap.errors import NumericalError, UserError, require_positive
from ecoflap.evaluate.inputs import parts, spread
from ecoflap.evaluate.prediction_log import IN_MEMORY, PredictionLog
from ecoflap.models.core.losses import IGNORED, token_loss
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.text_length import require_length
from ecoflap.storage.installation import install_extra
from ecoflap_speech.calibration import (
    encode,
    read_recording,
    recording_sources,
    recordings,
    require_speech_model,
    spoken,
)
from ecoflap_speech.whisper import start_tokens

SPOKEN = 24  # sentences, if there are no recordings


@dataclass(frozen=True)
class Speech:
    """Transcribe recordings that are not in the calibration set.

    Attributes:
        path: a folder of wav files with transcripts; null for sentences that eSpeak NG speaks, of other words
            than the calibration set's.
        limit: number of recordings, evenly spaced; null for all, or for 24 sentences.
        batch_size: recordings per forward pass; changes nothing beyond rounding.
        max_new_tokens: length of the longest transcript, in tokens; a damaged model may never end one.
        name: shown in logs and written to result files.
    """

    path: str | None = None
    limit: int | None = None
    batch_size: int = 4
    max_new_tokens: int = 64
    name: str = "speech"

    def __post_init__(self) -> None:
        require_positive("task", self, "limit", "batch_size", "max_new_tokens")

    def check_data(self, group: str) -> None:
        """Refuse missing recordings.

        Raises:
            UserError: if recordings are missing, or the limit is out of range.
        """
        if self.path is not None:
            spread(recordings(self.path, group), self.limit, "recordings")

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that reads no speech, or writes no transcripts of the requested length.

        Raises:
            UserError: if the model reads no speech, or writes no transcripts of that length.
        """
        require_speech_model(model, f"task={self.name}")
        most = self.max_new_tokens + 1  # the decoder reads two tokens before a transcript, and not its last
        require_length(model, most, f"task.max_new_tokens={self.max_new_tokens} takes {most} tokens")

    def load(self, model: PrunableModel) -> SpeechEvaluation:
        """Read the recordings once, for the dense and the pruned model.

        Raises:
            UserError: if the model reads no speech, there are no recordings, or ``jiwer`` is missing.
        """
        self.check_model(model)
        word_error_rate(["a"], ["a"])  # to learn now, and not after the pruning, whether the package is there
        files = None if self.path is None else spread(recordings(self.path, "task"), self.limit, "recordings")
        utterances = (
            spoken(True, self.limit or SPOKEN, seed=0)
            if files is None
            else [read_recording(*each) for each in files]
        )
        texts, samples = [one.text for one in utterances], [encode(model, one) for one in utterances]
        return SpeechEvaluation(self, texts, samples, sources=recording_sources(files or []))


@dataclass
class SpeechEvaluation:
    """The task with its data in memory; call it with a model."""

    task: Speech
    texts: list[str]
    samples: list[Sample]
    transcripts: list[str] = field(default_factory=list)
    sources: frozenset[str] = frozenset()

    def identity(self) -> dict[str, Any]:
        """Everything that the metrics depend on beside the model."""
        digest = hashlib.blake2b("\n".join(self.texts).encode(), digest_size=16)
        for sample in self.samples:
            digest.update(sample["input_features"].numpy().tobytes())
        return {
            "metric": "transcript loss and word error rate",
            "speech": digest.hexdigest(),
            "max_new_tokens": self.task.max_new_tokens,
        }

    @torch.no_grad()
    def __call__(self, model: PrunableModel, prediction_log: PredictionLog = IN_MEMORY) -> dict[str, float]:
        """Word error rate in percent, mean loss in nats per token, and the number of recordings.

        Raises:
            NumericalError: if the loss is NaN.
        """
        module: Any = model.module.eval()

        def hear(part: list[Sample]) -> list[tuple[float, str]]:
            batch = {
                name: tensor.to(model.device)
                for name, tensor in _padded(part, model.processor.tokenizer.pad_token_id).items()
            }
            heard = module.get_encoder()(batch["input_features"].to(next(module.parameters())))
            logits = module(
                encoder_outputs=heard, decoder_input_ids=batch["decoder_input_ids"], use_cache=False
            ).logits
            return list(
                zip(token_loss(logits, batch["labels"]).tolist(), self._transcribe(model, heard), strict=True)
            )

        losses, transcripts = zip(
            *prediction_log.run(parts(self.samples, self.task.batch_size), hear), strict=True
        )
        self.transcripts = list(transcripts)
        loss = sum(losses) / len(losses)
        if loss != loss:
            raise NumericalError(
                f"the loss of {model.name} on this task is NaN; use model.dtype=float32 or bfloat16, or prune"
                " less"
            )
        return {
            "word_error_rate": word_error_rate(self.texts, self.transcripts),
            "loss": loss,
            "recordings": len(self.samples),
        }

    def _transcribe(self, model: PrunableModel, heard: Any) -> list[str]:
        from transformers import GenerationMixin

        module: Any = model.module
        tokenizer, states = model.processor.tokenizer, heard.last_hidden_state
        start = torch.tensor([start_tokens(tokenizer)], device=states.device).expand(len(states), -1)
        everything = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        options = {"max_new_tokens": self.task.max_new_tokens, "do_sample": False}
        # Whisper's own generate is for recordings of more than 30 seconds.
        tokens = GenerationMixin.generate(
            module, encoder_outputs=heard, attention_mask=everything, decoder_input_ids=start, **options
        )
        return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def _padded(samples: list[Sample], padding: int) -> Sample:
    """Pad samples to a batch; padding on the right changes nothing before it."""
    return {
        "input_features": torch.stack([sample["input_features"] for sample in samples]),
        "decoder_input_ids": pad_sequence([sample["decoder_input_ids"] for sample in samples], True, padding),
        "labels": pad_sequence([sample["labels"] for sample in samples], True, IGNORED),
    }


def word_error_rate(texts: list[str], transcripts: list[str]) -> float:
    """Word error rate in percent, after Whisper's own normalisation of case, punctuation and numbers.

    Raises:
        UserError: if ``jiwer`` is missing.
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    try:
        import jiwer
    except ImportError:
        raise UserError(
            f"task=speech counts wrong words with the package jiwer: {install_extra('speech')}"
        ) from None
    clean = EnglishTextNormalizer({})
    return 100 * jiwer.wer([clean(text) for text in texts], [clean(text) for text in transcripts])
