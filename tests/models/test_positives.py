"""Samples of a batch that show the same are positives: against loops, and where nothing repeats, against
the loss without them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from ecoflap.data.batch import Batch
from ecoflap.models.core.encoding import pad_together
from ecoflap.models.core.losses import contrastive_loss
from ecoflap.models.core.positives import find_positives, image_text_positives, nearest_negatives
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.families.blip import retrieval as blip_retrieval
from ecoflap.models.families.blip2 import matching as blip2_itm
from tests import tiny

# Which picture and which text each sample has.
TIES = {
    "none": ("abcde", "abcde"),
    "texts": ("abcde", "aabca"),
    "pictures": ("abacb", "abcde"),
    "both": ("abacd", "abbcd"),
    "all texts": ("abcde", "aaaaa"),
    "all the same": ("aaaaa", "aaaaa"),
    "one sample": ("a", "a"),
}
FAMILIES = ("blip_retrieval", "blip2_itm", "clip")


def pictures_and_texts(family: str, ties: str) -> Batch:
    """A batch of the samples that ``TIES`` asks for."""
    batch = tiny.samples(family).batches(5)[0]
    pictures, texts = (["abcde".index(letter) for letter in letters] for letters in TIES[ties])
    return {name: tensor[pictures if name == "pixel_values" else texts] for name, tensor in batch.items()}


def slow_right(batch: Batch) -> list[list[int]]:
    """The positives of each sample, in order."""
    texts = [
        (ids.tolist(), mask.tolist())
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    pictures, all_of_them = batch["pixel_values"], range(len(texts))
    return [
        [j for j in all_of_them if texts[i] == texts[j] or torch.equal(pictures[i], pictures[j])]
        for i in all_of_them
    ]


def slow_contrast(similarity: Tensor, right: list[list[int]]) -> Tensor:
    """Of similarities [pictures, texts], one picture and one text at a time."""
    losses = []
    for i, partners in enumerate(right):
        picture = [-(similarity[i, j] - similarity[i].logsumexp(0)) for j in partners]
        text = [-(similarity[j, i] - similarity[:, i].logsumexp(0)) for j in partners]
        losses.append((sum(picture) + sum(text)) / len(partners) / 2)
    return torch.stack([torch.as_tensor(loss) for loss in losses])


def slow_wrong(right: list[list[int]]) -> list[int | None]:
    """The nearest sample before each one that is no right partner of it; the last one stands before the
    first.
    """
    count = len(right)
    return [
        next((j for back in range(1, count) if (j := (i - back) % count) not in right[i]), None)
        for i in range(count)
    ]


def slow_match(model: PrunableModel, batch: Batch) -> Tensor:
    """One pair at a time, from the transformers model's own head."""

    def surprise(text: int, picture: int, together: int) -> Tensor:
        pair = {
            "pixel_values": batch["pixel_values"][picture][None],
            **{name: batch[name][text][None] for name in ("input_ids", "attention_mask")},
        }
        return -logits_of_pair(model, pair).log_softmax(dim=-1)[0, together]

    losses = []
    for text, picture in enumerate(slow_wrong(slow_right(batch))):
        right = surprise(text, text, 1)
        losses.append(right if picture is None else (right + surprise(text, picture, 0)) / 2)
    return torch.stack(losses)


def logits_of_pair(model: PrunableModel, pair: Batch) -> Tensor:
    module: Any = model.module
    if model.name == "blip_retrieval":
        found: Tensor = module(**pair, use_itm_head=True).itm_score
    else:
        found = module(**pair, use_image_text_matching_head=True).logits_per_image
    return found


def similarity(model: PrunableModel, batch: Batch) -> Tensor:
    """Scaled similarities [pictures, texts] from the transformers model's own contrast."""
    module: Any = model.module
    if model.name == "clip":
        return module(**batch).logits_per_image  # type: ignore[no-any-return]
    if model.name == "blip_retrieval":
        return module(**batch, use_itm_head=False).itm_score / blip_retrieval.TEMPERATURE  # type: ignore[no-any-return]
    return module(**batch, use_image_text_matching_head=False).logits_per_image / blip2_itm.TEMPERATURE  # type: ignore[no-any-return]


LOSSES: dict[str, Any] = {"blip_retrieval": blip_retrieval.LOSSES, "blip2_itm": blip2_itm.LOSSES}


def loss(model: PrunableModel, batch: Batch, name: str, copies: int = 1) -> Tensor:
    found: Tensor = (
        model.loss(batch, copies)
        if model.name == "clip"
        else LOSSES[model.name][name](model.module, batch, copies)
    )
    return found


@torch.no_grad()
@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_contrast_has_all_right_partners_for_its_target(family: str, ties: str) -> None:
    model, batch = tiny.build(family), pictures_and_texts(family, ties)
    expected = slow_contrast(similarity(model, batch), slow_right(batch))
    torch.testing.assert_close(loss(model, batch, "contrastive"), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("family", LOSSES)
def test_no_right_partner_is_matched_as_a_wrong_one(family: str, ties: str) -> None:
    model, batch = tiny.build(family), pictures_and_texts(family, ties)
    torch.testing.assert_close(loss(model, batch, "match"), slow_match(model, batch), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_copies_are_compared_apart(family: str, ties: str) -> None:
    """A copy's samples would otherwise be positives of the other copy's."""
    model, batch = tiny.build(family), pictures_and_texts(family, ties)
    twice = {name: torch.cat([tensor, tensor]) for name, tensor in batch.items()}
    once = loss(model, batch, "match_and_contrastive")
    torch.testing.assert_close(
        loss(model, twice, "match_and_contrastive", copies=2), once.repeat(2), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("copies", [1, 2])
def test_where_nothing_repeats_it_is_plain_cross_entropy(copies: int) -> None:
    torch.manual_seed(0)
    first, second = (normalize(torch.randn(6 * copies, 8), dim=-1).requires_grad_() for _ in range(2))
    loss = contrastive_loss(first, second, 10.0, torch.eye(6, dtype=torch.bool), copies)
    parts = [10.0 * one @ other.T for one, other in zip(first.split(6), second.split(6), strict=True)]
    own = torch.arange(6)
    plain = torch.cat(
        [
            (cross_entropy(part, own, reduction="none") + cross_entropy(part.T, own, reduction="none")) / 2
            for part in parts
        ]
    )
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=1e-7)
    slopes, expected = (torch.autograd.grad(value.sum(), [first, second]) for value in (loss, plain))
    torch.testing.assert_close(slopes, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ties", TIES)
def test_partners_against_loops(ties: str) -> None:
    batch = pictures_and_texts("clip", ties)
    slow, right = slow_right(batch), image_text_positives(batch, 1)
    assert [row.nonzero().flatten().tolist() for row in right] == slow
    wrong = [own if other is None else other for own, other in enumerate(slow_wrong(slow))]
    assert nearest_negatives(right, 1).tolist() == wrong
    assert nearest_negatives(right, 2).tolist() == [*wrong, *(len(wrong) + other for other in wrong)]


def test_half_precision_and_one_changed_value() -> None:
    """Rows that differ in any one place are not the same."""
    rows = torch.zeros(7, 3, 2).half()
    for place in range(6):
        rows[place].view(-1)[place] = 1.0
    assert find_positives((rows, rows), 1).equal(torch.eye(7, dtype=torch.bool))
    assert find_positives((rows, rows[:1].expand(7, -1, -1)), 1).all()


@pytest.mark.parametrize("place", [0, 7, 500, 999])
def test_large_rows_are_compared_whole_where_their_samples_agree(place: int) -> None:
    rows = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    rows[1], rows[3] = rows[0], rows[0]
    rows[1, place] += 1
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 3] = expected[3, 0] = True
    assert find_positives((rows, torch.arange(4.0)[:, None]), 1).equal(expected)


def test_padding_is_no_text() -> None:
    """A text that ends with the token that others are filled up with is another one."""
    batch = {
        "pixel_values": torch.arange(2.0)[:, None],
        "input_ids": torch.tensor([[5, 0], [5, 0]]),
        "attention_mask": torch.tensor([[1, 1], [1, 0]]),
    }
    assert image_text_positives(batch, 1).equal(torch.eye(2, dtype=torch.bool))


def test_texts_of_samples_that_are_compared_have_one_length() -> None:
    """What fills them is no token of the text, or statistics would count it."""
    model = tiny.build("clip")
    model.interface.pad_token_id = 7
    texts, picture = ([5, 6], [5, 6, 8]), torch.ones(3)
    samples = [
        {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids)), "pixel_values": picture}
        for ids in texts
    ]
    padded = pad_together(model, samples)
    assert [one["input_ids"].tolist() for one in padded] == [[5, 6, 7], [5, 6, 8]]
    assert [one["attention_mask"].tolist() for one in padded] == [[1, 1, 0], [1, 1, 1]]
    assert all(one["pixel_values"] is picture for one in padded)
