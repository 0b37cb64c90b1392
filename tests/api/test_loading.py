"""Which models are taken, as what, and what is said of those that aren't."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model

import ecoflap
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.families.language.causal_lm import language_loss
from ecoflap.models.loading.kinds import option_for_model
from tests import tiny
from tests.api.conftest import QUICK, Given, clip, llama, word_tokenizer

OPTIONS = {
    **dict.fromkeys(tiny.LANGUAGE, "causal_lm"),
    **dict.fromkeys(tiny.SEQ2SEQ, "seq2seq"),
    **dict.fromkeys(tiny.BLIP2, "blip2"),
    **dict.fromkeys(tiny.DUAL, "clip"),
    **{name: name for name in tiny.BLIP},
    **dict.fromkeys(tiny.CLASSIFIER, "image_classifier"),
    **dict.fromkeys(tiny.VLM, "vlm"),
}


@pytest.mark.parametrize("family", [family for family in OPTIONS if family in tiny.FAMILIES])
def test_the_kind_of_a_model_is_told_by_its_class(family: str) -> None:
    module = tiny.build(family).module
    assert option_for_model(module) == OPTIONS[family]
    named = type("Mine", (type(module),), {})
    module.__class__ = named
    assert option_for_model(module) == OPTIONS[family]


def test_a_model_in_memory_is_that_of_its_folder(given: Given, tmp_path: Path) -> None:
    model = ecoflap.load(given.module, given.processor)
    given.module.save_pretrained(tmp_path)
    given.processor.save_pretrained(tmp_path)
    loaded = ecoflap.load(tmp_path, device="cpu")
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    weights = loaded.module.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in given.module.state_dict().items())
    data = ecoflap.calibrate(model, given.data)
    assert ecoflap.calibrate(loaded, given.data).fingerprint() == data.fingerprint()
    batch = data.batches(2)[0]
    torch.testing.assert_close(loaded.loss(batch), model.loss(batch))


def test_an_option_of_the_command_line_is_a_name() -> None:
    model = ecoflap.load("clip_mini", towers=["vision"], device="cpu")
    assert [tower.name for tower in model.towers] == ["vision"]
    assert ecoflap.evaluate(model, "easy_classification", limit=40)["accuracy"] > 50
    assert len(ecoflap.calibrate(model, "easy_pairs", samples=3)) == 3


def test_a_suite_is_named_task_by_task() -> None:
    metrics = ecoflap.evaluate(ecoflap.load("clip_mini", device="cpu"), "easy_suite")
    assert {name.partition("/")[0] for name in metrics} == {"easy_classification", "easy_retrieval"}


@pytest.mark.parametrize("shown", [True, False])
def test_loading_leaves_the_progress_bars_of_transformers_as_they_were(shown: bool, tmp_path: Path) -> None:
    one, bars = llama(), hf.logging
    one.module.save_pretrained(tmp_path)
    one.processor.save_pretrained(tmp_path)
    before = bars.is_progress_bar_enabled()
    (bars.enable_progress_bar if shown else bars.disable_progress_bar)()
    try:
        ecoflap.load(str(tmp_path), device="cpu")
        assert bars.is_progress_bar_enabled() is shown
    finally:
        (bars.enable_progress_bar if before else bars.disable_progress_bar)()


def test_what_is_pruned_is_chosen_where_the_model_is_loaded() -> None:
    one = llama()
    model = ecoflap.load(one.module, one.processor, skip_layers=[r"layers\.0\."])
    result = ecoflap.prune(model, pruner="magnitude", score="none", sparsity=0.5)
    assert result.masks
    assert all("layers.1." in name for name in result.masks)


def test_a_loss_by_name_or_as_a_function() -> None:
    one = llama()
    batch = ecoflap.calibrate(ecoflap.load(one.module, one.processor), one.data, samples=2).batches(2)[0]

    def twice(module: Any, inputs: Any, copies: int = 1) -> torch.Tensor:
        return 2 * language_loss(module, inputs, copies)

    plain = ecoflap.load(one.module, one.processor).loss(batch)
    torch.testing.assert_close(ecoflap.load(one.module, one.processor, loss=twice).loss(batch), 2 * plain)
    dotted = "ecoflap.models.families.language.causal_lm.language_loss"
    torch.testing.assert_close(ecoflap.load(one.module, one.processor, loss=dotted).loss(batch), plain)
    refused("loss=nex", "next_token", model=one.module, loss="nex")


@pytest.mark.parametrize(
    ("given", "shown"), [(None, "is None"), ([1.5], "is [1.5]"), (torch.ones(3), "has shape [3]")]
)
def test_a_loss_that_is_not_a_number_per_sample_is_refused(given: Any, shown: str) -> None:
    one = llama()
    model = ecoflap.load(one.module, one.processor, loss=lambda *_: given)
    with pytest.raises(UserError, match=re.escape(f"{shown} for 2 samples; model.loss must give one number")):
        ecoflap.prune(model, data=one.data, sparsity=0.5, score="first_order")


def refused(*words: str, model: Any, processor: Any = None, **options: Any) -> None:
    with pytest.raises(UserError) as caught:
        ecoflap.load(model, processor, **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_what_cannot_be_taken_is_refused(tmp_path: Path) -> None:
    one = llama()
    refused("nowhere", "no such folder", model=tmp_path / "nowhere")
    refused("kind=casual_lm", "causal_lm", model=one.module, kind="casual_lm")
    refused("promt", model=one.module, processor=one.processor, promt="x")
    refused("device=cpu", "in memory", model=one.module, device="cpu")
    refused("loaded with its own", model=str(tmp_path), processor=one.processor)
    refused("tower", "langage", "language", model=one.module, towers=["langage"])
    refused("Blip2", "processor", model=tiny.build(next(iter(tiny.BLIP2))).module)
    refused("eva_clip_g", "no model in memory", model=one.module, kind="eva_clip_g")
    refused("Linear", "kind=", "loss=", model=torch.nn.Linear(2, 2))
    refused("a NoneType", "hub id", model=None)
    refused("a PrunableModel", "hub id", model=ecoflap.load(one.module))
    refused("CLIPModel", "image_processor", "AutoProcessor", model=clip().module, processor=one.processor)
    with torch.device("meta"):
        empty = hf.LlamaForCausalLM(one.module.config)
    refused("meta", "device_map", model=empty)
    bert = hf.BertForMaskedLM(hf.BertConfig(**tiny.TEXT))
    refused("compiled", "_orig_mod", model=torch.compile(one.module))
    refused("DataParallel", ".module", model=torch.nn.DataParallel(one.module))
    adapted = get_peft_model(llama().module, LoraConfig(target_modules=["q_proj"]))
    refused("adapters", "merge_and_unload", model=adapted)
    refused("BertForMaskedLM", "known kind", model=bert, processor=word_tokenizer())


class Packed(torch.Tensor):
    """A tensor that stands for others, as quantised and sharded weights do."""

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return [], None


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("Tensor of torch.int8", lambda weight: (weight * 100).to(torch.int8)),
        ("Tensor of torch.uint8", lambda weight: torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8)),
        ("Tensor of torch.float8_e4m3fn", lambda weight: weight.to(torch.float8_e4m3fn)),
        ("Packed of torch.float32", lambda weight: weight.as_subclass(Packed)),
    ],
)
def test_quantised_and_sharded_weights_are_refused(kind: str, change: Any) -> None:
    module = llama().module
    layer = module.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(change(layer.weight.detach()), requires_grad=False)
    refused(f"model.layers.0.mlp.up_proj.weight is a {kind}", "before it is quantised", model=module)


def prune_refused(*words: str, **options: Any) -> None:
    one = llama()
    before = {name: tensor.clone() for name, tensor in one.module.state_dict().items()}
    with pytest.raises(UserError) as caught:
        ecoflap.prune(**{"model": one.module, "processor": one.processor, "data": one.data, **options})
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.module.state_dict().items())


@pytest.mark.parametrize("every", [0, 1, 2])
def test_a_model_that_divides_its_own_weights_is_refused(every: int, tmp_path: Path) -> None:
    """RWKV does it once, when it runs, and the loaded model would do it again."""
    if not hasattr(hf, "RwkvConfig"):
        pytest.skip(f"transformers {hf.__version__} has no RWKV")
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "context_length": 16}
    module = hf.RwkvForCausalLM(hf.RwkvConfig(**sizes, rescale_every=every))
    inputs = {"input_ids": torch.arange(3, 11)}
    skipped = ["output", r"feed_forward\.value"]
    if every == 1:
        with pytest.raises(UserError, match=r"rescale_every=1 in its config.*set rescale_every to 0"):
            ecoflap.load(module, skip_layers=skipped)
        return
    model = ecoflap.load(module, skip_layers=skipped)
    result = ecoflap.prune(model, data=[inputs], sparsity=0.5, score="none", pruner="wanda")
    loaded = ecoflap.load_pruned(ecoflap.save(result, tmp_path / "saved"), device="cpu")
    batch = {name: tensor[None] for name, tensor in inputs.items()}
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, module.eval()(**batch).logits)


@pytest.mark.parametrize("option", ["towers", "skip_layers"])
def test_a_text_is_no_list_of_one_letter_each(option: str) -> None:
    given: dict[str, Any] = {option: "model"}
    with pytest.raises(UserError, match=rf"{option}='model' is a single text; give a list"):
        ecoflap.load("blip2_mini", **given)


def test_what_cannot_be_pruned_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecoflap.prune.driver.prune", None)
    monkeypatch.setattr(PrunableModel, "loss", None)
    prune_refused("sparsity is missing")
    prune_refused("sparsity=60", sparsity=60)
    prune_refused("sparsity='much'", "number", sparsity="much")
    prune_refused("'facebook/opt-125m'", "ecoflap.load", model="facebook/opt-125m", sparsity=0.5)
    prune_refused("a int", "ecoflap.load", model=3, sparsity=0.5)
    prune_refused("pruner=FirstOrder has no", "derive it from", sparsity=0.5, pruner=ecoflap.FirstOrder())
    prune_refused("score=Wanda has no", "derive it from", sparsity=0.5, score=ecoflap.Wanda())
    prune_refused("pruner=wandaa", "did you mean wanda?", sparsity=0.5, pruner="wandaa")
    prune_refused("samples=16", "data=ecoflap.calibrate(model, data, samples=16)", sparsity=0.5, samples=16)
    prune_refused("pruner.mas ", "mask", sparsity=0.5, pruner="wanda", mas="row")
    prune_refused("pruner.damping", "number", sparsity=0.5, pruner="sparsegpt", damping="much")
    prune_refused("pruner.mask=rows", sparsity=0.5, mask="rows")
    prune_refused("mask", "Wanda(...)", sparsity=0.5, pruner=ecoflap.Wanda(), mask="row")
    prune_refused("score=zeroth", "zeroth_order", sparsity=0.5, score="zeroth")
    prune_refused("allocation=water", "water_filling", sparsity=0.5, allocation="water")
    prune_refused(
        "everywhere is score='none', allocation='water_filling'", sparsity=0.5, allocation="uniform"
    )
    prune_refused("sparsity=0.5", "2:4", sparsity=0.6, pruner="wanda", mask="2:4")
    prune_refused("2:4", "score", sparsity=0.5, pruner="wanda", mask="2:4", score="zeroth_order")
    prune_refused("pruner does not use scores", sparsity=0.5, pruner="global_magnitude", score="local")
    prune_refused("training split", sparsity=0.5, pruner="upop")
    prune_refused("data is missing", sparsity=0.5, data=None)
    prune_refused("batch_size=0", sparsity=0.5, batch_size=0)
    prune_refused("propagate=sparse", sparsity=0.5, propagate="sparse")
    prune_refused("batch_size=2.5 is a float", sparsity=0.5, batch_size=2.5)
    prune_refused("seed=-1", sparsity=0.5, seed=-1)
    prune_refused("seed='a' is a str", sparsity=0.5, seed="a")


def test_what_a_pruner_or_an_allocation_would_not_look_at_is_refused(tmp_path: Path) -> None:
    one = llama()
    model = ecoflap.load(one.module, one.processor)
    scores = ecoflap.score(model, ecoflap.calibrate(model, one.data), "first_order", samples=4)
    allocation = ecoflap.allocate(model, scores, sparsity=0.5)
    prune_refused("pruner=global_magnitude", "allocation", allocation=allocation, pruner="global_magnitude")
    even = ecoflap.WaterFilling(granularity="model")
    prune_refused("global_magnitude", "allocation", sparsity=0.5, allocation=even, pruner="global_magnitude")
    prune_refused("pruner does not use scores", sparsity=0.5, score=scores, pruner="global_magnitude")
    file = tmp_path / "allocation.json"
    file.write_text(json.dumps(asdict(allocation)))
    from_file = ecoflap.FromFile(path=str(file))
    prune_refused("allocation does not use scores", sparsity=0.5, score=scores, allocation=from_file)
    with pytest.raises(UserError, match="takes no scores"):
        ecoflap.allocate(model, scores, sparsity=0.5, method=from_file)
    kept = ecoflap.prune(model, pruner="magnitude", score=scores, allocation=allocation)
    assert kept.scores is scores


def test_an_allocation_for_other_layers_is_refused() -> None:
    one = llama()
    whole = ecoflap.load(one.module, one.processor)
    part = ecoflap.load(one.module, one.processor, skip_layers=[r".*q_proj.*"])
    before = {name: tensor.clone() for name, tensor in one.module.state_dict().items()}
    name = r"model\.layers\.0\.self_attn\.q_proj\.weight"
    for made_for, model, misfit in (
        (whole, part, f"{name} is not a layer to prune here"),
        (part, whole, f"it has no entry for {name}"),
    ):
        allocation = ecoflap.allocate(made_for, sparsity=0.5)
        with pytest.raises(UserError, match=f"the allocation was made for other layers: {misfit}"):
            ecoflap.prune(model, pruner="magnitude", allocation=allocation)
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.module.state_dict().items())


def test_arguments_of_another_kind_are_refused() -> None:
    one = llama()
    model = ecoflap.load(one.module, one.processor)
    data = ecoflap.calibrate(model, one.data)
    for step, wanted, given in (
        (lambda: ecoflap.calibrate(one.module, one.data), "PrunableModel", "LlamaForCausalLM"),
        (lambda: ecoflap.score(one.module, data), "PrunableModel", "LlamaForCausalLM"),
        (lambda: ecoflap.score(model, one.data), "CalibrationSet", "list"),
        (lambda: ecoflap.allocate(model, data, sparsity=0.5), "Scores", "CalibrationSet"),
        (lambda: ecoflap.evaluate(one.module, "wikitext2"), "PrunableModel", "LlamaForCausalLM"),
        (lambda: ecoflap.save(one.module, "nowhere"), "PrunableModel", "LlamaForCausalLM"),
    ):
        with pytest.raises(
            UserError, match=f"{given} was given where a {wanted} is needed; give what ecoflap"
        ):
            step()
    prune_refused("pruner=Wanda is a class", "Wanda(...)", sparsity=0.5, pruner=ecoflap.Wanda)
    prune_refused("score=Local is a class", sparsity=0.5, score=ecoflap.Local)
    prune_refused("pruner=int has no name", "derive it from", sparsity=0.5, pruner=3)
    with pytest.raises(UserError, match="samples=0"):
        ecoflap.calibrate(model, data, samples=0)


def test_what_a_function_or_a_folder_cannot_be_is_refused() -> None:
    one = llama()
    model = ecoflap.load(one.module, one.processor)
    measures: list[Any] = [lambda _: None, lambda _: {"score": "much"}, lambda _: torch.ones(2)]
    for measure, said in zip(measures, ("a NoneType", "score is a str", "a Tensor"), strict=True):
        with pytest.raises(UserError, match=f"{said}; let the function return a number"):
            ecoflap.evaluate(model, measure)
    nowhere: Any = None
    with pytest.raises(UserError, match="the folder is a NoneType"):
        ecoflap.save(model, nowhere)
    for kind in ("seq2seq", "clip", "blip2", "blip_vqa"):
        with pytest.raises(
            UserError, match=rf"kind={kind} can't prepare LlamaForCausalLM; .* give causal_lm"
        ):
            ecoflap.load(one.module, one.processor, kind=kind)


def test_a_sparsity_is_a_number_in_each_step() -> None:
    one = llama()
    model = ecoflap.load(one.module, one.processor)
    wanted = ecoflap.allocate(model, sparsity=0.5)
    given: Any
    for given in ("0.5", torch.tensor(0.5)):
        assert ecoflap.allocate(model, sparsity=given) == wanted
    for given, said in ((None, "sparsity is missing"), ("much", "not a number"), (torch.ones(2), "a number")):
        with pytest.raises(UserError, match=said):
            ecoflap.allocate(model, sparsity=given)
        prune_refused(said, sparsity=given)


def test_what_other_steps_gave_is_refused() -> None:
    one = llama()
    model = ecoflap.load(one.module, one.processor)
    data = ecoflap.calibrate(model, one.data)
    with pytest.raises(UserError, match="CalibrationSet"):
        ecoflap.allocate(model, data, sparsity=0.5)
    result = ecoflap.prune(model, pruner="magnitude", score="none", sparsity=0.5)
    with pytest.raises(UserError, match=r"result\.model"):
        ecoflap.prune(result, data=data, sparsity=0.6)
    other = ecoflap.load(one.module, one.processor, skip_layers=[r"layers\.0\.mlp"])
    for first, second in ((model, other), (other, model)):
        allocation = ecoflap.allocate(first, sparsity=0.5)
        with pytest.raises(UserError, match=r"other layers.*layers\.0\.mlp"):
            ecoflap.prune(second, data=data, allocation=allocation)


def test_an_allocation_brings_its_sparsity() -> None:
    one = llama()
    model = ecoflap.load(one.module, one.processor)
    allocation = ecoflap.allocate(model, sparsity=0.5)
    with pytest.raises(UserError, match=r"sparsity=0\.5, and sparsity=0\.6 was given"):
        ecoflap.prune(model, pruner="magnitude", allocation=allocation, sparsity=0.6)
    with pytest.raises(UserError, match="loaded with its own"):
        ecoflap.prune(model, one.processor, pruner="magnitude", allocation=allocation)
    with pytest.raises(UserError, match="measures nothing"):
        ecoflap.score(model, ecoflap.calibrate(model, one.data), "none")
    assert ecoflap.prune(model, pruner="magnitude", allocation=allocation).allocation is allocation


def test_a_fixed_mask_takes_an_allocation_of_its_sparsity_alone() -> None:
    model = tiny.build("llama")
    even = ecoflap.allocate(model, sparsity=0.5, method="er")
    first, second = list(even.sizes)[:2]
    even = replace(even, keep={name: size // 2 for name, size in even.sizes.items()})
    moved = even.keep | {first: even.keep[first] - 4, second: even.keep[second] + 4}
    with pytest.raises(UserError, match=r"pruner\.mask=2:4 fixes every layer's sparsity"):
        ecoflap.prune(model, pruner="magnitude", mask="2:4", allocation=replace(even, keep=moved))
    assert ecoflap.prune(model, pruner="magnitude", mask="2:4", allocation=even).sparsity == 0.5


def test_dynamically_quantised_layers_are_refused() -> None:
    """Their weight is a method, in no parameter and in no dtype of torch's plain tensors."""
    module: Any = llama().module
    torch_ao = pytest.importorskip("torch.ao.quantization", reason="this PyTorch has torchao alone")
    quantised = torch_ao.quantize_dynamic(module.model.layers[0].mlp, {torch.nn.Linear})
    module.model.layers[0].mlp = quantised
    refused("model.layers.0.mlp.gate_proj is a quantised Linear", "before it is quantised", model=module)


def test_clip_reads_texts_of_a_tokenizer_without_padding() -> None:
    one = clip()
    wanted = ecoflap.prune(one.module, one.processor, one.data, sparsity=0.5, **QUICK).masks
    one = clip()
    one.processor.tokenizer.pad_token = None
    found = ecoflap.prune(one.module, one.processor, one.data, sparsity=0.5, **QUICK).masks
    assert all(torch.equal(found[name], mask) for name, mask in wanted.items())
