"""The pretend accelerator itself: what it refuses and allows, and that its tensors behave like CUDA's.

Where there is a real one, ``MIXES`` is checked against it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ecoflap.score.first_order import FirstOrder
from ecoflap.score.zeroth_order import ZerothOrder
from tests import tiny
from tests.accelerator.conftest import in_child
from tests.accelerator.state import recording, without_fp64

Place = Callable[[Tensor], Tensor]  # puts a tensor on the device


def _set(tensor: Tensor, index: Any, value: Any) -> None:
    tensor[index] = value


# {what is done: (with ``on`` putting a tensor on the device, whether it is allowed)}
MIXES: dict[str, tuple[Callable[[Place], Any], bool]] = {
    "device and device": (lambda on: on(torch.ones(3)) + on(torch.ones(3)), True),
    "sum with a vector of the CPU": (lambda on: on(torch.ones(3)) + torch.ones(3), False),
    "sum with a scalar of the CPU": (lambda on: on(torch.ones(3)) + torch.tensor(2.0), True),
    "sum with a vector of one of the CPU": (lambda on: on(torch.ones(3)) + torch.ones(1), False),
    "vector of the CPU with a scalar of the device": (
        lambda on: torch.ones(3) * on(torch.tensor(2.0)),
        False,
    ),
    "scalars of both": (lambda on: torch.tensor(2.0) * on(torch.tensor(2.0)), True),
    "in-place sum on the CPU": (lambda on: torch.tensor(2.0).add_(on(torch.tensor(2.0))), False),
    "in-place sum on the device": (lambda on: on(torch.ones(3)).add_(torch.ones(3)), False),
    "product": (lambda on: on(torch.ones(3, 3)) @ torch.ones(3, 3), False),
    "linear with a bias of the CPU": (
        lambda on: nn.functional.linear(on(torch.ones(2, 3)), on(torch.ones(4, 3)), torch.ones(4)),
        False,
    ),
    "embedding with indices of the CPU": (
        lambda on: nn.functional.embedding(torch.tensor([1]), on(torch.ones(4, 3))),
        False,
    ),
    "concatenation": (lambda on: torch.cat([on(torch.ones(3)), torch.ones(3)]), False),
    "stack of scalars": (lambda on: torch.stack([on(torch.tensor(1.0)), torch.tensor(1.0)]), False),
    "where with a mask of the CPU": (
        lambda on: torch.where(torch.ones(3).bool(), on(torch.ones(3)), on(torch.ones(3))),
        False,
    ),
    "where with a scalar of the CPU": (
        lambda on: torch.where(on(torch.ones(3).bool()), on(torch.ones(3)), torch.tensor(0.0)),
        True,
    ),
    "masked_fill with a mask of the CPU": (
        lambda on: on(torch.ones(3)).masked_fill(torch.ones(3).bool(), 0.0),
        False,
    ),
    "masked_fill with a scalar of the CPU": (
        lambda on: on(torch.ones(3)).masked_fill(on(torch.ones(3).bool()), torch.tensor(0.0)),
        True,
    ),
    "masked_scatter": (
        lambda on: on(torch.zeros(3)).masked_scatter(torch.ones(3).bool(), on(torch.ones(3))),
        False,
    ),
    "masked_select": (lambda on: on(torch.ones(3)).masked_select(torch.ones(3).bool()), False),
    "gather": (lambda on: on(torch.ones(3)).gather(0, torch.tensor([1])), False),
    "index_select": (lambda on: on(torch.ones(3)).index_select(0, torch.tensor([1])), False),
    "scatter": (lambda on: on(torch.zeros(3)).scatter(0, on(torch.tensor([1])), torch.ones(1)), False),
    "index of the CPU": (lambda on: on(torch.ones(3))[torch.tensor([0, 2])], True),
    "mask of the CPU as index": (lambda on: on(torch.ones(3))[torch.tensor([True, False, True])], True),
    "index of the device on the CPU": (lambda on: torch.ones(3)[on(torch.tensor([0, 2]))], False),
    "mask of the device on the CPU": (lambda on: torch.ones(3)[on(torch.tensor([True, False, True]))], False),
    "assignment by an index of the CPU": (
        lambda on: _set(on(torch.ones(3)), torch.tensor([0, 2]), on(torch.zeros(2))),
        True,
    ),
    "assignment of values of the CPU by index": (
        lambda on: _set(on(torch.ones(3)), torch.tensor([0, 2]), torch.zeros(2)),
        False,
    ),
    "assignment of a scalar of the CPU by index": (
        lambda on: _set(on(torch.ones(3)), torch.tensor([0, 2]), torch.tensor(0.0)),
        True,
    ),
    "assignment of values of the CPU by slice": (
        lambda on: _set(on(torch.ones(3)), slice(2), torch.zeros(2)),
        True,
    ),
    "copy_ to the device": (lambda on: on(torch.ones(3)).copy_(torch.zeros(3)), True),
    "copy_ to the CPU": (lambda on: torch.ones(3).copy_(on(torch.zeros(3))), True),
    "equal": (lambda on: torch.equal(on(torch.ones(3)), torch.ones(3)), False),
    "cross entropy with labels of the CPU": (
        lambda on: nn.functional.cross_entropy(on(torch.ones(1, 3)), torch.tensor([1])),
        False,
    ),
    "lerp": (lambda on: on(torch.ones(3)).lerp(torch.ones(3), 0.5), False),
    "list of tensors": (lambda on: torch._foreach_add([on(torch.ones(3))], [torch.ones(3)]), False),
    "loss of both": (lambda on: nn.functional.mse_loss(on(torch.ones(3)), torch.ones(3)), False),
    "generator of the CPU": (lambda on: on(torch.ones(3)).normal_(generator=torch.Generator()), False),
    "numpy": (lambda on: on(torch.ones(3)).numpy(), False),
    "array": (lambda on: memoryview(__import__("numpy").asarray(on(torch.ones(3)))), False),
    "tolist": (lambda on: on(torch.ones(3)).tolist(), True),
    "pinning": (lambda on: on(torch.ones(3)).pin_memory(), False),
    "weight of the CPU for a parameter": (
        lambda on: setattr(nn.Linear(2, 2).weight, "data", on(torch.ones(2, 2))),
        True,
    ),
}


def outcomes(to: str) -> dict[str, bool]:
    """Which of the mixes a device allows."""
    allowed = {}
    for name, (work, _) in MIXES.items():
        try:
            work(lambda tensor: tensor.to(to))
            allowed[name] = True
        except (RuntimeError, TypeError):
            allowed[name] = False
    return allowed


def test_mixes_are_refused_as_cuda_refuses_them() -> None:
    assert in_child(outcomes, "npy") == {name: allowed for name, (_, allowed) in MIXES.items()}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_refuses_the_same() -> None:
    assert outcomes("cuda") == {name: allowed for name, (_, allowed) in MIXES.items()}


def test_new_tensors_are_where_they_should_be() -> None:
    def places() -> list[bool]:
        on = torch.ones(2, 3).to("npy")
        there = [
            torch.zeros(3, device="npy"),
            torch.tensor([1.0], device="npy"),
            torch.arange(3, device=on.device),
            torch.ones_like(on),
        ]
        there += [
            on.new_zeros(3),
            on.new_tensor([1.0]),
            on[0],
            on.sum(),
            on.topk(1).values,
            nn.functional.one_hot(on[0].long(), 4),
        ]
        there += [on.float(), on.half(), on.cpu().to(on)]
        here = [
            torch.zeros(3),
            on.cpu(),
            on.to("cpu"),
            torch.zeros_like(on, device="cpu"),
            torch.tensor(on.tolist()),
            torch.arange(on.sum()),
            torch.full((2,), on.sum()),
        ]
        return [tensor.device.type == "npy" for tensor in there] + [
            tensor.device.type == "cpu" for tensor in here
        ]

    assert all(in_child(places))


def test_modules_and_memory() -> None:
    def work() -> None:
        tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        tied[1].weight = tied[0].weight
        parameter = tied[0].weight
        tied.to("npy")
        assert tied[0].weight is tied[1].weight is parameter, "the same parameters, as on CUDA"
        assert {
            tensor.device.type for tensor in (*tied.state_dict().values(), *copy.deepcopy(tied).parameters())
        } == {"npy"}
        other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).to("npy")
        other.load_state_dict({name: tensor.cpu() for name, tensor in tied.state_dict().items()})
        assert torch.equal(other[0].weight, parameter)
        base = torch.zeros(3, device="npy")
        base[1:].add_(1)
        assert base.tolist() == [0, 1, 1]
        copied = base.to("cpu")
        copied.add_(1)
        assert base.tolist() == [0, 1, 1], "a move is a copy"
        assert base.to("npy") is base
        parameter.data = torch.zeros(3, 3)
        assert parameter.device.type == "cpu"
        with torch.device("meta"):
            assert nn.Linear(2, 2).weight.is_meta
        pinned = torch.ones(3).pin_memory()
        assert pinned.is_pinned()
        assert pinned.to("npy", non_blocking=True).device.type == "npy"

    in_child(work)


def test_gradients_cross_the_devices() -> None:
    def work() -> list[float]:
        inputs = torch.ones(3, requires_grad=True)
        weight = torch.full((3,), 2.0, device="npy", requires_grad=True)
        product = checkpoint(
            lambda one: one.to("npy") * weight + torch.zeros(3, device=weight.device),
            inputs,
            use_reentrant=False,
        )
        product.cpu().sum().backward()
        assert inputs.grad is not None
        assert weight.grad is not None
        assert (inputs.grad.device.type, weight.grad.device.type) == ("cpu", "npy")
        optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0)
        nn.utils.clip_grad_norm_([weight], 1.0)
        optimizer.step()
        return [*inputs.grad.tolist(), *weight.tolist()]

    assert in_child(work) == pytest.approx([2.0, 2.0, 2.0, 1.9, 1.9, 1.9])


def test_a_mix_inside_a_backward_pass_is_found() -> None:
    def work() -> str:
        weight = torch.ones(3, device="npy", requires_grad=True)
        weight.register_hook(lambda gradient: gradient * torch.ones(3))
        with pytest.raises(RuntimeError) as raised:
            (weight * 2).sum().backward()
        return str(raised.value)

    assert "on the CPU" in in_child(work)


def test_files_and_double_precision(tmp_path: Path) -> None:
    def work() -> None:
        save_file({"weight": torch.arange(3.0, device="npy")}, tmp_path / "file.safetensors")
        with without_fp64(), pytest.raises(TypeError, match="float64"):
            torch.ones(3, device="npy").double()

    in_child(work)
    assert load_file(tmp_path / "file.safetensors")["weight"].tolist() == [0, 1, 2]


def test_autocast_takes_the_dtype() -> None:
    def dtypes() -> list[torch.dtype]:
        layer, inputs = nn.Linear(3, 3).to("npy"), torch.ones(1, 3, device="npy")
        with torch.autocast("npy", dtype=torch.bfloat16):
            inside = [layer(inputs).dtype, checkpoint(layer, inputs, use_reentrant=False).dtype]
            with torch.autocast("npy", enabled=False):
                inside.append(layer(inputs).dtype)
        return [*inside, layer(inputs).dtype]

    assert in_child(dtypes) == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]


def test_events_are_in_order() -> None:
    def work() -> list[tuple[str, str]]:
        with recording() as events:
            on = torch.ones(3).to("npy")
            (on + 1).sum().item()
            torch.zeros(3).copy_(on, non_blocking=True)
        return [(event.kind, event.what) for event in events]

    computed = [
        ("compute", "aten.add.Tensor"),
        ("compute", "aten.sum.default"),
        ("wait", "aten._local_scalar_dense.default"),
    ]
    assert in_child(work) == [("copy", "(3,) to npy"), *computed, ("copy", "(3,) to cpu")]


@pytest.mark.parametrize(
    "scorer",
    [FirstOrder(samples=2), ZerothOrder(samples=2, probe="derivative")],
    ids=lambda scorer: scorer.name,
)
def test_the_host_does_not_wait_inside_a_backward_pass(scorer: Any) -> None:
    def waits() -> list[str]:
        model = tiny.build("llama")
        model.module.to("npy")
        with recording() as events:
            scorer(model, tiny.samples("llama"), 0)
        inside, found = False, []
        for event in events:
            inside = event.what == "begin" if event.kind == "backward" else inside
            found += [event.what] if inside and event.kind == "wait" else []
        assert any(event.kind == "backward" for event in events)
        return found

    assert in_child(waits) == []
