"""``tokens``: which tokens count in the statistics, against whole forward passes that are masked by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import transformers

import ecoflap
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.blocks.token_choice import most_moved
from ecoflap.errors import NumericalError, UserError
from ecoflap.prune.driver import prune
from ecoflap.prune.inputs import measure_dense
from ecoflap.prune.wanda import Wanda
from tests import padding, tiny

if int(transformers.__version__.partition(".")[0]) < 5:
    pytest.skip("the zoo is of models of transformers 5", allow_module_level=True)

from tests.zoo.architecture import IMAGE_TOKEN
from tests.zoo.architectures import ARCHITECTURES

from .by_hand_tokens import MIXED, check, only_mixed, samples
from .test_families import uneven, uniform

CHOICES = ("text", "answer", "atv")


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("family", MIXED)
@pytest.mark.every_run("blip2_t5-answer", "qwen2_5_vl-*", "llava-*", "smolvlm-*", "blip2_opt-text")
def test_equals_masking_whole_forward_passes_by_hand(family: str, choice: str) -> None:
    if (family, choice) == ("blip2_t5", "answer"):
        with pytest.raises(UserError, match="tokens=answer: the calibration samples have no such tokens in"):
            prune(only_mixed(family), samples(family), Wanda(), uniform(only_mixed(family)), 2, tokens=choice)
        return
    check(lambda: only_mixed(family), samples(family), choice, MIXED[family], "wanda")


@pytest.mark.parametrize(
    ("family", "choice"), [("llava", "text"), ("qwen2_5_vl", "atv"), ("blip2_opt", "answer")]
)
@pytest.mark.every_run("llava-text", "blip2_opt-answer")
def test_weights_of_sparsegpt_in_all_towers(family: str, choice: str) -> None:
    check(lambda: tiny.build(family), samples(family), choice, MIXED[family], "sparsegpt")


@pytest.mark.parametrize(
    ("family", "choice", "propagate"),
    [
        ("llava", "atv", "layer"),
        ("llava", "text", "dense"),
        ("qwen2_5_vl", "answer", "layer"),
        ("blip2_opt", "atv", "dense"),
    ],
)
@pytest.mark.every_run("qwen2_5_vl-*", "llava-text-dense")
def test_with_every_propagation(family: str, choice: str, propagate: str) -> None:
    check(lambda: only_mixed(family), samples(family), choice, MIXED[family], "wanda", propagate)


@pytest.mark.parametrize("name", ["qwen3_vl", "hy_v4_vl"])
def test_where_more_passes_between_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen3-VL's DeepStack, whose blocks are captured one by one; HY-V4's several states of a token."""
    architecture = ARCHITECTURES[name]
    if (missing := architecture.missing()) is not None:
        pytest.skip(missing)
    monkeypatch.setattr(tiny, "IMAGE_TOKEN", IMAGE_TOKEN)
    skipped = [r"\.experts\."] if name == "hy_v4_vl" else []  # the reference routes no tokens
    build = partial(architecture.prunable, ["language"], skipped)
    check(build, architecture.samples(), "atv", "language", "wanda")


def counts(family: str, choice: str) -> dict[str, int]:
    """How many tokens count in each layer of the dense model."""
    found = measure_dense(tiny.build(family), samples(family), 2, tokens=choice)
    return {name: int(kept[-1]) for name, kept in found.items()}


@pytest.mark.parametrize("choice", CHOICES)
def test_padding_is_neither_text_nor_visual(choice: str) -> None:
    """Of a loss of one's own, which declares both the kinds of tokens and which of them are real."""
    alone, padded = (
        prune(model, calibration, Wanda(), uniform(model), 2, propagate="pruned", tokens=choice).masks
        for model, calibration in ((padding.model(), samples("llava")), (padding.model(), padding.samples()))
    )
    assert all(torch.equal(alone[name], mask) for name, mask in padded.items())


def test_which_tokens_count() -> None:
    found = {choice: counts("llava", choice) for choice in ("all", *CHOICES)}
    for name in found["all"]:
        numbers = [found[choice][name] for choice in ("all", "text", "answer", "atv")]
        if ".language_model." not in name and "language_model." not in name:
            assert len(set(numbers)) == 1, "in the image tower, all count"
            continue
        every, text, answer, moved = numbers
        assert (every, text, answer) == (4 * 3 + 19, 19, 9)
        assert text < moved < every, "some visual tokens count, and not all"


@pytest.mark.parametrize("choice", CHOICES)
def test_batch_size_and_stored_statistics_change_nothing(choice: str) -> None:
    masks = []
    for size, stored in ((1, False), (3, False), (2, True)):
        model = only_mixed("llava")
        given = measure_dense(model, samples("llava"), size, tokens=choice)
        report = prune(
            model,
            samples("llava"),
            Wanda(),
            uneven(model),
            size,
            propagate="dense",
            tokens=choice,
            recall=(lambda _, given=given: given) if stored else None,
        )
        masks.append(report.masks)
    for other in masks[1:]:
        assert all(torch.equal(other[name], mask) for name, mask in masks[0].items())


def test_the_visual_tokens_that_move_most() -> None:
    visual = torch.tensor([[True, True, True, False, False], [True, True, False, False, False]])
    moved = torch.tensor([[0.2, 0.8, 0.8, 9.0, 9.0], [0.6, 0.1, 9.0, 9.0, 9.0]])
    kinds = [~visual], [visual]
    # The mean is 0.5: one visual token beside two of text, and round(1.5) = 2 beside three.
    expected = torch.tensor([[False, True, False, True, True], [True, True, True, True, True]])
    assert torch.equal(most_moved(*kinds, [moved])[0], expected)
    assert torch.equal(most_moved(*kinds, [0 * moved])[0], ~visual)
    expected = torch.tensor([[False, True, True, True, True], [True, True, True, True, True]])
    assert torch.equal(most_moved(*kinds, [2 * moved + 1])[0], expected), (
        "no more than text, and than there are"
    )
    with pytest.raises(NumericalError, match="not finite"):
        most_moved(*kinds, [moved.where(moved != 0.1, float("nan"))])
    # Padding, one visual token and three of text: the padding is not the second visual one.
    visual, text = (torch.tensor([places]) == 1 for places in ([0, 1, 0, 0, 0], [0, 0, 1, 1, 1]))
    assert torch.equal(most_moved([text], [visual], [torch.ones(1, 5)])[0], visual | text)


def test_in_python() -> None:
    masks = {}
    for tokens in ("all", "text"):
        model = only_mixed("llava")
        found = ecoflap.prune(
            model, data=samples("llava"), sparsity=0.5, score="none", batch_size=2, tokens=tokens
        )
        assert found.record.config["tokens"] == tokens
        masks[tokens] = found.masks
    model = only_mixed("llava")
    expected = prune(model, samples("llava"), Wanda(), uniform(model), 2, tokens="text").masks
    assert all(torch.equal(masks["text"][name], mask) for name, mask in expected.items())
    assert not all(torch.equal(masks["text"][name], mask) for name, mask in masks["all"].items())
    with pytest.raises(UserError, match="tokens=visual is not known; the choices are all, text, answer, atv"):
        ecoflap.prune(model, data=samples("llava"), sparsity=0.5, tokens="visual")
    with pytest.raises(UserError, match="pruner=global_magnitude measures no inputs"):
        ecoflap.prune(model, sparsity=0.5, pruner="global_magnitude", tokens="text")


def test_allocators_in_python_get_what_the_call_says() -> None:
    seen: list[tuple[int, int, str]] = []

    class Noting(WaterFilling):
        def __call__(self, model: Any, scores: Any, sparsity: float, context: Any = None) -> Any:
            seen.append((context.batch_size, context.seed, context.tokens))
            return super().__call__(model, scores, sparsity, context)

    given: Any = {"data": samples("llava"), "sparsity": 0.5, "batch_size": 3, "seed": 7, "tokens": "text"}
    ecoflap.prune(only_mixed("llava"), score="none", allocation=Noting(), **given)
    ecoflap.allocate(only_mixed("llava"), method=Noting(), **given)
    assert seen == [(3, 7, "text")] * 2
