"""REAP against a loop over tokens and experts, and its models against experts that are never chosen."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import ecoflap
from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError
from ecoflap.models.core.losses import counting
from ecoflap.models.core.mixtures import Mixture, find_mixtures
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language.causal_lm import language_loss
from ecoflap.models.loading.loader import prunable
from ecoflap.prune.expert_scores import score_experts
from ecoflap.prune.reap import REAP, kept_experts, removed_experts
from ecoflap.prune.whole_model import prune_whole
from ecoflap.storage.checkpoint import save_checkpoint
from ecoflap.storage.masks import MaskFile
from ecoflap.storage.saved_model import open_checkpoint
from tests.distributed.together import together
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
    return REAP(batch_size=2).prune(model, data, share(model, removed))


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


def test_scores_of_several_processes_are_those_of_one() -> None:
    """Each has its samples, and so reaches other experts."""

    def scored() -> list[tuple[list[float], list[int]]]:
        model, data = build("qwen3_moe"), samples(7, 9, 7)
        found = score_experts(model, find_mixtures(model), data, 1).values()
        return [(one.mean.tolist(), one.tokens.tolist()) for one in found]

    expected = scored()
    for found in together(2, scored):
        for (mean, tokens), (one_mean, one_tokens) in zip(found, expected, strict=True):
            assert tokens == one_tokens
            assert mean == pytest.approx(one_mean)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_smaller_model_is_the_dense_one_that_never_chooses_the_removed(family: str) -> None:
    model, dense = build(family), build(family)
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
    assert report.masks.keys() == {layer.name for layer in model.layers}


def test_a_smaller_model_is_smaller_when_it_is_loaded(tmp_path: Path) -> None:
    for family in ("mixtral", "qwen3_moe", "gpt_oss"):
        folder = tmp_path / family
        folder.mkdir()
        model = replace(build(family), processor=None)
        _, report = reap(model, 3, samples(7, 9, 7))
        saved = folder / save_checkpoint(model, report.masks, folder)
        loaded = type(model.module).from_pretrained(saved)
        assert find_experts(loaded) == {EXPERTS - 3}
        torch.testing.assert_close(logits(loaded), logits(model.module), rtol=1e-4, atol=1e-5)
        again = prunable(family, loaded, None, model.loss_function, Selection(None, []))
        assert {one.name: one.size for one in again.layers} == {one.name: one.size for one in model.layers}
        assert set(report.masks) == {one.name for one in model.layers}
        assert again.block_weights() == model.block_weights()
        with open_checkpoint(saved) as checkpoint, MaskFile(saved / "masks.bits") as masks:
            for layer in model.layers:
                parts = [checkpoint.tensor(*rows) for rows in masks.places(layer.name)]
                assert sum(part.numel() for part in parts) == layer.size


def find_experts(module: Any) -> set[int]:
    """Numbers of experts in a model's 3-D parameters."""
    return {len(parameter) for name, parameter in module.named_parameters() if parameter.ndim == 3}


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
def test_groups_of_experts_stay_groups(family: str) -> None:
    settings = {"n_group": 2, "topk_group": 1, "topk_method": "group_limited_greedy"}
    model, dense = build(family, **settings), build(family, **settings)
    allocation, _ = reap(model, 3, samples(7, 9, 7))
    details = allocation.details["experts"]
    for one in details.values():
        assert [sum(expert < EXPERTS // 2 for expert in one["kept"]), len(one["kept"])] == [3, 6]
    with never_choosing(find_mixtures(dense), {name: one["kept"] for name, one in details.items()}):
        torch.testing.assert_close(logits(model.module), logits(dense.module), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="a router needs 4 to choose 2 from"):
        removed_experts(dense, find_mixtures(dense), share(dense, 6))


def test_ties_go_by_number_and_unreached_experts_go_first() -> None:
    assert kept_experts(torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 2.0]), 3).tolist() == [2, 4, 5]
    assert kept_experts(torch.zeros(4), 2).tolist() == [2, 3]
    assert kept_experts(torch.tensor([1.0, 2.0, 4.0, 3.0]), 2, groups=2).tolist() == [1, 2]
    assert kept_experts(torch.tensor([3.0, 1.0]), 0).tolist() == [0, 1]
    model = build("mixtral")
    for one in find_mixtures(model):  # the last three experts are never chosen
        one.router.register_forward_hook(lambda _, __, output: (*output[:2], output[2].clamp_max(4)))
    allocation, _ = reap(model, 3, samples(7, 9, 7))
    for found in allocation.details["experts"].values():
        assert found["scores"][5:] == [0.0] * 3
        assert found["tokens"][5:] == [0] * 3
        assert found["kept"] == [0, 1, 2, 3, 4]


def test_padding_does_not_count() -> None:
    def loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
        with counting(*(batch[name] for name in ("attention_mask",) if name in batch)):
            return language_loss(module, batch, copies)

    found = []
    for padded, batch_size in ((0, 1), (5, 3)):
        model = replace(build("mixtral"), loss_function=loss)
        found.append(score_experts(model, find_mixtures(model), samples(7, 7, 7, padded=padded), batch_size))
    for name, one in found[0].items():
        assert torch.equal(one.tokens, found[1][name].tokens)
        torch.testing.assert_close(one.mean, found[1][name].mean, rtol=1e-4, atol=1e-6)


def test_the_number_of_experts_is_the_largest_not_above_the_target() -> None:
    model = build("mixtral")
    mixtures, total = find_mixtures(model), sum(layer.size for layer in model.layers)
    cost = sum(one.cost for one in mixtures)
    assert cost * EXPERTS == sum(layer.size for layer in model.layers if layer.is_expert)
    for sparsity in (0.0, 0.15, 0.2, 0.25, 0.4, 0.5, 0.6):
        expected = max(count for count in range(EXPERTS) if count * cost <= sparsity * total)
        assert removed_experts(model, mixtures, sparsity) == expected
    allocation, report = prune_whole(model, samples(7, 9), REAP(), 0.4, lambda _: None)
    assert allocation.sparsity <= 0.4 < allocation.sparsity + cost / total
    assert allocation.total == "units"
    assert [one.sparsity for one in report.blocks] == pytest.approx([allocation.sparsity] * 2)
    assert sum(allocation.keep.values()) == sum(layer.size for layer in model.layers)


@pytest.mark.parametrize(
    ("sparsity", "words"),
    [(0.9, "a router needs 2 to choose 2 from; the largest possible is sparsity="), (0.01, "smallest")],
)
def test_a_sparsity_that_is_impossible_is_refused_with_one_that_is_not(sparsity: float, words: str) -> None:
    model = build("mixtral")
    with pytest.raises(UserError, match=words) as refused:
        REAP().check_model(model, sparsity)
    possible = float(str(refused.value).rpartition("sparsity=")[2])
    assert removed_experts(model, find_mixtures(model), possible) == (
        EXPERTS - TOP_K if sparsity > 0.5 else 1
    )


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("llama", "has no experts that share parameters"),
        ("dbrx", "not plain experts of transformers' interface"),
        ("hunyuan_v1_moe", "no router with a weight"),
        ("lfm2_moe", "expert_bias of Lfm2MoeSparseMoeBlock"),
        ("inkling_text", "weight of InklingTopkRouter .* has no entry per expert"),
    ],
)
def test_other_routers_are_refused(family: str, words: str) -> None:
    architecture = next((one for one in DECODERS if one.name == family), None)
    if architecture is None or architecture.missing() is not None:
        pytest.skip(f"no {family}")
    with pytest.raises(UserError, match=words):
        find_mixtures(architecture.prunable())


def test_a_part_of_the_experts_is_refused() -> None:
    module = build("mixtral").module
    part = prunable("mixtral", module, None, language_loss, Selection(None, ["layers.1.mlp.experts"]))
    with pytest.raises(UserError, match=r"leave out experts of model\.layers\.1"):
        REAP().check_model(part, 0.3)


@pytest.mark.parametrize("opened", [True, False])
def test_a_model_in_memory_is_cut_in_place_and_saved(opened: bool, tmp_path: Path) -> None:
    model, other, data = build("qwen3_moe"), build("qwen3_moe"), samples(7, 9, 7)
    reap(other, 3, data)
    given: Any = model
    if not opened:
        given = type(model.module)(model.module.config).eval()
        given.load_state_dict(model.module.state_dict())
    before = sum(layer.size for layer in model.layers)
    result = ecoflap.prune(given, data=data, sparsity=share(model, 3), pruner="reap")
    module = model.module if opened else given
    after = sum(layer.size for layer in ecoflap.load(module).layers)
    assert result.sparsity == pytest.approx(1 - after / before)
    assert f"{1 - after / before:.4f} of the prunable weights are gone with whole experts" in repr(result)
    assert find_experts(module) == {EXPERTS - 3}
    torch.testing.assert_close(logits(module), logits(other.module), rtol=1e-4, atol=1e-5)
    ecoflap.save(result, tmp_path)
    saved = type(module).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(saved), logits(other.module), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("first", ["reap", "wanda"])
@pytest.mark.parametrize("loaded", [True, False])
def test_a_result_whose_experts_were_removed_later_is_not_saved(
    first: str, loaded: bool, tmp_path: Path
) -> None:
    model, data = build("mixtral"), samples(7, 9, 7)
    given: Any = model if loaded else model.module
    less, more = share(model, 1), share(model, 2)
    options = {} if first == "reap" else {"score": "none", "allocation": "water_filling"}
    result = ecoflap.prune(given, data=data, sparsity=less, pruner=first, **options)
    again = ecoflap.prune(given, data=data, sparsity=more, pruner="reap")
    with pytest.raises(UserError, match="experts were removed from the model after it was pruned"):
        ecoflap.save(result, tmp_path / "first")
    ecoflap.save(again, tmp_path / "last")


def test_the_memory_of_removed_experts_is_free_before_the_next_ones_are_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, cut = build("mixtral"), Mixture.cut
    freed: list[str] = []
    left: list[int] = []

    def watched(mixture: Mixture, keep: Tensor) -> None:
        for parameter in mixture.experts.parameters():
            weakref.finalize(parameter.untyped_storage(), freed.append, mixture.name)
        del parameter
        cut(mixture, keep)
        left.append(2 * len(left) + 2 - len(freed))

    monkeypatch.setattr(Mixture, "cut", watched)
    prune_whole(model, samples(7, 9, 7), REAP(), share(model, 3), lambda _: None)
    assert left == [0, 0]
