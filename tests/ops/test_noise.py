import itertools

import torch

from ecoflap.ops.noise import gaussian, seed_for


def test_seeds_are_fixed_forever() -> None:
    # Stored scores depend on these numbers: a change here makes every cache entry wrong.
    assert seed_for(0, "zeroth_order", "layer.weight") == 3626876400121777205
    assert seed_for() == 2858069222894195974


def test_seeds_tell_parts_apart() -> None:
    purposes = [("a", "b"), ("ab",), ("b", "a"), ("a", "b", ""), (1,), ("1",), (11,), (1, 1), ("[1]",), ()]
    for one, other in itertools.combinations(purposes, 2):
        assert seed_for(*one) != seed_for(*other)
    assert all(0 <= seed_for(number) < 2**63 for number in range(100))


def test_same_purpose_same_draw_whatever_happened_before() -> None:
    first = gaussian((3, 5), 0, "probe", "layer", 1)
    torch.rand(7)
    assert torch.equal(first, gaussian((3, 5), 0, "probe", "layer", 1))
    assert not torch.equal(first, gaussian((3, 5), 0, "probe", "layer", 2))


def test_global_generator_is_untouched() -> None:
    before = torch.random.get_rng_state()
    gaussian((100,), "x")
    assert torch.equal(before, torch.random.get_rng_state())


def test_draws_are_single_precision_on_the_device() -> None:
    assert gaussian((64,), "x").dtype == torch.float32
    assert gaussian((2,), "x", device="meta").device.type == "meta"


def test_moments() -> None:
    draw = gaussian((200_000,), "moments").double()
    assert abs(float(draw.mean())) < 0.01
    assert abs(float(draw.std()) - 1) < 0.01
    assert abs(float(draw.pow(4).mean()) - 3) < 0.1
