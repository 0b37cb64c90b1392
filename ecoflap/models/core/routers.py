"""Find the few weights that choose: routers, which experts a token reaches, and indexers, which tokens are
attended to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

# In other models ``gate`` belongs to an attention or an MLP, so it counts only next to experts; ``gate_proj``
# is half of an MLP.
ROUTER = re.compile(r"(^|_)router(_|$)|^shared_experts?_gate$")
GATE_NEXT_TO_EXPERTS = "gate"
INDEXER = re.compile(r"(^|_)indexer(_|$)")


def routers(module: nn.Module) -> Iterator[nn.Module]:
    """Every router and shared-expert gate of a model, and the modules inside them; some occur twice."""
    for parent in module.modules():
        children = dict(parent.named_children())
        has_experts = any("expert" in name for name in children)
        for name, child in children.items():
            if ROUTER.search(name) or (has_experts and name == GATE_NEXT_TO_EXPERTS):
                yield from child.modules()


def indexers(module: nn.Module) -> Iterator[nn.Module]:
    """Every indexer of sparse attention, such as DeepSeek-V3.2's, and the modules inside them.

    Only the order of its outputs counts. No loss has a gradient with respect to it, and a token that it
    doesn't choose is lost to attention.
    """
    for name, child in module.named_modules():
        if INDEXER.search(name.rpartition(".")[2]):
            yield from child.modules()


def selecting(module: nn.Module) -> dict[nn.Module, str]:
    """{module of a router or an indexer: which of the two}; their weights stay dense."""
    return {**dict.fromkeys(routers(module), "router"), **dict.fromkeys(indexers(module), "indexer")}
