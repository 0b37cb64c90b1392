"""The words of captions, without Java: a short tokenizer in place of Stanford's.

It finds the same words in captions, but knows few abbreviations.
"""

from __future__ import annotations

import re
import unicodedata

WORD = re.compile(
    r"""
    (?:(?<![^\W_])[^\W\d_]\.)(?:[^\W\d_]\.)*                    # u.s.
    | (?:mr|mrs|ms|dr|st|jr|sr|vs|etc)\.
    | \d+(?:[.,:/]\d+)+                                         # 3,000 and 10:30
    | [^\W_]+?(?=n['’]t\b) | n['’]t\b                           # do n't
    | ['’](?:s|m|d|ll|re|ve)\b                                  # it 's
    | [^\W_]+(?:(?:[-/&]|(?<!\d)['’](?!(?:s|m|d|ll|re|ve)\b))[^\W_]+)* # long-haired
    | [!?]+ | [^\w\s]
    """,
    re.VERBOSE,
)
APART = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na"}
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-"}
SOFT_HYPHEN, KEYCAP = "\u00ad", "\u20e3"
VARIATIONS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Characters that choose the shape of the one before."""
DROPPED = frozenset("'`’‘\"“”.?!,:-–—…;")


def simple_words(caption: str) -> str:
    """The caption's words in NFC, as Stanford's tokenizer finds them in captions."""
    text = caption.lower()
    if not text.isascii():
        text = "".join(map(_shown, VARIATIONS.sub("", unicodedata.normalize("NFC", text))))
    found = (text[slice(*match.span())] for match in WORD.finditer("".join(map(_letter, text))))
    words = (BRACKETS.get(word, APART.get(word, word)) for word in found if word not in DROPPED)
    return " ".join(words).replace("’", "'")


def _shown(character: str) -> str:
    """A character; a space for an emoji or a format character such as a joiner, nothing for a soft hyphen."""
    kind = unicodedata.category(character)
    emoji = character == KEYCAP or (character > "\uffff" and kind in ("So", "Sk", "Cn"))
    if character == SOFT_HYPHEN:
        return ""
    return " " if emoji or kind == "Cf" else character


def _letter(character: str) -> str:
    """A character, or a letter for a combining mark: a part of words that is no word character of ``re``."""
    return "ж" if unicodedata.category(character)[0] == "M" else character
