"""The keys of shared products name every option that can change them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ecoflap.run.steps.keys import _options_beside_identity
from ecoflap.score.first_order import FirstOrder
from ecoflap.score.local import Local
from ecoflap.score.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class Clipped(FirstOrder):
    """A scorer with an option more, and the identity of its parent."""

    clip: float = 1.0


@dataclass(frozen=True)
class Named(Clipped):
    """One that names its option itself."""

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "clip": self.clip}


def test_an_option_that_a_subclass_adds_counts() -> None:
    assert _options_beside_identity(Clipped(clip=0.5)) == {"clip": 0.5}
    assert _options_beside_identity(Named(clip=0.5)) == {}


def test_options_that_change_no_number_stay_out() -> None:
    assert [_options_beside_identity(scorer()) for scorer in (FirstOrder, Local, ZerothOrder)] == [{}, {}, {}]
