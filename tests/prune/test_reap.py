"""REAP against a loop over tokens and experts, and its models against experts that are never chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.mixtures import Mixture, find_mixtures
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.loading.loader import Selection, prunable
from ecoflap.prune.reap import REAP, score_experts
from ecoflap.storage.checkpoint import save_checkpoint
from ecoflap.storage.masks import MaskFile
from ecoflap.storage.saved_model import Checkpoint
from tests.experts import as_published, samples
from tests.zoo.decoders import DECODERS

FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "glm4_moe", "deepseek_v2", "deepseek_v3")
EXPERTS, TOP_K = 8, 2
COUNTS = dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), EXPERTS)
pytestmark = pytest.mark.skipif(not hasattr(hf, "GptOssForCausalLM"), reason="experts are modules here")


def build(family: str, **settings: Any) -> PrunableModel:
    """A model of eight experts, of which each token reaches two, in one group unless said otherwise."""
    architecture = next((one for one in DECODERS if one.name == family), None)
    if architecture is None or (reason := architecture.missing()) is not None:
        pytest.skip(f"no {family}" if architecture is None else str(reason))
    chosen = {**COUNTS, "num_experts_per_tok": TOP_K, "n_group": 1, "topk_group": 1, **settings}
    return replace(architecture, settings={**architecture.settings, **chosen}).prunable()


def share(model: PrunableModel, removed: int) -> float:
    """A sparsity that removes so many experts of each layer."""
    cost = sum(one.cost for one in find_mixtures(model))
    return (removed + 0.5) * cost / sum(layer.size for layer in model.layers)


def reap(model: PrunableModel, removed: int, data: CalibrationSet) -> tuple[Any, Any]:
    return REAP(batch_size=2).prune(model, data, share(model, removed), lambda _: None)


def logits(module: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = module(**samples(9).batches(1)[0]).logits
    return found


def by_hand(model: PrunableModel, data: CalibrationSet) -> dict[str, list[float]]:
    """Scores from the experts' classes: each expert alone, with weight 1, on each of its tokens."""
    found = {one.name: [[] for _ in range(one.count)] for one in find_mixtures(model)}  # type: dict[str, list[list[float]]]

    def note(name: str, experts: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> None:
        for token in range(len(index)):
            for chosen, gate in zip(index[token].tolist(), weights[token].tolist(), strict=True):
                one = torch.tensor([[chosen]])
                output = type(experts).forward(experts, hidden[token : token + 1], one, torch.ones(1, 1))
                found[name][chosen].append(gate * float(output.norm()))

    handles = [
        one.experts.register_forward_pre_hook(
            lambda experts, given, name=one.name: note(name, experts, *given)
        )
        for one in find_mixtures(model)
    ]
    with as_published(model.module), torch.no_grad():
        for batch in data.batches(1):
            model.module(**batch)
    for handle in handles:
        handle.remove()
    return {
        name: [sum(values) / len(values) if values else 0.0 for values in each]
        for name, each in found.items()
    }


@contextmanager
def never_choosing(mixtures: list[Mixture], kept: dict[str, list[int]]) -> Iterator[None]:
    """Give the router logits of all other experts the value -inf in this context."""
    gone = {}
    for one in mixtures:
        out = [index for index in range(one.count) if index not in kept[one.name]]
        gone[id(one.router.weight)] = out
        if isinstance(bias := getattr(one.router, "e_score_correction_bias", None), Tensor):
            bias[out] = -torch.inf
    plain = nn.functional.linear

    def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        output = plain(inputs, weight, bias)
        if id(weight) in gone:
            output[..., gone[id(weight)]] = -torch.inf
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "linear", linear)
        yield


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_a_loop_over_tokens_and_experts(family: str) -> None:
    model, data = build(family), samples(7, 9, 7)
    expected = by_hand(model, data)
    found = score_experts(model, find_mixtures(model), data, 2)
    assert expected
    assert any(max(scores) > 0 for scores in expected.values())
    assert {name: one.mean.tolist() for name, one in found.items()} == {
        name: pytest.approx(scores, rel=1e-4) for name, scores in expected.items()
    }
    assert all(int(one.tokens.sum()) == TOP_K * (7 + 9 + 7) for one in found.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_smaller_model_is_the_dense_one_that_never_chooses_the_removed(
    family: str, tmp_path: Path
) -> None:
    model, dense = replace(build(family), processor=None), build(family)
    allocation, report = reap(model, 3, samples(7, 9, 7))
    details = allocation.details["experts"]
    for one in details.values():
        order = sorted(range(EXPERTS), key=lambda expert: (one["scores"][expert], expert))
        assert one["kept"] == sorted(order[3:])
    before = logits(dense.module)
    with never_choosing(find_mixtures(dense), {name: one["kept"] for name, one in details.items()}):
        expected = logits(dense.module)
    assert not torch.allclose(expected, before, atol=1e-3), "the removed experts were never chosen"
    torch.testing.assert_close(logits(model.module), expected, rtol=1e-4, atol=1e-4)
    with as_published(model.module):
        torch.testing.assert_close(logits(model.module), expected, rtol=1e-4, atol=1e-4)
    names = {layer.name: layer.size for layer in model.layers}
    loaded = type(model.module).from_pretrained(tmp_path / save_checkpoint(model, report.masks, tmp_path))
    assert torch.equal(logits(loaded), logits(model.module)) or torch.allclose(
        logits(loaded), logits(model.module), atol=1e-5
    )
    again = prunable(family, loaded, None, model.loss_function, Selection(None, []))
    assert (
        {layer.name: layer.size for layer in again.layers}
        == names
        == {name: math for name, math in names.items() if name in report.masks}
    )
    assert again.block_weights() == model.block_weights()
    assert all(mask.all() for mask in report.masks.values())
    with (
        Checkpoint(tmp_path / "checkpoint") as checkpoint,
        MaskFile(tmp_path / "checkpoint" / "masks.safetensors") as masks,
    ):
        for layer in model.layers:
            parts = [checkpoint.tensor(*rows) for rows in masks.places(layer.name)]
            assert sum(part.numel() for part in parts) == layer.size
