"""A harness beside the other processes of a run."""

from __future__ import annotations

from contextlib import AbstractContextManager


def alone() -> AbstractContextManager[None]:
    """Let a harness find a single process in the environment, in a context.

    Each process of a run evaluates whole tasks. From what a launcher sets, a harness would divide the
    examples of a task among the processes once more, or return results in the first one of a node alone.
    """
    from accelerate.utils import patch_environment

    context: AbstractContextManager[None] = patch_environment(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    return context
