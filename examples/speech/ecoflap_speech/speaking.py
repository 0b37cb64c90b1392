"""Synthesised speech: eSpeak NG reads random sentences from lists of words.

So that a speech model can be tried without any recording. The words of the calibration sentences and of the
held-out ones are different.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from ecoflap.data.calibration_set import draw
from ecoflap.errors import UserError
from ecoflap_speech import espeak

# Lists with | between the entries; places 0, 2, 4, ... are for calibration, places 1, 3, 5, ... are held out.
WHO = (
    "The old teacher|A young painter|My neighbor|The quiet doctor|A tall farmer|The new driver|Her brother|A"
    " busy waiter|The little girl|A retired sailor|My cousin|The careful nurse|A famous singer|The village"
    " baker|His sister|A clever student"
)
DID = (
    "carried|borrowed|painted|dropped|found|sold|cleaned|opened|bought|repaired|lost|moved|hid|washed"
    "|noticed|brought"
)
WHAT = (
    "a wooden chair|the heavy suitcase|two silver spoons|an empty bottle|the broken lamp|a warm blanket|some"
    " fresh bread|the red bicycle|a leather bag|the yellow umbrella|three green apples|an old camera|the"
    " kitchen table|a glass of water|some paper flowers|the small boat"
)
WHEN = (
    "before the rain started.|near the railway station.|on a cold morning.|after the long meeting.|behind the"
    " library.|without saying a word.|for the summer party.|in the middle of the night.|while the children"
    " slept.|next to the river.|on the first of May.|during the storm.|across the street.|because it was"
    " late.|with a friendly smile.|at the end of the road."
)
VOICES = ("en-us", "en-us+f3", "en-us+m3")


def sentences(held_out: bool, count: int, seed: int) -> list[str]:
    """Draw ``count`` different sentences of one half of the words."""
    words = [words.split("|")[int(held_out) :: 2] for words in (WHO, DID, WHAT, WHEN)]
    every = list(product(*words))
    return [" ".join(every[index]) for index in draw(len(every), count, seed)]


def record(texts: Sequence[str], folder: Path) -> list[Path]:
    """Synthesise texts in changing voices, each into a wav file of its own.

    Raises:
        UserError: if the engine is not installed, or fails.
    """
    if importlib.util.find_spec("espeakng_loader") is None:
        raise UserError(
            "there are no recordings, and speech can't be made without the package espeakng-loader; run: make"
            " real-models, or give folders of wav files with calibration.path=FOLDER task.path=FOLDER"
        )
    files = [folder / f"{index:05d}.wav" for index in range(len(texts))]
    jobs = [
        (text, VOICES[index % len(VOICES)], str(file))
        for index, (text, file) in enumerate(zip(texts, files, strict=True))
    ]
    done = subprocess.run(
        [sys.executable, espeak.__file__], input=json.dumps(jobs), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(
            f"eSpeak NG failed ({done.stderr.strip()}); give folders of wav files with"
            " calibration.path=FOLDER task.path=FOLDER"
        )
    return files
