"""The model in memory as a model of lmms-eval, through its own processor and chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ecoflap.data.conversation import Conversation, Picture, Turn
from ecoflap.data.example import Generation
from ecoflap.data.image_in_memory import ImageInMemory
from ecoflap.errors import UserError
from ecoflap.evaluate.inputs import parts
from ecoflap.models.core.encoding import encode_rows
from ecoflap.models.core.logits import finite
from ecoflap.models.core.protocols import Replies
from ecoflap.models.core.prunable import PrunableModel

MOST_TOKENS = 1024  # of an answer, where a task doesn't say; as lmms-eval's own models have it
DELIMITER = "\n\n"  # a task's end of an answer where it has none of its own, which lmms-eval's models ignore
OPTION = "task=lmms_eval"


def harness_model(model: PrunableModel, batch_size: int) -> Any:
    """The model in a class of lmms-eval's.

    Args:
        model: a model that writes about pictures.
        batch_size: questions about one picture per generation.
    """
    from lmms_eval.api.instance import GenerationResult
    from lmms_eval.api.model import lmms

    class InMemory(lmms):  # type: ignore[misc]
        """Answers requests of lmms-eval."""

        is_simple = True
        accelerator = None  # there is one process
        device = model.device

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            """The answers, greedy or by beams as the task says."""
            return answers(model, [(self._row(one, 2), one.args[1]) for one in requests], batch_size)

        def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
            """The loss of each answer: lmms-eval takes the choice with the smallest number.

            Whether it is the greedy answer is not looked at.
            """
            found = [loss_of(model, self._row(one, 2, one.args[1])) for one in requests]
            return [GenerationResult((one, False)) for one in found]  # plain pairs would be made strings

        def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
            """Refuse; tasks of this kind are refused before."""
            raise NotImplementedError

        def _row(self, request: Any, place: int, target: str = "") -> Conversation:
            """The question of a request, with its pictures before the text."""
            text, show, (name, split) = request.args[0], request.args[place], request.args[-2:]
            shown = show(self.task_dict[name][split][request.args[place + 1]])
            return question(text, shown or [], target)

    return InMemory()


def question(text: str, pictures: Sequence[Any], target: str = "") -> Conversation:
    """A question about pictures as a conversation.

    Raises:
        UserError: if one of them is not a picture, such as a video.
    """
    for one in pictures:
        if not hasattr(one, "tobytes"):
            raise UserError(f"{OPTION}: a question shows a {type(one).__name__}; choose tasks about pictures")
    shown = [Picture(ImageInMemory(one)) for one in pictures]
    return Conversation((Turn("user", (*shown, text)), Turn("assistant", (target.strip(),))))


def loss_of(model: PrunableModel, row: Conversation) -> float:
    """The loss per token of the answer of a question, with the token that ends it.

    Raises:
        NumericalError: if it is not finite.
    """
    sample = encode_rows(model, [row], OPTION)[0]
    with torch.no_grad():
        return float(finite(model.loss({name: tensor[None] for name, tensor in sample.items()}))[0])


@torch.no_grad()
def answers(
    model: PrunableModel, asked: Sequence[tuple[Conversation, Mapping[str, Any]]], batch_size: int
) -> list[str]:
    """The model's answers to questions: those about one picture in batches, all others one by one.

    Args:
        model: a model that writes about pictures.
        asked: questions, each with the task's options of generation.
        batch_size: questions about one picture per generation.
    """
    found: dict[int, str] = {}
    for options, places in _grouped([options for _, options in asked]):
        singles = [place for place in places if len(asked[place][0].images) == 1]
        others = [[place] for place in places if len(asked[place][0].images) != 1]
        for batch in [*parts(singles, batch_size), *others]:
            written = _written(model, [asked[place][0] for place in batch], generation_of(options))
            found |= {place: cut(one, options) for place, one in zip(batch, written, strict=True)}
    return [found[place] for place in range(len(asked))]


def _written(model: PrunableModel, rows: Sequence[Conversation], generation: Generation) -> list[str]:
    """The answers to questions, see ``Replies``.

    Raises:
        UserError: if the model reads one picture at a time, and a question has none, or several.
    """
    interface = model.interface
    if isinstance(interface, Replies):
        return interface.reply(model, rows, generation)
    if (count := len(rows[0].images)) != 1:
        raise UserError(
            f"{OPTION}: a question has {count} pictures, and {model.name} reads one at a time; choose another"
            " task"
        )
    written: list[str] = interface.answer(model, [row.example() for row in rows], generation)
    return written


def _grouped(options: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], list[int]]]:
    """The different options, each with the places where they are."""
    groups: dict[str, tuple[Mapping[str, Any], list[int]]] = {}
    for place, one in enumerate(options):
        groups.setdefault(repr(sorted(one.items(), key=str)), (one, []))[1].append(place)
    return list(groups.values())


def generation_of(options: Mapping[str, Any]) -> Generation:
    """How a task's answers are generated.

    Raises:
        UserError: if the task samples answers, which would differ from run to run.
    """
    if options.get("do_sample") and options.get("temperature", 1.0):
        raise UserError(f"{OPTION}: a task samples its answers; choose one that takes the likeliest")
    return Generation(options.get("num_beams") or 1, options.get("max_new_tokens") or MOST_TOKENS)


def cut(text: str, options: Mapping[str, Any]) -> str:
    """An answer up to the first of the task's own ends."""
    ends = options.get("until") or []
    for end in [ends] if isinstance(ends, str) else ends:
        if end and end != DELIMITER:
            text = text.split(end)[0]
    return text.strip()
