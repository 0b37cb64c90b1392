"""Nothing stays behind but the pruned weights: not in the model, not in PyTorch, not in Hydra."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import pickle
import pydoc
import random
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from torch import nn

import ecoflap
from ecoflap.api.unchanged import unchanged
from ecoflap.prune.wanda import Wanda
from ecoflap.score.zeroth_order import ZerothOrder
from tests import experts, tiny
from tests.api.conftest import QUICK, Given, llama
from tests.cli.conftest import ROOT


def of_model(module: nn.Module, processor: Any) -> dict[str, Any]:
    """Everything about a model that a user may notice, beside its weights."""
    tokenizer = getattr(processor, "tokenizer", processor)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return {
        "modules": {name: type(child) for name, child in module.named_modules()},
        "attributes": {name: sorted(vars(child)) for name, child in module.named_modules()},
        "training": {name: child.training for name, child in module.named_modules()},
        "hooks": {
            name: {key: len(value) for key, value in vars(child).items() if key.endswith("_hooks") and value}
            for name, child in module.named_modules()
        },
        "needs": {name: p.requires_grad for name, p in module.named_parameters()},
        "gradients": {name: p.grad is None for name, p in module.named_parameters()},
        "places": {name: (p.dtype, p.device, p.data_ptr()) for name, p in module.named_parameters()},
        "buffers": {name: b.clone() for name, b in module.named_buffers()},
        "config": copy.deepcopy(module.config.to_dict()),
        "padding_side": tokenizer.padding_side,
        "padding": None if backend is None else backend.padding,
        "truncation": None if backend is None else backend.truncation,
    }


def of_process() -> dict[str, Any]:
    """The same of this process."""
    Plugins.instance()  # imports what Hydra's plugins bring
    root = logging.getLogger()
    return {
        "rng": torch.random.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "random": random.getstate(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "fastpath": torch.backends.mha.get_fastpath_enabled(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "log": (root.level, list(root.handlers), logging.root.manager.disable),
        "warnings": list(warnings.filters),
        "store": copy.deepcopy(ConfigStore.instance().repo),
        "hydra": GlobalHydra.instance().is_initialized(),
        "resolvers": {
            name: OmegaConf.has_resolver(name) for name in ("package_file", "sweep_name", "oc.env")
        },
    }


def assert_equal(found: Any, wanted: Any) -> None:
    for name, value in wanted.items():
        if name == "buffers":
            assert all(torch.equal(found[name][buffer], value[buffer]) for buffer in value)
        else:
            assert found[name] == value, name


def test_one_call_leaves_nothing_behind(given: Given) -> None:
    torch.manual_seed(5)
    given.module.train()
    next(given.module.parameters()).requires_grad_(False)
    before = of_model(given.module, given.processor), of_process()
    ecoflap.prune(given.module, given.processor, given.data, sparsity=0.5, **QUICK)
    assert_equal(of_model(given.module, given.processor), before[0])
    assert_equal(of_process(), before[1])


def test_a_config_may_ask_for_plain_tuples(given: Given) -> None:
    """As models do that torch.jit traced; the steps read outputs by their names."""
    configs = {id(child.config): child.config for child in given.module.modules() if hasattr(child, "config")}
    for config in configs.values():
        config.return_dict = False
    result = ecoflap.prune(given.module, given.processor, given.data, sparsity=0.5, **QUICK)
    assert result.sparsity == pytest.approx(0.5, abs=0.01)
    assert all(config.return_dict is False for config in configs.values())


@pytest.mark.parametrize("longest", [None, 512])
def test_a_tokenizer_pads_and_truncates_as_before(given: Given, longest: int | None, tmp_path: Path) -> None:
    """Each of its calls sets both, and a checkpoint would cut off the texts of programs that read it."""
    backend = getattr(given.processor, "tokenizer", given.processor).backend_tokenizer
    _ = backend.no_truncation() if longest is None else backend.enable_truncation(longest)
    given.processor.save_pretrained(tmp_path / "dense")
    result = ecoflap.prune(given.module, given.processor, given.data, sparsity=0.5, **QUICK)
    ecoflap.save(result, tmp_path / "pruned")
    dense, pruned = (json.loads((tmp_path / of / "tokenizer.json").read_text()) for of in ("dense", "pruned"))
    assert pruned == dense
    assert (dense["truncation"] or {}).get("max_length") == longest


def test_rotary_embeddings_that_grow_with_the_input_are_as_before() -> None:
    """Where transformers would reset them, as the attribute beside the frequencies tells it."""
    torch.manual_seed(0)
    sizes = {**tiny.LLAMA, "max_position_embeddings": 16}
    config = hf.LlamaConfig(**sizes, rope_scaling={"rope_type": "dynamic", "factor": 4.0})
    module, short = hf.LlamaForCausalLM(config).eval(), torch.arange(8)[None]
    with torch.no_grad():
        before = module(short).logits
    long = [{"input_ids": torch.randint(20, (48,))} for _ in range(4)]
    ecoflap.prune(module, data=long, sparsity=0.0, allocation="water_filling", score="none")
    with torch.no_grad():
        assert torch.equal(module(short).logits, before)


def test_no_trace_of_opened_experts_is_left() -> None:
    model = experts.build("mixtral")
    module = copy.deepcopy(model.module)
    for child in module.modules():
        vars(child).pop("_expert_slices", None), vars(child).pop("forward", None)
    processor = SimpleNamespace(padding_side="right")
    before = of_model(module, processor)
    data = [{"input_ids": sample["input_ids"][None]} for sample in experts.samples(5, 5).samples]
    result = ecoflap.prune(module, data=data, sparsity=0.5, score="first_order", pruner="sparsegpt")
    assert_equal(of_model(module, processor), before)
    again = ecoflap.prune(result.prunable, data=data, sparsity=0.6, score="first_order")
    assert again.sparsity >= 0.6 > result.sparsity
    assert_equal(of_model(module, processor), before)
    if experts.can_be_pickled(module):
        assert pickle.dumps(module)


def test_steps_leave_nothing_behind(given: Given, tmp_path: Path) -> None:
    torch.manual_seed(5)
    given.module.train()
    before = of_model(given.module, given.processor), of_process()
    model = ecoflap.load(given.module, given.processor)
    data = ecoflap.calibrate(model, torch.utils.data.DataLoader(given.data, batch_size=2, collate_fn=list_of))
    scores = ecoflap.score(model, data, "first_order", batch_size=2)
    allocation = ecoflap.allocate(model, scores, sparsity=0.5, granularity="layer")
    result = ecoflap.prune(model, data=data, allocation=allocation, pruner="sparsegpt")
    ecoflap.evaluate(result, lambda module: float(torch.is_grad_enabled()))
    ecoflap.save(result, tmp_path / "pruned")
    after = of_model(given.module, given.processor)
    for noted in ("architectures", "dtype"):  # by save_pretrained
        before[0]["config"].pop(noted), after["config"].pop(noted)
    assert_equal(after, before[0])
    assert_equal(of_process(), before[1])


def test_gradients_of_a_training_neither_count_nor_change() -> None:
    """Those of the last step, which are still there where a loop clears them before the next one."""

    def measured(module: nn.Module) -> tuple[Any, ...]:
        model = ecoflap.load(module, one.processor)
        data = ecoflap.calibrate(model, one.data, samples=4)
        steps = ecoflap.InContext(samples=2, steps=1)
        scores = [ecoflap.score(model, data, name, samples=4) for name in ("first_order", "zeroth_order")]
        allocation = ecoflap.allocate(model, sparsity=0.5, method=steps, data=data)
        return (*(found.importance for found in scores), allocation.keep, allocation.details)

    def step(parameter: torch.nn.Parameter) -> None:
        """As an optimizer that steps in the backward pass."""
        parameter.data.mul_(0.5)

    one = llama()
    wanted, tokens = measured(one.module), one.inputs()["input_ids"]
    one.module(input_ids=tokens, labels=tokens).loss.backward()
    gradients = {name: p.grad.clone() for name, p in one.module.named_parameters()}
    hooks = [p.register_post_accumulate_grad_hook(step) for p in one.module.parameters()]
    assert measured(one.module) == wanted
    assert all(hook.id in hook.hooks_dict_ref() for hook in hooks)
    for name, parameter in one.module.named_parameters():
        assert torch.equal(parameter.grad, gradients[name]), name


def test_hooks_of_an_interrupted_step_do_not_stay_on_parameters() -> None:
    module, ran = nn.Linear(2, 2), list[str]()
    module.weight.register_post_accumulate_grad_hook(lambda _: ran.append("own"))
    with unchanged(module):
        for parameter in module.parameters():
            parameter.register_post_accumulate_grad_hook(lambda _: ran.append("left"))
    module(torch.ones(1, 2)).sum().backward()
    assert ran == ["own"]


def list_of(rows: list[Any]) -> Any:
    return rows if isinstance(rows[0], str) else {name: [row[name] for row in rows] for name in rows[0]}


class Interrupted(Wanda):
    """Wanda until somebody has had enough."""

    def together(self, weights: Any, statistic: Any, keeps: Any) -> Any:
        """Stop at the second block."""
        self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
        if self.__dict__["calls"] > 5:
            raise KeyboardInterrupt
        return super().together(weights, statistic, keeps)


class InterruptedScore(ZerothOrder):
    """Zeroth order until somebody has had enough."""

    def __call__(self, model: Any, calibration: Any, seed: int) -> Any:
        """Stop in the middle of the probes."""
        forward, calls = model.module.lm_head.forward, []

        def interrupt(*arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) > 8:
                raise KeyboardInterrupt
            return forward(*arguments)

        model.module.lm_head.forward = interrupt
        return super().__call__(model, calibration, seed)


INTERRUPTED = {"pruner": Interrupted(), "score": InterruptedScore(samples=4, batch_size=4)}


@pytest.mark.parametrize("part", INTERRUPTED)
def test_an_interrupted_model_is_whole(part: str) -> None:
    one = llama()
    one.module.train()
    before = of_model(one.module, one.processor), of_process()
    with pytest.raises(KeyboardInterrupt) as caught:
        ecoflap.prune(one.module, one.processor, one.data, sparsity=0.5, **{**QUICK, part: INTERRUPTED[part]})
    assert caught.traceback  # which a notebook keeps, with every generator in it
    assert_equal(of_model(one.module, one.processor), before[0])
    assert_equal(of_process(), before[1])
    result = ecoflap.prune(one.module, one.processor, one.data, sparsity=0.5, **QUICK)
    assert result.sparsity >= 0.5


def python(source: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-c", source]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_import_is_light() -> None:
    done = python(
        "import sys, ecoflap\n"
        "heavy = {'torch', 'transformers', 'hydra', 'omegaconf', 'numpy', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert {'prune', 'Wanda', 'load'} <= set(dir(ecoflap))\n"
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_and_documented() -> None:
    for name in ecoflap.__all__:
        found = getattr(ecoflap, name)
        assert getattr(found, "__wrapped__", found).__doc__, name
    with pytest.raises(AttributeError, match="prume"):
        ecoflap.prume  # noqa: B018


@pytest.mark.parametrize("order", ["import ecoflap.prune.driver, ecoflap", "import ecoflap"])
@pytest.mark.every_run("import ecoflap.prune.driver, ecoflap")
def test_folders_named_like_steps_are_both(order: str) -> None:
    done = python(
        f"{order}\n"
        "import inspect\n"
        "import ecoflap.prune.driver as driver\n"
        "from ecoflap.score.scores import Scores\n"
        "assert ecoflap.prune.driver is driver and callable(driver.prune)\n"
        "assert 'sparsity' in inspect.signature(ecoflap.prune).parameters\n"
        "assert 'method' in inspect.signature(ecoflap.score).parameters\n"
        "assert callable(ecoflap.evaluate) and callable(ecoflap.allocate)\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["prune", "score", "allocate", "evaluate"])
def test_steps_are_documented_pickled_and_copied_as_functions(name: str) -> None:
    step = getattr(ecoflap, name)
    assert inspect.getdoc(step) == inspect.getdoc(step.__wrapped__)
    assert "Args:" in pydoc.render_doc(step)
    for copied in (pickle.loads(pickle.dumps(step)), copy.copy(step), copy.deepcopy({"step": step})["step"]):
        assert copied is step


def test_a_step_is_callable_while_another_thread_imports_its_folder() -> None:
    done = python(
        "import sys, types, ecoflap\n"
        "import ecoflap.prune.driver\n"
        "del ecoflap.prune\n"  # as it is before the import has come to its end
        "sys.modules['ecoflap.prune'].__class__ = types.ModuleType\n"
        "assert callable(ecoflap.prune)\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.variant
def test_threads_compose_configs_at_once() -> None:
    done = python(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from hydra.core.config_store import ConfigStore\n"
        "from ecoflap.api.parts import _composed, names, named\n"
        "store = ConfigStore.instance()\n"
        "before = sorted(store.repo)\n"
        "choices = [('pruner', name) for name in names('pruner')]\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    found = list(pool.map(named, *zip(*choices)))\n"
        "_composed.cache_clear()  # which would compare what the threads found with itself\n"
        "assert found == [named(*choice) for choice in choices]\n"
        "assert sorted(store.repo) == before\n"
    )
    assert done.returncode == 0, done.stderr


def test_a_script_prunes_without_a_word_or_a_warning(tmp_path: Path) -> None:
    one = llama()
    one.module.save_pretrained(tmp_path)
    one.processor.save_pretrained(tmp_path)
    done = python(
        f"""
import transformers as hf
hf.logging.disable_progress_bar()
import ecoflap
path = {str(tmp_path)!r}
model, tokenizer = hf.AutoModelForCausalLM.from_pretrained(path), hf.AutoTokenizer.from_pretrained(path)
ecoflap.load(path)
score = ecoflap.ZerothOrder(samples=4, batch_size=4)
texts = ["the cat sees a dog and a house"] * 9
result = ecoflap.prune(model, tokenizer, data=texts, sparsity=0.5, score=score)
print(result)
""",
        "-W",
        "error::UserWarning",
        "-W",
        "error::FutureWarning",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PruneResult(LlamaForCausalLM: 0.5")
    assert not done.stderr


def test_a_user_with_hydra_of_their_own_keeps_it(tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir

    (tmp_path / "mine.yaml").write_text("answer: 42\n")
    one = llama()
    with initialize_config_dir(str(tmp_path), version_base="1.2"):
        ecoflap.prune(one.module, one.processor, one.data, sparsity=0.5, pruner="magnitude", score="none")
        assert compose("mine").answer == 42
