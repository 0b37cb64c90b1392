"""Find the routers of a mixture of experts: the few weights that decide which experts a token reaches."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

# In other models ``gate`` belongs to an attention or an MLP, so it counts only next to experts; ``gate_proj``
# is half of an MLP.
ROUTER = re.compile(r"(^|_)router(_|$)|^shared_experts?_gate$")
GATE_NEXT_TO_EXPERTS = "gate"


def routers(module: nn.Module) -> Iterator[nn.Module]:
    """Every router and shared-expert gate of a model, and the modules inside them; some occur twice."""
    for parent in module.modules():
        children = dict(parent.named_children())
        has_experts = any("expert" in name for name in children)
        for name, child in children.items():
            if ROUTER.search(name) or (has_experts and name == GATE_NEXT_TO_EXPERTS):
                yield from child.modules()
