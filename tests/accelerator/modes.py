"""What follows a program's operations: each kernel is checked, and its results are marked."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.accelerator.methods import moved, pinned
from tests.accelerator.rules import check, check_generator, tensors_in, waits
from tests.accelerator.state import NAME, State, note, note_copy, on_device, place
from tests.accelerator.streams import check_seen, note_issued

FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray)
FROM_NUMBERS = (torch.arange, torch.linspace, torch.full, torch.zeros, torch.ones, torch.empty, torch.eye)
"""They read their arguments as numbers, and make tensors on the CPU also where these are on the device."""
COPY = torch.ops.aten.copy_.default


class Calls(TorchFunctionMode):
    """Which function of PyTorch is running: some make tensors inside, on the device of their arguments.

    Attributes:
        arguments: what it was called with.
        explicit: whether it was told where to make new tensors, or makes them on the CPU.
    """

    arguments: tuple[Any, ...] = ()
    explicit = False

    @classmethod
    def inside(cls) -> bool:
        """Whether it was called with tensors of the device."""
        return any(map(on_device, tensors_in(cls.arguments)))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        before = Calls.arguments, Calls.explicit
        Calls.arguments = (*args, *kwargs.values())
        Calls.explicit = kwargs.get("device") is not None or func in FROM_NUMBERS
        try:
            if func in FROM_DATA and Calls.explicit:  # made on the CPU by PyTorch too, out of sight
                rest = {
                    name: value for name, value in kwargs.items() if name not in ("device", "requires_grad")
                }
                return moved(func(*args, **rest), kwargs["device"]).requires_grad_(
                    kwargs.get("requires_grad", False)
                )
            if func is torch.empty and kwargs.pop("pin_memory", False):
                return pinned(func(*args, **kwargs))
            return func(*args, **kwargs)
        finally:
            Calls.arguments, Calls.explicit = before


class Operations(TorchDispatchMode):
    """Every kernel that runs, with its tensors."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the wrapper that asks costs as much as a small kernel

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        there = check(func, args, kwargs, on_device)
        if (asked := kwargs.get("device")) is not None:
            if asked.type == NAME:
                check_generator(func, kwargs)
                kwargs["device"], there = torch.device("cpu"), True
            elif asked.type == "meta" or Calls.explicit:
                there = False
            else:  # the CPU, which nobody asked for
                there = there or Calls.inside()
        crosses = func is COPY and on_device(args[0]) != on_device(args[1])
        for tensor in tensors_in(args[1:] if func is COPY else (*args, *kwargs.values())):
            check_seen(tensor, there)
        if crosses:
            non_blocking = len(args) > 2 and bool(args[2])
            note_copy(args[0], on_device(args[0]), non_blocking)
            if non_blocking:
                note_issued(args[0])
        elif there and State.events is not None:
            note("wait" if waits(func, args) else "compute", str(func))
        result = func(*args, **kwargs)
        if there and func is not COPY:
            for tensor in tensors_in(result if isinstance(result, (list, tuple)) else (result,)):
                if tensor.layout == torch.strided and not tensor.is_meta:
                    place(tensor)
        return result


def followed(engine: Any) -> Any:
    """The engine of backward passes, in which hooks and recomputed forward passes are followed as well."""

    def run(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        before = Calls.arguments, Calls.explicit
        Calls.arguments, Calls.explicit = (outputs,), False
        note("backward", "begin")
        try:
            with Calls():
                return engine(outputs, *args, **kwargs)
        finally:
            note("backward", "end")
            Calls.arguments, Calls.explicit = before

    return run
