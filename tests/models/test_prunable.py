from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn.functional import cross_entropy

from ecoflap.data.batch import Batch
from ecoflap.errors import NumericalError
from ecoflap.models.core import prunable
from ecoflap.models.core.attention import open_attention
from ecoflap.models.core.forward_modes import as_before, quiet_forward
from ecoflap.models.core.losses import next_token_loss, token_loss
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.families.blip.retrieval import match_loss
from ecoflap.score.pass_size import LiveBytes
from tests import tiny

# Families whose transformers model computes the same loss; BLIP's smooths labels and counts differently,
# retrieval has none.
WITH_OWN_LOSS = [family for family in tiny.FAMILIES if family not in (*tiny.BLIP, *tiny.DUAL, *tiny.PACKED)]


def own_loss(model: PrunableModel, batch: dict[str, torch.Tensor]) -> float:
    """The loss that the transformers model computes by itself."""
    inputs = (
        {name: tensor.flatten(0, 1) for name, tensor in batch.items()} if model.name in tiny.VLM else batch
    )
    return float(model.module(**{"labels": inputs.get("input_ids"), **inputs}).loss)


def alone(sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor[None] for name, tensor in sample.items()}


@torch.no_grad()
@pytest.mark.parametrize("family", WITH_OWN_LOSS)
def test_loss_is_the_models_own(family: str) -> None:
    model, calibration = tiny.build(family), tiny.samples(family, lengths=(5, 7))
    for sample in calibration.samples:
        loss = model.loss(alone(sample))
        assert loss.shape == (1,)
        assert loss.dtype == torch.float32
        assert float(loss) == pytest.approx(own_loss(model, alone(sample)), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", [family for family in tiny.FAMILIES if family not in tiny.COMPARING])
def test_loss_of_a_batch_is_that_of_its_samples(family: str) -> None:
    model, calibration = tiny.build(family), tiny.samples(family, lengths=(5, 5, 5))
    one_by_one = torch.cat([model.loss(alone(sample)) for sample in calibration.samples])
    torch.testing.assert_close(model.loss(calibration.batches(3)[0]), one_by_one, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_model_may_write_into_its_inputs() -> None:
    model = tiny.build("opt")

    def loss(module: nn.Module, batch: Batch, copies: int) -> torch.Tensor:
        batch["input_ids"].add_(1).remainder_(5)
        return model.loss_function(module, batch, copies)

    writing, batch = replace(model, loss_function=loss), tiny.samples("opt").batches(2)[0]
    given = {name: tensor.clone() for name, tensor in batch.items()}
    first = writing.loss(batch)
    assert all(torch.equal(tensor, given[name]) for name, tensor in batch.items())
    assert torch.equal(writing.loss(batch), first)


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.COMPARING)
def test_samples_are_compared_inside_a_copy_only(family: str) -> None:
    model, batch = tiny.build(family), tiny.samples(family).batches(3)[0]
    twice = {name: torch.cat([tensor, tensor]) for name, tensor in batch.items()}
    torch.testing.assert_close(model.loss(twice, copies=2), model.loss(batch).repeat(2), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_contrastive_loss_is_clips_own() -> None:
    model, batch = tiny.build("clip"), tiny.samples("clip").batches(4)[0]
    assert float(model.loss(batch).mean()) == pytest.approx(
        float(model.module(**batch, return_loss=True).loss), rel=1e-5
    )


@torch.no_grad()
def test_blip_losses_by_transformers_own_heads() -> None:
    """Word by word from the models' own logits, without the label smoothing that transformers adds."""
    model, batch = tiny.build("blip_caption"), tiny.samples("blip_caption").batches(2)[0]
    output = model.module(
        pixel_values=batch["pixel_values"],
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
    )
    logits = (
        output.logits if hasattr(output, "logits") else output.decoder_logits
    )  # as the first releases called them
    torch.testing.assert_close(model.loss(batch), next_token_loss(logits, batch["labels"]))
    model, batch = tiny.build("blip_retrieval"), tiny.samples("blip_retrieval").batches(2)[0]
    score = lambda pixels: (
        model.module(
            pixel_values=pixels, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).itm_score
    )
    own, other = (
        score(batch["pixel_values"]).log_softmax(-1),
        score(batch["pixel_values"].flip(0)).log_softmax(-1),
    )
    torch.testing.assert_close(match_loss(model.module, batch), -(own[:, 1] + other[:, 0]) / 2)


def test_a_loss_is_another_one_when_code_that_it_shares_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or scores of the old code would be taken for those of the new."""
    model = tiny.build("blip_retrieval")
    monkeypatch.setattr(prunable, "__file__", str(tmp_path / "prunable.py"))
    identities = []
    for text in ("one", "other", "one"):
        (tmp_path / "positives.py").write_text(text)
        identities.append(model.loss_identity("match"))
    assert identities[0] == identities[2] != identities[1]
    assert model.loss_identity("match") != model.loss_identity("contrastive")


def test_token_losses_by_hand() -> None:
    logits = torch.tensor([[[0.0, 0.0], [0.0, 2.0], [9.0, -9.0]], [[0.0, 0.0], [3.0, 0.0], [1.0, 1.0]]])
    labels = torch.tensor([[1, 1, -100], [-100, -100, 0]])
    first, second = torch.log(torch.tensor(2.0)), torch.log1p(torch.exp(torch.tensor(-2.0)))
    torch.testing.assert_close(token_loss(logits, labels), torch.stack([(first + second) / 2, first]))
    torch.testing.assert_close(
        next_token_loss(logits, labels)[0], first
    )  # position 0 predicts token 1; token 2 is no target
    assert token_loss(logits.bfloat16(), labels).dtype == torch.float32


@pytest.mark.parametrize("shift", [0, 1])
def test_gradients_of_token_losses_are_those_of_autograd(shift: int) -> None:
    torch.manual_seed(0)
    logits, weights = torch.randn(3, 6, 7, requires_grad=True), torch.tensor([1.0, 3.0, -2.0])
    labels = torch.randint(7, (3, 6))
    labels[0, 2:4] = labels[1, :5] = -100
    plain = torch.stack(
        [
            cross_entropy(row[: 6 - shift], wanted[shift:], ignore_index=-100)
            for row, wanted in zip(logits, labels, strict=True)
        ]
    )
    (expected,) = torch.autograd.grad((plain * weights).sum(), logits)
    found = (next_token_loss if shift else token_loss)(logits, labels)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), logits)[0], expected)


def test_the_gradient_of_a_long_text_is_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 64, 500).bfloat16().requires_grad_()
    labels = torch.randint(500, (2, 64)).masked_fill(torch.rand(2, 64) < 0.3, -100)

    def gradient() -> torch.Tensor:
        (token_loss(logits, labels) * torch.tensor([1.0, 3.0])).sum().backward()
        found, logits.grad = logits.grad, None
        assert found is not None
        return found

    whole = gradient()
    monkeypatch.setattr("ecoflap.models.core.losses.AT_ONCE", 5 * 500)
    with LiveBytes() as live:
        parts = gradient()
    assert torch.equal(whole, parts)
    assert live.peak < 2 * logits.nbytes, "one text in fp32 is as large as both texts"


@pytest.mark.parametrize("fails", [False, True])
def test_quiet_forward_puts_everything_back(fails: bool) -> None:
    model = tiny.build("blip2_t5")
    module = model.module.train()
    module.qformer.eval()
    module.language_model.shared.weight.requires_grad_(False)
    module.config.text_config.use_cache = True
    module.language_model.config.use_cache = True
    training = [child.training for child in module.modules()]
    gradients = [parameter.requires_grad for parameter in module.parameters()]
    assert len(set(training)) == len(set(gradients)) == 2
    try:
        with quiet_forward(module):
            assert not any(child.training for child in module.modules())
            assert not any(parameter.requires_grad for parameter in module.parameters())
            assert module.language_model.config.use_cache is False
            if (
                module.config.text_config is module.language_model.config
            ):  # some releases give the language model a copy
                assert module.config.text_config.use_cache is False
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert [child.training for child in module.modules()] == training
    assert [parameter.requires_grad for parameter in module.parameters()] == gradients
    assert module.language_model.config.use_cache is True
    assert module.config.text_config.use_cache is True


def test_rotary_embeddings_that_grow_are_as_before() -> None:
    """They keep the frequencies of the longest text: a step would depend on what was computed before it."""
    if "llama" not in tiny.FAMILIES:
        pytest.skip(f"transformers {hf.__version__} has no llama")
    torch.manual_seed(0)
    scaling = {"rope_type": "dynamic", "type": "dynamic", "factor": 4.0}
    sizes = {**tiny.LLAMA, "max_position_embeddings": 8}
    module = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, rope_scaling=scaling)).eval()
    short, long = torch.arange(3, 15)[None], torch.arange(3, 35)[None]
    with torch.no_grad():
        with as_before(module):
            before = module(short).logits
        with quiet_forward(module):
            module(long)
        assert torch.equal(module(short).logits, before)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_blocks_get_no_cache_under_quiet_forward(family: str) -> None:
    model = tiny.build(family)
    caches = []

    def look(_: torch.nn.Module, arguments: tuple, keywords: dict) -> None:
        caches.extend(value for value in [*arguments, *keywords.values()] if "Cache" in type(value).__name__)

    for block in model.blocks:
        block.module.register_forward_pre_hook(look, with_kwargs=True)
    with quiet_forward(model.module), torch.no_grad():
        model.loss(tiny.samples(family).batches(8)[0])
    assert caches == []


def test_fingerprint_of_a_module_without_a_config_sees_its_activations() -> None:
    def built(activation: nn.Module) -> PrunableModel:
        torch.manual_seed(0)
        module = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "activation": activation})
        return PrunableModel("own", module, (), (), (), lambda *_: torch.zeros(1))

    relu, again, gelu = built(nn.ReLU()), built(nn.ReLU()), built(nn.GELU())
    assert relu.fingerprint() == again.fingerprint()
    assert relu.fingerprint() != gelu.fingerprint()
    open_attention(again.module)
    assert relu.fingerprint() == again.fingerprint()


def test_fingerprint_sees_every_weight_and_nothing_else() -> None:
    model = tiny.build("llama")
    assert model.fingerprint() == tiny.build("llama").fingerprint()
    before = model.fingerprint()
    with torch.no_grad():
        model.module.model.norm.weight[3] += 1e-7
    after = model.fingerprint()
    assert before != after
    model.module.train()
    assert model.fingerprint() == after
    assert (
        model.fingerprint()
        != PrunableModel("bf16", model.module.bfloat16(), (), (), (), model.loss_function, None).fingerprint()
    )


def test_parameters_are_counted_once() -> None:
    model = tiny.build("qwen2")
    assert model.parameter_count() == sum(
        p.numel() for p in model.module.model.parameters()
    )  # the head is the embedding


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights_are_refused(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny.build("opt").module
    with torch.no_grad():
        module.model.decoder.layers[1].fc1.bias[2] = value
    monkeypatch.setitem(tiny.LANGUAGE, "opt", lambda: module)
    with pytest.raises(
        NumericalError, match=r"model\.decoder\.layers\.1\.fc1\.bias of opt holds NaN or infinite"
    ):
        tiny.build("opt")


def test_a_loss_over_other_classes_is_another_one() -> None:
    """A classifier of texts has its classes beside the weights."""
    model = tiny.build("clip")
    classes = (None, torch.eye(2), torch.eye(2).flip(0))
    asked = [replace(model, interface=SimpleNamespace(classes=one)) for one in classes]
    one, other, third = (model.loss_identity(None) for model in asked)
    assert one != other != third != one
