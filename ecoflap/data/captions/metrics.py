"""CIDEr, BLEU, METEOR, ROUGE-L and SPICE, by the scorers that captioning papers use, times 100 as in papers.

The scorers are those of ``pycocoevalcap``. METEOR and SPICE are Java programs, and are left out where they
can't run. Words are split by Stanford's tokenizer, a Java program too, and without Java by ``simple_words``.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ecoflap.data.captions.words import simple_words
from ecoflap.errors import UserError
from ecoflap.storage.installation import install_extra

log = logging.getLogger(__name__)

Words = dict[int, list[str]]
# The names of a scorer's metrics, and the function that computes them.
Scorer = tuple[tuple[str, ...], Callable[[Words, Words], tuple[Any, Any]]]
BLEU = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
MEANS = ("cider", "rouge_l")
"""Metrics that are the mean of a score per picture; CIDEr weighs words by the references alone. BLEU and
METEOR are ratios of sums over all pictures."""
SPICE_MODEL = "stanford-corenlp-3.6.0-models.jar"


def require_scorers(option: str) -> Path:
    """The folder of the package with the scorers.

    Raises:
        UserError: if it is not installed.
    """
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None or not found.submodule_search_locations:
        raise UserError(f"{option} needs the package pycocoevalcap: {install_extra('captions')}")
    return Path(next(iter(found.submodule_search_locations)))


@dataclass(frozen=True)
class CaptionMetrics:
    """The metrics that this machine can compute.

    Attributes:
        java: whether Java programs run.
        spice: whether SPICE's model has been downloaded too.
    """

    java: bool
    spice: bool

    @classmethod
    def here(cls, option: str) -> CaptionMetrics:
        """Find out which metrics can run here, and log those that are left out.

        Raises:
            UserError: if the scorers are not installed.
        """
        folder = require_scorers(option)
        # The tokenizer writes into its own folder.
        java = shutil.which("java") is not None and os.access(folder / "tokenizer", os.W_OK)
        spice = java and (folder / "spice" / "lib" / SPICE_MODEL).is_file()
        if not java:
            log.info(
                "%s: no METEOR and SPICE, and words by a tokenizer of ours: java is not installed, or %s"
                " can't be written to",
                option,
                folder,
            )
        elif not spice:
            log.info(
                "%s: no SPICE, its model has not been downloaded (python -m"
                " pycocoevalcap.spice.get_stanford_models)",
                option,
            )
        return cls(java, spice)

    def identity(self) -> dict[str, Any]:
        """What the metrics depend on."""
        return {
            "tokenizer": "ptb" if self.java else "own",
            "metrics": ["cider", "bleu", "rouge_l", *["meteor"] * self.java, *["spice"] * self.spice],
        }

    def words(self, captions: Sequence[Sequence[str]]) -> Words:
        """The captions of each picture in the scorers' format: lower-case words without punctuation."""
        if not self.java:
            return {index: [simple_words(text) for text in texts] for index, texts in enumerate(captions)}
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

        # One line each, and no empty one: the tokenizer reads lines, and a full stop becomes nothing again.
        rows = {
            index: [{"caption": " ".join(text.split()) or "."} for text in texts]
            for index, texts in enumerate(captions)
        }
        words: Words = PTBTokenizer().tokenize(rows)
        return words

    def scorers(self) -> list[Scorer]:
        """The scorers, CIDEr's first; METEOR's program is started once."""
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge

        found: list[Scorer] = [
            (("cider",), Cider().compute_score),
            (BLEU, partial(Bleu(4).compute_score, verbose=0)),
        ]
        if self.java:
            from pycocoevalcap.meteor.meteor import Meteor

            found.append((("meteor",), Meteor().compute_score))
        found.append((("rouge_l",), Rouge().compute_score))
        return [*found, (("spice",), _spice)] if self.spice else found


def scores(
    scorers: Sequence[Scorer],
    references: Words,
    predictions: Words,
    note: Callable[[str, list[float]], None] = lambda *_: None,
) -> dict[str, float]:
    """Each metric over all pictures, times 100; one that could not be computed is left out.

    Args:
        scorers: see ``CaptionMetrics.scorers``.
        references: the right captions of each picture.
        predictions: one caption of each picture.
        note: called with the name and the pictures' scores of each metric that is their mean.
    """
    found: dict[str, float] = {}
    for names, score in scorers:
        value, of_pictures = score(references, predictions)
        if names[0] in MEANS:
            note(names[0], [float(one) for one in of_pictures])
        found |= {
            name: 100 * float(one)
            for name, one in zip(names, value if isinstance(value, list) else [value], strict=True)
            if one is not None
        }
    return found


def _spice(references: Words, predictions: Words) -> tuple[float | None, Any]:
    """SPICE; None if its old program does not run on the installed Java."""
    from pycocoevalcap.spice.spice import Spice

    try:
        found: tuple[float, Any] = Spice().compute_score(references, predictions)
    except (subprocess.CalledProcessError, OSError) as error:
        log.warning("no SPICE: its program failed (%s); it is made for Java 8", error)
        return None, None
    return found
