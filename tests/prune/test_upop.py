"""UPop against slow, obvious references of its schedule and its choice, and end to end."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ecoflap.errors import UserError
from ecoflap.models.core.units import Units, find_units, total_cost
from ecoflap.prune import upop
from ecoflap.prune.upop import UPop, choose, progress, standardised, update
from tests.distributed.together import together
from tests.tiny import build, samples


def unit(kind: str, count: int, cost: int) -> Units:
    return Units(
        "", kind, count, ((nn.Linear(cost - 1, count), 1),), (nn.Linear(count, 1), 1), lambda _: None
    )


def test_progress_rises_to_one() -> None:
    shares = [progress(index, 7) for index in range(7)]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    assert shares[0] == pytest.approx(math.sin(math.pi / 14))  # sqrt((1 - cos x) / 2) = sin(x / 2)


def test_gradients_are_standardised_among_their_kind() -> None:
    gradients = [torch.tensor([1.0, 2.0]), torch.tensor([100.0, 300.0, 500.0]), torch.tensor([6.0])]
    one, other, third = standardised(gradients, ["attention", "mlp", "attention"])
    attention = torch.cat([one, third])
    assert attention.mean() == pytest.approx(0.0, abs=1e-6)
    assert attention.std() == pytest.approx(1.0)
    assert other.tolist() == pytest.approx([-1.0, 0.0, 1.0])


def test_gradients_that_are_all_the_same_stay_finite() -> None:
    assert torch.isfinite(standardised([torch.ones(3)], ["mlp"])[0]).all()
    assert standardised([torch.ones(1)], ["attention"])[0] == 0, "the only unit of its kind"


def test_the_choice_is_the_closest_prefix_of_the_largest() -> None:
    units = [unit("attention", 3, 7), unit("mlp", 4, 2)]
    scores = [torch.tensor([0.5, -1.0, 0.7]), torch.tensor([0.6, 0.1, -2.0, 0.9])]
    assert total_cost(units) == 29
    everything = sorted(
        (
            (float(score), which, index)
            for which, part in enumerate(scores)
            for index, score in enumerate(part)
        ),
        key=lambda item: -item[0],
    )
    allowed = [item for item in everything if item[1:] not in ((0, 1), (1, 2))]  # the smallest of each stays
    for share in (0.0, 0.1, 0.3, 0.5, 0.9):
        best = min(
            range(len(allowed) + 1),
            key=lambda count: abs(sum(units[which].cost for _, which, _ in allowed[:count]) - share * 29),
        )
        expected = {(which, index) for _, which, index in allowed[:best]}
        going = choose(scores, units, share)
        assert {
            (which, index) for which, part in enumerate(going) for index in part.nonzero().flatten().tolist()
        } == expected


def test_a_unit_on_its_way_out_may_come_back() -> None:
    units, gates = [unit("mlp", 3, 2)], [torch.ones(3, requires_grad=True)]
    for gradient, expected in (([3.0, 1.0, 0.0], [0.5, 1.0, 1.0]), ([0.0, 3.0, 1.0], [1.0, 0.5, 1.0])):
        gates[0].grad = torch.tensor(gradient)
        update(gates, units, 1 / 3, 0.5)
        assert gates[0].tolist() == expected
        assert gates[0].grad is None


@pytest.mark.parametrize("family", ["blip_vqa", "blip_caption", "blip_retrieval"])
def test_it_cuts_the_share_of_weights_that_was_asked_for(family: str) -> None:
    model, calibration = build(family), samples(family, (6, 6, 6, 6))
    sizes = model.sizes
    largest = max(one.cost for one in find_units(model))
    allocation, report = UPop(steps=6, interval=2, batch_size=2, learning_rate=1e-3).prune(
        model, calibration, 0.5
    )
    assert allocation.sizes == sizes
    assert model.sizes == allocation.keep
    assert abs(sum(allocation.keep.values()) - 0.5 * sum(sizes.values())) <= largest / 2
    assert all(mask.all() for mask in report.masks.values())
    assert model.loss(calibration.batches(2)[0]).isfinite().all()


def test_more_than_all_but_a_unit_of_each_part_is_refused_and_no_less() -> None:
    model, calibration = build("blip_vqa"), samples("blip_vqa", (6, 6))
    size, units = sum(model.sizes.values()), find_units(model)
    most = 1 - sum(one.cost for one in units) / size
    with pytest.raises(UserError, match=r"sparsity=0.999: .* removes at most 0\.\d+ of blip_vqa"):
        UPop().check_model(model, 0.999)
    UPop().check_model(model, most)
    allocation, _ = UPop(steps=2, interval=2, batch_size=2).prune(model, calibration, most)
    assert 1 - sum(allocation.keep.values()) / size == pytest.approx(most)


def test_several_processes_are_refused_in_advance() -> None:
    def work() -> None:
        with pytest.raises(UserError, match="searches in one process"):
            UPop().check_model(build("blip_vqa"), 0.3)

    together(2, work)


def test_weights_are_trained_on_each_batch_alone() -> None:
    """In steps so small that the gradients of one batch, seen three times, stay the same."""
    norms: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        values = (value for group in optimizer.param_groups for value in group["params"])
        norms.append(sum(float(value.grad.norm()) for value in values if value.grad is not None))

    hook = register_optimizer_step_pre_hook(note)
    try:
        UPop(steps=3, interval=3, batch_size=2, learning_rate=1e-12).prune(
            build("blip_vqa"), samples("blip_vqa", (6, 6)), 0.3
        )
    finally:
        hook.remove()
    assert norms == [pytest.approx(norms[0], rel=1e-3)] * 3


def test_weights_are_trained_by_adamw_at_a_rate_that_falls_along_a_cosine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upop, "cut_all", lambda *_: None)
    model, other, calibration = build("blip_vqa"), build("blip_vqa"), samples("blip_vqa", (6, 6, 6, 6))
    UPop(steps=4, interval=4, batch_size=2, learning_rate=1e-3, weight_decay=0.3).prune(
        model, calibration, 0.3
    )
    optimizer = torch.optim.AdamW(other.module.parameters(), weight_decay=0.3)
    for step, batch in enumerate(2 * calibration.batches(2)):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + math.cos(math.pi * step / 4)) / 2
        optimizer.zero_grad()
        other.loss(batch).mean().backward()
        optimizer.step()
    expected = dict(other.module.named_parameters())
    for name, weight in model.module.named_parameters():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=2e-5, msg=name)


def test_the_share_of_chosen_units_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[tuple[float, float]] = []

    def watched(gates: Any, units: Any, removed: float, share: float) -> None:
        shares.append((removed, share))
        update(gates, units, removed, share)

    monkeypatch.setattr(upop, "update", watched)
    UPop(steps=6, interval=2, batch_size=2).prune(build("blip_vqa"), samples("blip_vqa", (6, 6)), 0.3)
    rising = [progress(index, 3) for index in range(3)]
    assert shares == [(pytest.approx(0.3 * share), pytest.approx(share)) for share in rising]


def test_the_seed_alone_decides_about_dropout() -> None:
    def cut(seed: int) -> str:
        model = build("blip_vqa")
        for module in model.module.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.1
        before = torch.get_rng_state()
        UPop(steps=4, interval=2, batch_size=2, learning_rate=1e-3).prune(
            model, samples("blip_vqa", (6, 6)), 0.3, seed
        )
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(1)  # leaves another state
        return model.fingerprint()

    assert cut(0) == cut(0) != cut(1)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"steps": 0}, "pruner.steps=0"), ({"interval": 400}, "interval=400"), ({"learning_rate": 0.0}, "rate")],
)
def test_what_cannot_be_is_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        UPop(**options)  # type: ignore[arg-type]


def test_at_most_all_but_one_unit_of_each_go() -> None:
    units = [unit("attention", 2, 5), unit("mlp", 3, 2)]
    going = choose([torch.zeros(2), torch.zeros(3)], units, 1.0)
    assert [int(part.sum()) for part in going] == [1, 2]
    assert all(not part.all() for part in itertools.chain(going))
