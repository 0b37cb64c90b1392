"""Calibration on speech with transcripts: recordings of a folder, or synthesised sentences."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from ecoflap.data.calibration_set import CalibrationSet, Sample, draw
from ecoflap.data.captions.listed import rows_of
from ecoflap.data.folder import is_hidden, read_text
from ecoflap.data.sources import file_source
from ecoflap.errors import UserError, require_positive
from ecoflap.models.core.losses import IGNORED
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.text_length import require_length
from ecoflap_speech.speaking import record, sentences

TABLE = "metadata.csv"  # with the columns of Hugging Face's AudioFolder
SECONDS = 30  # length of the speech that Whisper reads


@dataclass(frozen=True)
class Utterance:
    """One recording.

    Attributes:
        text: what is said.
        sound: samples from -1 to 1, [samples].
        rate: samples per second.
    """

    text: str
    sound: Tensor
    rate: int


def require_speech_model(model: PrunableModel, option: str) -> None:
    """Refuse a model that reads no speech.

    Raises:
        UserError: if it reads none.
    """
    if not hasattr(model.processor, "feature_extractor"):
        raise UserError(
            f"{option} is speech, and {model.name} hears none; choose another {option.split('=')[0]}, or"
            " model=whisper_tiny_en"
        )


def spoken(held_out: bool, count: int, seed: int) -> list[Utterance]:
    """Synthesised sentences of one half of the words."""
    texts = sentences(held_out, count, seed)
    with TemporaryDirectory() as folder:
        return [
            read_recording(file, text) for file, text in zip(record(texts, Path(folder)), texts, strict=True)
        ]


def recordings(path: str, option: str) -> list[tuple[Path, str]]:
    """The wav files of a folder with their transcripts, from ``metadata.csv`` or a text file beside each.

    Raises:
        UserError: if there are none, or a transcript is missing or empty.
    """
    folder, where = Path(path).expanduser(), f"{option}.path={path}"
    found = _listed(folder, where) if (folder / TABLE).is_file() else _beside(folder, where)
    if empty := next((file for file, text in found if not text), None):
        raise UserError(
            f"{where}: the transcript of {empty.name} is empty; write what is said, or take the recording out"
        )
    return found


def _listed(folder: Path, where: str) -> list[tuple[Path, str]]:
    """The recordings that the table of a folder lists, with their transcripts.

    Raises:
        UserError: if the table is no such table, or a recording is missing.
    """
    try:
        rows = [row for _, row in rows_of(folder / TABLE)]
    except ValueError as error:
        raise UserError(f"{where}: {TABLE}, {error}") from None
    if not rows or not {"file_name", "transcription"} <= rows[0].keys():
        raise UserError(
            f"{where}: {TABLE} must have the columns file_name and transcription, and a row for each"
            " recording"
        )
    listed = [(folder / (row["file_name"] or ""), (row["transcription"] or "").strip()) for row in rows]
    if missing := [file for file, _ in listed if not file.is_file()]:
        raise UserError(
            f"{where}: {len(missing)} of {len(listed)} recordings in {TABLE} are missing, such as"
            f" {missing[0]}; put them there, or take them out of the table"
        )
    return listed


def _beside(folder: Path, where: str) -> list[tuple[Path, str]]:
    """The wav files of a folder with the transcripts beside them.

    Raises:
        UserError: if there are none, or a transcript is missing.
    """
    files = sorted(
        file for file in folder.glob("*") if file.suffix.lower() == ".wav" and not is_hidden(file, folder)
    )
    if not files:
        what = "no wav file in it" if folder.is_dir() else "no such folder"
        raise UserError(
            f"{where}: there is {what}; give a folder of wav files with {TABLE} or a .txt beside each, or"
            " null"
        )
    if silent := next((file for file in files if not file.with_suffix(".txt").is_file()), None):
        raise UserError(
            f"{where}: {silent.name} has no transcript; add {silent.stem}.txt, or a {TABLE} for all"
            " recordings"
        )
    return [(file, read_text(file.with_suffix(".txt")).strip()) for file in files]


def recording_sources(files: Sequence[tuple[Path, str]]) -> frozenset[str]:
    """The source of each recording: its file with links resolved."""
    return frozenset().union(*(file_source(str(file)) for file, _ in files))


def read_recording(file: Path, text: str) -> Utterance:
    """Read a wav file of 16-bit samples, mixed into one channel.

    Raises:
        UserError: if it can't be read, or has another format.
    """
    try:
        with wave.open(str(file)) as sound:
            channels, width, rate, frames, *_ = sound.getparams()
            content = sound.readframes(frames)  # fewer where a pipe wrote the header
    except (OSError, EOFError, wave.Error) as error:
        raise UserError(f"{file} is not a readable wav file ({error}); give 16-bit PCM") from None
    if width != 2:
        raise UserError(f"{file} has samples of {8 * width} bits; convert it to 16-bit PCM")
    if not content or len(content) % (width * channels):
        raise UserError(f"{file} has no sound, or ends within a sample; record or copy it again")
    samples = np.frombuffer(content, "<i2").reshape(-1, channels).mean(axis=1) / 32768
    if len(samples) > SECONDS * rate:
        raise UserError(
            f"{file} lasts {len(samples) / rate:.0f} seconds, and the model hears {SECONDS} at once; cut it"
            " into shorter files"
        )
    return Utterance(text, torch.from_numpy(samples).float(), rate)


def resample(sound: Tensor, rate: int, wanted: int) -> Tensor:
    """The sound at another rate, without the frequencies that the rate can't hold, [samples]."""
    length = round(len(sound) * wanted / rate)
    return torch.fft.irfft(torch.fft.rfft(sound), length) * (length / len(sound))


def encode(model: PrunableModel, utterance: Utterance) -> Sample:
    """Encode one recording: its features, the transcript as decoder input, and its tokens as labels."""
    extractor = model.processor.feature_extractor
    sound = resample(utterance.sound, utterance.rate, extractor.sampling_rate)
    features = extractor(sound.numpy(), sampling_rate=extractor.sampling_rate, return_tensors="pt")[
        "input_features"
    ][0]
    tokens = torch.tensor(model.processor.tokenizer(f" {utterance.text}")["input_ids"])
    require_length(model, len(tokens) - 1, f"the transcript {utterance.text[:40]!r}...")
    labels = tokens[1:].clone()
    labels[0] = IGNORED  # the token for no time stamps is given to the model, not predicted
    return {"input_features": features, "decoder_input_ids": tokens[:-1], "labels": labels}


@dataclass(frozen=True)
class Speech:
    """Recordings of a folder, or synthesised sentences.

    Attributes:
        path: a folder of wav files with transcripts; null for sentences that eSpeak NG speaks.
        samples: number of recordings.
        name: shown in logs and written to result files.
    """

    path: str | None = None
    samples: int = 32
    name: str = "speech"

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples")

    def check_data(self, group: str) -> None:
        """Refuse missing recordings.

        Raises:
            UserError: if recordings are missing.
        """
        if self.path is not None:
            recordings(self.path, group)

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that reads no speech.

        Raises:
            UserError: if the model reads no speech.
        """
        require_speech_model(model, f"calibration={self.name}")

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Draw recordings and encode them.

        Raises:
            UserError: if the model reads no speech, or there are no recordings.
        """
        self.check_model(model)
        if self.path is None:
            return CalibrationSet(
                self.name, tuple(encode(model, one) for one in spoken(False, self.samples, seed))
            )
        files = recordings(self.path, "calibration")
        chosen = [files[index] for index in draw(len(files), self.samples, seed)]
        samples = tuple(encode(model, read_recording(file, text)) for file, text in chosen)
        return CalibrationSet(self.name, samples, recording_sources(chosen))
