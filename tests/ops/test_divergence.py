import math

import pytest
import torch

from ecoflap.ops import divergence, kl_divergence


def test_the_released_code_of_evopress_finds_the_same() -> None:
    """compute_kl_div of IST-DASLab/EvoPress 50888a0 on three texts, whose last tokens it leaves out."""
    target, logits = torch.randn(2, 3, 7, 50, generator=torch.Generator().manual_seed(3))[:, :, :-1] * 3
    assert float(kl_divergence(logits.flatten(0, 1), target.flatten(0, 1)).mean()) == pytest.approx(
        5.877381324768066, rel=1e-6
    )


def test_one_row_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
    whole = kl_divergence(logits, target)
    monkeypatch.setattr(divergence, "AT_ONCE", 3)
    assert torch.equal(kl_divergence(logits, target), whole)
    for row, q, p in zip(whole.tolist(), logits.softmax(1).tolist(), target.softmax(1).tolist(), strict=True):
        slow = sum(wanted * math.log(wanted / found) for wanted, found in zip(p, q, strict=True))
        assert row == pytest.approx(slow, abs=1e-6)


def test_equal_predictions_have_none_and_nan_shows() -> None:
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(2)).half()
    assert kl_divergence(logits + 1, logits).abs().max() < 1e-2
    other = logits.flip(1)
    assert torch.equal(kl_divergence(other, logits), kl_divergence(other.float(), logits.float()))
    assert kl_divergence(logits, logits).tolist() == [0.0] * 3
    assert kl_divergence(torch.full((1, 6), math.nan), logits[:1]).isnan().all()


def test_a_class_that_both_exclude_adds_nothing() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 7)
    expected = kl_divergence(logits, target)
    closed = torch.full((3, 2), -torch.inf)
    found = kl_divergence(torch.cat([logits, closed], 1), torch.cat([target, closed], 1))
    torch.testing.assert_close(found, expected)
    assert kl_divergence(torch.cat([logits, closed], 1), torch.randn(3, 9)).isinf().all()
