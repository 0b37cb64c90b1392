from typing import Any

import pytest
import torch

from ecoflap.blocks.repeatable import repeatable_modules
from ecoflap.blocks.suffix import SuffixRunner
from ecoflap.errors import UserError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from tests import tiny


@torch.no_grad()
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.every_run("1", *(f"{family}-3" for family in tiny.REPRESENTATIVES))
def test_losses_from_any_block_are_those_of_a_plain_pass(family: str, samples: int) -> None:
    model, batch = tiny.build(family), tiny.samples(family, lengths=(5,) * samples).batches(samples)[0]
    with quiet_forward(model.module):
        expected = model.loss(batch)
        runner = SuffixRunner(model, batch, repeatable_modules(model, batch))
        assert torch.equal(runner.losses, expected)
        for block in model.blocks:
            for copies in (1,) if family in tiny.UNSTACKABLE else (1, 3):
                torch.testing.assert_close(
                    runner.losses_from(block.module, copies),
                    expected.expand(copies, -1),
                    rtol=1e-5,
                    atol=1e-6,
                )


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_change_in_the_suffix_counts_and_one_in_the_prefix_does_not(family: str) -> None:
    model, batch = tiny.build(family), tiny.samples(family).batches(2)[0]
    with quiet_forward(model.module):
        runner = SuffixRunner(model, batch, repeatable_modules(model, batch))
        order = [
            block
            for module in dict.fromkeys(runner.order)
            for block in model.blocks
            if block.module is module
        ]
        assert len(order) == len(model.blocks)
        copies = 1 if family in tiny.UNSTACKABLE else 2
        for place, block in enumerate(order[:-1]):
            weight = block.layers[-1].weight
            weight.mul_(1.5)
            changed = model.loss(batch)
            torch.testing.assert_close(
                runner.losses_from(block.module, copies), changed.expand(copies, -1), rtol=1e-5, atol=1e-6
            )
            if (
                family not in tiny.MATCHING
                # there a tower runs several times, and only what stands before the block's first run is
                # replayed
            ):
                torch.testing.assert_close(
                    runner.losses_from(order[place + 1].module, copies),
                    runner.losses.expand(copies, -1),
                    rtol=1e-5,
                    atol=1e-6,
                )
            if block.name not in tiny.WITHOUT_EFFECT:
                assert not torch.equal(changed, runner.losses)
            weight.div_(1.5)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "blip2_t5"])
def test_only_the_suffix_is_computed(family: str) -> None:
    model, batch = tiny.build(family), tiny.samples(family).batches(2)[0]
    with quiet_forward(model.module):  # a key-value cache would be written by every block
        runner = SuffixRunner(model, batch)
        ran: list[Any] = []
        for block in model.blocks:
            block.layers[0].module.register_forward_hook(lambda module, *_: ran.append(module))
        for place, module in enumerate(runner.order):
            ran.clear()
            runner.losses_from(module, 2)
            expected = [
                block.layers[0].module
                for later in runner.order[place:]
                for block in model.blocks
                if block.module is later
            ]
            assert ran == expected


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "length", "expected"),
    [
        ("llama", 5, ["model.embed_tokens"]),
        (
            "gpt2",
            2,
            ["transformer.wte", "transformer.drop"],
        ),  # not the positions, though with two samples of two tokens they have a batch's shape
        (
            "blip2_t5",
            5,
            [
                "vision_model.embeddings",
                "vision_model.post_layernorm",
                "qformer.layernorm",
                "qformer.dropout",
                "language_projection",
            ],
        ),
    ],
)
def test_embeddings_and_projections_are_not_run_again(family: str, length: int, expected: list[str]) -> None:
    model, batch = tiny.build(family), tiny.samples(family, lengths=(length, length)).batches(2)[0]
    names = {module: name for name, module in model.module.named_modules()}
    with quiet_forward(model.module):
        outer = repeatable_modules(model, batch)
        assert [name for name in expected if name not in {names[module] for module in outer}] == []
        assert not {"lm_head", "transformer.wpe", "language_model.lm_head"} & {
            names[module] for module in outer
        }
        runner = SuffixRunner(model, batch, outer)
        ran: list[str] = []
        inner = [child for module in outer for child in list(module.modules())[1:]]
        for module in inner:
            module.register_forward_hook(lambda module, *_: ran.append(names[module]))
        torch.testing.assert_close(
            runner.losses_from(model.blocks[-1].module, 2), runner.losses.expand(2, -1), rtol=1e-5, atol=1e-6
        )
        assert ran == []


def forwards(model: PrunableModel) -> list[Any]:
    return [block.module.__dict__.get("forward") for block in model.blocks]


def test_forward_of_the_blocks_is_restored() -> None:
    model, batch = tiny.build("blip2_t5"), tiny.samples("blip2_t5").batches(2)[0]
    first = model.blocks[0].module
    original = first.forward
    first.forward = lambda *arguments, **keywords: original(*arguments, **keywords)  # as an offloader does
    before = forwards(model)
    runner = SuffixRunner(model, batch)
    runner.losses_from(model.blocks[-1].module, 2)
    assert forwards(model) == before

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    model.blocks[-1].module.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        runner.losses_from(model.blocks[-1].module, 2)
    assert forwards(model) == before
    assert not any(block.module._forward_hooks for block in model.blocks)


def test_block_that_is_never_reached() -> None:
    model = tiny.build("blip2_opt", towers=["language"])
    batch = tiny.samples("blip2_opt").batches(2)[0]
    runner = SuffixRunner(model, batch)
    runner.outputs.pop(model.blocks[-1].module)
    with pytest.raises(
        UserError, match=r"never reaches language_model\.model\.decoder\.layers\.1, .* leave its tower out"
    ):
        runner.losses_from(model.blocks[-1].module, 2)
