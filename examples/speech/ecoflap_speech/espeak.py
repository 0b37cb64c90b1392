"""A program of its own that lets eSpeak NG (package ``espeakng-loader``) read texts into wav files.

``python espeak.py < JOBS`` with a JSON list of [text, voice, wav file]. The engine's sound depends on what it
spoke before in the same process; in a process of its own the same jobs always make the same files.
"""

from __future__ import annotations

import ctypes
import json
import sys
import wave
from functools import partial

# Of speak_lib.h: a callback receives the sound, positions count characters, text is UTF-8.
RETRIEVAL, BY_CHARACTER, UTF8 = 1, 1, 1
RECEIVER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


def start() -> tuple[ctypes.CDLL, int]:
    """The engine, and the samples per second that it makes."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    return library, library.espeak_Initialize(RETRIEVAL, 0, espeakng_loader.get_data_path().encode(), 0)


def speak(library: ctypes.CDLL, text: str, voice: str) -> bytes:
    """A text as 16-bit samples."""
    heard: list[bytes] = []
    receiver = RECEIVER(partial(_receive, heard))
    library.espeak_SetSynthCallback(receiver)
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # of the breath in a voice
    encoded = text.encode()
    failed = library.espeak_SetVoiceByName(voice.encode()) or library.espeak_Synth(
        encoded, ctypes.c_size_t(len(encoded) + 1), 0, BY_CHARACTER, 0, UTF8, None, None
    )
    if failed:
        raise SystemExit(f"eSpeak NG could not read {text!r} with the voice {voice} (error {failed})")
    library.espeak_Synchronize()
    return b"".join(heard)


def _receive(heard: list[bytes], address: int | None, count: int, _: int | None) -> int:
    """Store the samples of the engine; returns zero, which lets it continue."""
    if address:
        heard.append(ctypes.string_at(address, 2 * count))
    return 0


def main() -> None:
    """Do the jobs of the standard input."""
    library, rate = start()
    for text, voice, file in json.load(sys.stdin):
        with wave.open(file, "wb") as sound:
            sound.setparams((1, 2, rate, 0, "NONE", ""))
            sound.writeframes(speak(library, text, voice))


if __name__ == "__main__":
    main()
