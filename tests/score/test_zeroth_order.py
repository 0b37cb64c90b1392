import math

import pytest
import torch

from ecoflap.blocks.loss_batches import loss_batches
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import NumericalError, UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import gaussian
from ecoflap.score.first_order import FirstOrder
from ecoflap.score.scores import Scores
from ecoflap.score.zeroth_order import ZerothOrder
from tests import tiny


@torch.no_grad()
def two_forward_passes_per_probe(
    model: PrunableModel, calibration: CalibrationSet, scorer: ZerothOrder, seed: int
) -> dict[str, float]:
    """The same estimate, the slow way: add eps z to the weight, run the model, subtract it, run the model."""
    sums = dict.fromkeys((layer.name for layer in model.layers), 0.0)
    for index, batch in enumerate(loss_batches(model, calibration.take(scorer.samples), scorer.batch_size)):
        for layer in model.layers:
            dense = layer.matrix().clone()
            for draw in range(scorer.noises):
                step = scorer.eps * gaussian(layer.shape, "zeroth_order", seed, index, layer.name, draw)
                layer.write(dense + step)
                plus = model.loss(batch).double().mean()
                layer.write(dense - step)
                minus = model.loss(batch).double().mean()
                layer.write(dense)
                sums[layer.name] += (
                    len(next(iter(batch.values()))) * abs(float(plus - minus)) / (2 * scorer.eps)
                )
    return {
        name: total / len(calibration.take(scorer.samples)) / scorer.noises for name, total in sums.items()
    }


# With a large eps the difference of two losses stands well above their rounding; both sides take the same
# difference.
LARGE = {"samples": 3, "batch_size": 2, "noises": 2, "eps": 0.05}


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.every_run(*tiny.REPRESENTATIVES)
def test_equals_really_moving_the_weights(family: str) -> None:
    model, calibration = tiny.build(family), tiny.samples(family)
    before = model.fingerprint()
    scores = ZerothOrder(**LARGE)(model, calibration, seed=7)
    assert model.fingerprint() == before
    expected = two_forward_passes_per_probe(model, calibration, ZerothOrder(**LARGE), seed=7)
    assert scores.importance == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert list(scores.importance) == list(expected)


@pytest.mark.parametrize("probe", ["layer", "block"])
def test_texts_without_pictures_among_the_samples(probe: str) -> None:
    """A batch that never reaches a tower says that its loss doesn't depend on it."""
    model = tiny.build("llava")
    pictures = tiny.samples("llava").samples
    names = ("input_ids", "attention_mask", "labels")
    texts = [{name: sample[name][:, 4:] for name in names} for sample in pictures[:3]]
    calibration = CalibrationSet("mixed", (*texts, *pictures))
    scorer = ZerothOrder(**{**LARGE, "samples": 8}, probe=probe)
    scores = scorer(model, calibration, seed=7)
    if probe == "layer":
        expected = two_forward_passes_per_probe(model, calibration, scorer, seed=7)
        assert scores.importance == pytest.approx(expected, rel=1e-3, abs=1e-4)
    alone = scorer(model, CalibrationSet("pictures", pictures), seed=7).importance
    counted = {name for name, value in scores.importance.items() if value > 0}
    assert counted == {name for name, value in alone.items() if value > 0}
    assert any(layer.name in counted for layer in model.towers[0].layers)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.every_run(*tiny.REPRESENTATIVES)
def test_probes_share_a_pass_where_samples_stay_apart(family: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        ZerothOrder(samples=2, batch_size=2)(tiny.build(family), tiny.samples(family, lengths=(5, 5)), 0)
    assert ("one probe per pass" in caplog.text) == (family in tiny.UNSTACKABLE)


@pytest.mark.parametrize("family", ["opt", "blip2_t5"])
@pytest.mark.every_run("opt")
def test_samples_per_pass_changes_nothing(family: str) -> None:
    model, calibration = tiny.build(family), tiny.samples(family)
    reference = ZerothOrder(**LARGE, samples_per_pass=1)(model, calibration, 0)
    for size in (7, 1000):
        scores = ZerothOrder(**LARGE, samples_per_pass=size)(model, calibration, 0)
        assert scores.importance == pytest.approx(reference.importance, rel=1e-3, abs=1e-4)
        assert scores.standard_error == pytest.approx(reference.standard_error, rel=1e-3, abs=1e-4)
        assert scores.details == reference.details


def test_restricted_towers_get_the_same_scores() -> None:
    calibration = tiny.samples("blip2_t5")
    whole = ZerothOrder(**LARGE)(tiny.build("blip2_t5"), calibration, 0).importance
    part = ZerothOrder(**LARGE)(
        tiny.build("blip2_t5", towers=["decoder"], skip_layers=("wi_0",)), calibration, 0
    ).importance
    assert part == pytest.approx({name: whole[name] for name in part}, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("probe", ["layer", "derivative"])
def test_only_the_first_samples_are_used(probe: str) -> None:
    model, calibration = tiny.build("opt"), tiny.samples("opt")
    few = ZerothOrder(samples=2, batch_size=1, probe=probe)(model, calibration, 0)
    assert few == ZerothOrder(samples=2, batch_size=1, probe=probe)(model, calibration.take(2), 0)
    assert (
        few.importance != ZerothOrder(samples=3, batch_size=1, probe=probe)(model, calibration, 0).importance
    )


def test_seeds() -> None:
    model, calibration = tiny.build("llama"), tiny.samples("llama")
    torch.manual_seed(0)
    first = ZerothOrder()(model, calibration, 0)
    torch.manual_seed(1)
    assert ZerothOrder()(model, calibration, 0) == first
    assert ZerothOrder()(model, calibration, 1).importance != first.importance


@pytest.mark.parametrize("family", ["llama", "gpt2", "blip2_opt"])
def test_expectation_is_the_gradient_norm(family: str) -> None:
    """|<z, g>| has expectation sqrt(2 / pi) ||g||, and its relative deviation is sqrt(pi / 2 - 1)."""
    model, calibration = (
        tiny.build(family, skip_layers=(r"layers\.0\.",) if family != "gpt2" else (r"h\.0\.",)),
        tiny.samples(family, lengths=(5, 5)),
    )
    draws = 400
    scores = ZerothOrder(batch_size=2, noises=draws, samples_per_pass=1600)(model, calibration, 0)
    norms = FirstOrder("gradient_norm", batch_size=2)(model, calibration, 0).importance
    for name, norm in norms.items():
        expected, deviation = math.sqrt(2 / math.pi) * norm, math.sqrt((1 - 2 / math.pi) / draws) * norm
        assert abs(scores.importance[name] - expected) < 4 * deviation, name
        assert scores.standard_error[name] == pytest.approx(
            deviation, rel=0.2
        )  # 5 deviations of a sample deviation from 400 draws
        assert abs(scores.importance[name] - expected) < 4 * scores.standard_error[name], name


def block_scores(model: PrunableModel, scores: Scores) -> torch.Tensor:
    return torch.tensor(
        [
            sum(scores.importance[layer.name] for layer in block.layers)
            for tower in model.towers
            for block in tower.blocks
        ]
    )


def spearman(first: torch.Tensor, second: torch.Tensor) -> float:
    ranks = torch.stack([first.argsort().argsort(), second.argsort().argsort()]).double()
    return float(torch.corrcoef(ranks)[0, 1])


@pytest.mark.any_release
@pytest.mark.variant
def test_more_draws_rank_the_blocks_more_like_their_gradients() -> None:
    towers = ["vision", "qformer", "encoder", "decoder"]
    model, calibration = tiny.build("blip2_t5", towers=towers), tiny.samples("blip2_t5", lengths=(5, 5))
    exact = block_scores(model, FirstOrder("gradient_norm", batch_size=2)(model, calibration, 0))
    correlation = {}
    for draws in (1, 64):
        scorer = ZerothOrder(batch_size=2, noises=draws, samples_per_pass=1024)
        correlation[draws] = (
            sum(spearman(block_scores(model, scorer(model, calibration, seed)), exact) for seed in range(3))
            / 3
        )
    assert correlation[1] < correlation[64]


@pytest.mark.parametrize("probe", ["layer", "block", "derivative"])
def test_draws_on_the_same_samples_are_no_more_samples(probe: str) -> None:
    """With many draws, what is left is how much the batches differ."""
    model, calibration = tiny.build("llama"), tiny.samples("llama")
    scorer = ZerothOrder(samples=6, batch_size=1, noises=64, samples_per_pass=256, probe=probe)
    scores = scorer(model, calibration, 0)
    parts = [scorer(model, CalibrationSet("one", (sample,)), 0) for sample in calibration.samples[:6]]
    for name, error in scores.standard_error.items():
        means = torch.tensor([part.importance[name] for part in parts], dtype=torch.float64)
        assert error == pytest.approx(float(means.std() / 6**0.5), rel=0.3)


def test_one_probe_has_no_standard_error() -> None:
    scores = ZerothOrder(noises=1, batch_size=8)(
        tiny.build("llama"), tiny.samples("llama", lengths=(5, 5)), 0
    )
    assert set(scores.standard_error.values()) == {0.0}
    assert all(score > 0 for score in scores.importance.values())


def test_the_model_is_left_as_it_was() -> None:
    model = tiny.build("blip2_t5")
    model.module.train()
    requires = [parameter.requires_grad for parameter in model.module.parameters()]
    ZerothOrder()(model, tiny.samples("blip2_t5"), 0)
    assert model.module.training
    assert [parameter.requires_grad for parameter in model.module.parameters()] == requires
    assert not any(module._forward_hooks or "forward" in module.__dict__ for module in model.module.modules())


def test_damaged_weight_names_the_batch() -> None:
    model = tiny.build("llama")
    with torch.no_grad():
        model.layers[3].weight[0, 0] = math.nan
    with pytest.raises(NumericalError, match=r"the loss of calibration batch 0 is \[nan"):
        ZerothOrder()(model, tiny.samples("llama"), 0)


def test_overflow_names_the_layer() -> None:
    model = tiny.build("opt", skip_layers=("attn", r"\.0\."))
    with pytest.raises(
        NumericalError,
        match=r"the score of model\.decoder\.layers\.1\.fc1\.weight \(batch 0, draw 0\) is nan",
    ):
        ZerothOrder(eps=1e38)(model, tiny.samples("opt"), 0)


def test_block_probe_equals_really_moving_a_block() -> None:
    model, calibration = tiny.build("llama"), tiny.samples("llama", lengths=(5, 5))
    scorer = ZerothOrder(samples=2, batch_size=2, eps=0.05, probe="block")
    scores = scorer(model, calibration, seed=7).importance
    batch = calibration.batches(2)[0]
    for block in model.blocks:
        losses = []
        for sign in (1, -2, 1):
            with torch.no_grad():
                for layer in block.layers:
                    layer.weight.add_(
                        sign * scorer.eps * gaussian(layer.shape, "zeroth_order", 7, 0, layer.name, 0)
                    )
                losses.append(float(model.loss(batch).double().mean()))
        expected = abs(losses[0] - losses[1]) / (2 * scorer.eps)
        assert sum(scores[layer.name] for layer in block.layers) == pytest.approx(
            expected, rel=1e-3, abs=1e-4
        )
        share = {layer.name: scores[layer.name] / layer.size for layer in block.layers}
        assert max(share.values()) == pytest.approx(min(share.values()))


def test_block_probe_estimates_the_norm_of_the_blocks_gradient() -> None:
    model, calibration = tiny.build("llama"), tiny.samples("llama", lengths=(5, 5))
    draws = 400
    scores = ZerothOrder(batch_size=2, noises=draws, samples_per_pass=1600, probe="block")(
        model, calibration, 0
    ).importance
    norms = FirstOrder("gradient_norm", batch_size=2)(model, calibration, 0).importance
    for block in model.blocks:
        norm = math.hypot(*(norms[layer.name] for layer in block.layers))
        expected, deviation = math.sqrt(2 / math.pi) * norm, math.sqrt((1 - 2 / math.pi) / draws) * norm
        assert abs(sum(scores[layer.name] for layer in block.layers) - expected) < 4 * deviation


def test_block_probe_is_another_entry_of_the_cache() -> None:
    assert (
        ZerothOrder(probe="block").identity()
        != ZerothOrder().identity()
        != ZerothOrder(probe="derivative").identity()
    )
    assert ZerothOrder(probe="derivative", eps=1).identity() == ZerothOrder(probe="derivative").identity()
    with pytest.raises(UserError, match=r"score\.probe=tower is not known; the choices are layer"):
        ZerothOrder(probe="tower")


@pytest.mark.parametrize("option", ["samples", "batch_size", "noises", "eps"])
def test_other_options_are_another_entry_of_the_cache(option: str) -> None:
    assert ZerothOrder(**{option: 3}).identity() != ZerothOrder().identity()


@pytest.mark.parametrize("option", ["samples", "batch_size", "noises", "eps", "samples_per_pass"])
def test_refusals(option: str) -> None:
    with pytest.raises(
        UserError, match=rf"score\.{option}=0 must be {'more than 0' if option == 'eps' else 'at least 1'}"
    ):
        ZerothOrder(**{option: 0})


@pytest.mark.parametrize("family", ["llama", "blip2_t5"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_probed_in_fp32(family: str, dtype: torch.dtype) -> None:
    model, calibration = tiny.build(family), tiny.samples(family)
    model.module.to(dtype)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    half = ZerothOrder()(model, calibration, 0).importance
    after = model.module.state_dict()
    assert all(
        after[name].dtype == tensor.dtype and torch.equal(after[name], tensor)
        for name, tensor in before.items()
    )
    model.module.float()
    assert half == pytest.approx(ZerothOrder()(model, calibration, 0).importance, rel=1e-6)


@pytest.mark.parametrize("probe", ["layer", "derivative"])
def test_half_precision_inputs_become_fp32_with_the_weights(probe: str) -> None:
    """Of a loss that gives the model its inputs as they are."""
    model, scorer = tiny.build("torch_encoder"), ZerothOrder(probe=probe)
    model.module.bfloat16()
    rows = [
        {name: one.bfloat16() for name, one in row.items()} for row in tiny.samples("torch_encoder").samples
    ]
    half = scorer(model, CalibrationSet("half", tuple(rows)), 0).importance
    model.module.float()
    wide = CalibrationSet("wide", tuple({name: one.float() for name, one in row.items()} for row in rows))
    assert half == scorer(model, wide, 0).importance


def slopes_by_autograd(
    model: PrunableModel, calibration: CalibrationSet, scorer: ZerothOrder, seed: int
) -> dict[str, float]:
    """The same, the slow way: all gradients of a batch at once, and their products with the draws."""
    sums = dict.fromkeys((layer.name for layer in model.layers), 0.0)
    for index, batch in enumerate(loss_batches(model, calibration.take(scorer.samples), scorer.batch_size)):
        model.module.eval().requires_grad_(True).zero_grad()
        model.loss(batch).mean().backward()
        for layer in model.layers:
            for draw in range(scorer.noises):
                z = layer.oriented(gaussian(layer.shape, "zeroth_order", seed, index, layer.name, draw))
                whole = layer.parameter.grad
                product = 0.0 if whole is None else float((layer.part(whole).double() * z).sum())
                sums[layer.name] += len(next(iter(batch.values()))) * abs(product)
    return {
        name: total / len(calibration.take(scorer.samples)) / scorer.noises for name, total in sums.items()
    }


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.every_run(*tiny.REPRESENTATIVES)
def test_the_derivative_equals_all_gradients_at_once(family: str) -> None:
    scorer = ZerothOrder(samples=5, batch_size=2, noises=2, probe="derivative")
    model, calibration = tiny.build(family), tiny.samples(family)
    before = model.fingerprint()
    scores = scorer(model, calibration, seed=7)
    assert model.fingerprint() == before
    expected = slopes_by_autograd(model, calibration, scorer, seed=7)
    assert scores.importance == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert list(scores.importance) == list(expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "blip2_t5"])
def test_the_derivative_is_what_smaller_and_smaller_probes_come_to(family: str) -> None:
    """The error of a difference quotient falls with the square of eps."""
    model, calibration = tiny.build(family), tiny.samples(family, lengths=(5, 5))
    limit = ZerothOrder(batch_size=2, noises=4, probe="derivative")(model, calibration, 0).importance
    errors = []
    for eps in (0.02, 0.005):
        scores = ZerothOrder(batch_size=2, noises=4, eps=eps)(model, calibration, 0).importance
        errors.append(sum(abs(scores[name] - value) for name, value in limit.items()) / sum(limit.values()))
    assert errors[1] < errors[0] / 8
    assert errors[1] < 0.002


def test_the_derivative_of_a_damaged_model() -> None:
    model = tiny.build("llama")
    with torch.no_grad():
        model.layers[3].weight[0, 0] = math.nan
    with pytest.raises(NumericalError, match="the loss of a calibration batch is nan"):
        ZerothOrder(probe="derivative")(model, tiny.samples("llama"), 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_derivative_of_half_precision_weights_is_taken_in_fp32(dtype: torch.dtype) -> None:
    model, calibration = tiny.build("llama"), tiny.samples("llama")
    model.module.to(dtype)
    half = ZerothOrder(probe="derivative")(model, calibration, 0).importance
    model.module.float()
    assert half == pytest.approx(ZerothOrder(probe="derivative")(model, calibration, 0).importance, rel=1e-6)
