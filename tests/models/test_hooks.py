"""Hooks are removed at the end of their context, also where registering one of them fails."""

from collections.abc import Iterator

import pytest
from torch import nn
from torch.utils.hooks import RemovableHandle

from ecoflap.models.core.hooks import hooks


def test_hooks_end_with_their_context() -> None:
    module = nn.Identity()
    with hooks(module.register_forward_hook(lambda *_: None) for _ in range(2)):
        assert len(module._forward_hooks) == 2
    assert not module._forward_hooks


def test_hooks_before_one_that_fails_are_removed() -> None:
    module = nn.Identity()

    def register() -> Iterator[RemovableHandle]:
        yield module.register_forward_hook(lambda *_: None)
        raise KeyError

    with pytest.raises(KeyError), hooks(register()):
        pass
    assert not module._forward_hooks
