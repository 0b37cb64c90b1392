import pytest
import torch

from ecoflap.errors import UserError
from ecoflap.score import pass_size
from ecoflap.score.pass_size import LiveBytes, PassSize
from ecoflap.score.zeroth_order import ZerothOrder
from tests import tiny

CPU = torch.device("cpu")


def test_live_bytes() -> None:
    with LiveBytes() as live:
        first = torch.zeros(1000)
        second = first + 1
        del first
        third = second[:10].view(2, 5) * 2
        del second
        assert live.alive == third.untyped_storage().nbytes() == 40
    assert live.peak == 8000


def test_the_first_piece_is_measured_and_bounds_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_size, "free_memory", lambda _: 80_000)
    size, done = PassSize(100, CPU), []

    def work(pieces: range) -> None:
        done.append(len(pieces))
        torch.zeros(len(pieces) * 1000)

    list(size.passes(range(25), work))
    assert done == [1, 10, 10, 4]


def test_no_pass_has_more_than_the_limit() -> None:
    done: list[int] = []
    list(PassSize(4, CPU).passes(range(10), lambda pieces: done.append(len(pieces))))
    assert done == [1, 4, 4, 1]


def test_it_gives_way_when_memory_runs_out() -> None:
    size, done = PassSize(8, CPU), []

    def work(pieces: range) -> None:
        if len(pieces) > 3:
            raise torch.OutOfMemoryError("out of memory")
        done.append(len(pieces))

    list(size.passes(range(12), work))
    assert done == [1, 2, 2, 2, 2, 2, 1]


def test_one_piece_that_does_not_fit_says_what_helps() -> None:
    def work(_: range) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    with pytest.raises(UserError, match=r"one pair of probes .* score\.batch_size, or score=first_order"):
        list(PassSize(8, CPU).passes(range(3), work))


def test_other_errors_are_not_taken_for_it() -> None:
    def work(_: range) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(PassSize(8, CPU).passes(range(3), work))


def test_little_memory_changes_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calibration = tiny.build("llama"), tiny.samples("llama")
    plenty = ZerothOrder(samples=5, batch_size=2, eps=0.05)(model, calibration, 0).importance
    monkeypatch.setattr(pass_size, "free_memory", lambda _: 1)
    scarce = ZerothOrder(samples=5, batch_size=2, eps=0.05)(model, calibration, 0).importance
    assert scarce == pytest.approx(plenty, rel=1e-3, abs=1e-4)
