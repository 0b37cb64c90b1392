"""Find the few weights of a mixture of experts that decide which experts a token reaches."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

# ``gate`` alone is an attention's or an MLP's in other models, so it counts beside experts only;
# ``gate_proj`` is half of an MLP.
ROUTER = re.compile(r"(^|_)router(_|$)|^shared_experts?_gate$")
GATE_BESIDE_EXPERTS = "gate"


def routers(module: nn.Module) -> Iterator[nn.Module]:
    """Every router and shared-expert gate of a model, and the modules inside them; some come twice."""
    for parent in module.modules():
        children = dict(parent.named_children())
        beside_experts = any("expert" in name for name in children)
        for name, child in children.items():
            if ROUTER.search(name) or (beside_experts and name == GATE_BESIDE_EXPERTS):
                yield from child.modules()
