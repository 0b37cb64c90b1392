"""Bad models: folders that hold no model, damaged or quantised ones, ones of another kind, and options that
don't fit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from tests.refusals.case import Case
from tests.refusals.folders import all_of, text

Prepare = Callable[[Path], None]
RUN = ("model=causal_lm", "model.path={tmp}/llama", "score=none", "steps=[calibrate]")
TEXT = (
    "calibration=wikitext2",
    "calibration.path={tmp}/text.txt",
    "calibration.sequence_length=8",
    "calibration.samples=2",
)


@cache
def weights() -> Path:
    """A folder with the weights of the tiny LLaMA, made once."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(mkdtemp())
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=8, max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return folder


def llama(change: Callable[[Path], object] | None = None) -> Prepare:
    """``llama`` with its weights, changed, and a text."""

    def write(folder: Path) -> None:
        shutil.copytree(weights(), folder / "llama", dirs_exist_ok=True)
        if change is not None:
            change(folder / "llama")

    return all_of(text("text.txt", "cat dog " * 99), write)


def settings(**values: Any) -> Callable[[Path], object]:
    """A change of ``config.json``."""

    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def pickled(folder: Path) -> None:
    """A checkpoint that would run code when it is read."""
    torch.save({"model.embed_tokens.weight": Path("anything")}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-500])


def small_embedding(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    state = load_file(file)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in state:
            state[name] = state[name][:4].contiguous()
    save_file(state, file, metadata={"format": "pt"})
    settings(vocab_size=4)(folder)


def lacking(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    state = load_file(file)
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, file, metadata={"format": "pt"})


DAMAGED: list[tuple[Callable[[Path], object], tuple[str, ...], bool]] = [
    (
        lambda folder: (folder / "config.json").write_text("{"),
        ("config.json of model.path={tmp}/llama is not valid JSON", "copy it anew"),
        False,
    ),
    (
        lambda folder: (folder / "config.json").unlink(),
        ("{tmp}/llama", "has no config.json", "copy the checkpoint anew"),
        False,
    ),
    (lambda folder: (folder / "model.safetensors").unlink(), ("{tmp}/llama", "no weights"), True),
    (lambda folder: (folder / "tokenizer.json").write_text("{"), ("{tmp}/llama", "tokenizer"), False),
    (lambda folder: (folder / "tokenizer.json").unlink(), ("{tmp}/llama", "tokenizer"), False),
    (pickled, ("{tmp}/llama", "pickle", "safetensors"), True),
    (cut, ("{tmp}/llama", "model.safetensors is cut off", "copy the file anew"), True),
    (
        lambda folder: (folder / "model.safetensors").write_text("git-lfs"),
        ("not a safetensors file", "copy the file anew"),
        True,
    ),
    (small_embedding, ("8 tokens", "its model embeds 4", "copy both from one place"), False),
    (lacking, ("lacks 1 weights of its model", "model.layers.1.mlp.up_proj.weight"), True),
    (settings(model_type="lama"), ("model_type=lama", "nearest: llama", "correct it"), False),
    (settings(model_type="llava"), ("is a llava", "use model=vlm"), False),
    (settings(model_type="t5"), ("is a t5", "use model=seq2seq"), False),
    (
        settings(quantization_config={"quant_method": "gptq", "bits": 4}),
        ("quantised with gptq", "give the checkpoint that it was made from"),
        False,
    ),
    (
        settings(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("quantised with bitsandbytes", "float32"),
        False,
    ),
    (settings(hidden_size=24), ("21 weights of another shape", "copy both anew from one place"), True),
    (settings(num_hidden_layers=3), ("lacks", "model.layers.2."), True),
]
"""Changes of a good folder, what is said of them, and whether it takes the weights to find out."""

CASES: list[Case] = [
    *(
        Case((*RUN, *TEXT, f"seed={place}"), says, llama(change), after_load=late)
        for place, (change, says, late) in enumerate(DAMAGED)
    ),
    Case(
        (*RUN, *TEXT, "runtime.offload=disk"),
        ("model.safetensors is cut off", "copy the file anew"),
        llama(cut),
        after_load=True,
    ),
    Case(
        (*RUN, *TEXT, "runtime.offload=cpu"),
        ("model.safetensors is cut off", "copy the file anew"),
        llama(cut),
        after_load=True,
    ),
    Case(
        ("model=causal_lm", "model.path=./nowhere", *RUN[2:], *TEXT),
        ("model.path=./nowhere", "no such folder", "org/name"),
        llama(),
    ),
    Case(
        ("model=causal_lm", "model.path=nobody/nothing", *RUN[2:], *TEXT),
        ("model.path=nobody/nothing", "no such folder here, and from the hub: ", "local folder"),
        llama(),
    ),
    Case(
        ("model=causal_lm", "model.path={tmp}/text.txt", *RUN[2:], *TEXT),
        ("model.path={tmp}/text.txt", "folder"),
        llama(),
    ),
    Case(
        ("model=causal_lm", "model.path={tmp}", *RUN[2:], *TEXT),
        ("model.path={tmp} has no config.json", "give {tmp}/"),
        llama(),
    ),
    Case((*RUN, *TEXT, "model.dtype=float8"), ("model.dtype=float8", "float16, bfloat16"), llama()),
    Case(
        (*RUN, *TEXT, "model.revision=main"),
        ("model.revision=main", "is a local folder", "leave it out"),
        llama(),
    ),
    Case((*RUN, *TEXT, "model.loss=nothing"), ("model.loss=nothing", "module.function"), llama()),
    Case(
        (*RUN, *TEXT, "model.loss=os.nothing"),
        ("model.loss=os.nothing", "can't be loaded", "module.function"),
        llama(),
    ),
    Case(
        (*RUN, *TEXT, "+model.towers={language:model.nothing}"),
        ("model.towers.language=model.nothing", "found: model.layers"),
        llama(),
    ),
    Case(
        (*RUN, *TEXT, "towers=[vision]"),
        ("towers=[vision]", "no tower 'vision'", "the only choice is language"),
        llama(),
    ),
    Case((*RUN, *TEXT, "skip_layers=[layers]"), ("skip_layers=[layers] leave no layer", "fewer"), llama()),
    Case((*RUN, *TEXT, "skip_layers=['(']"), ("'('", "not a regular expression"), llama()),
    Case((*RUN, *TEXT, "skip_layers=[layers.7]"), ("'layers.7' matches none", "model.layers.0"), llama()),
    Case(
        ("model=vlm", *RUN[1:], "calibration=easy_vqa", "task=easy_vqa"),
        ("is a llama", "use model=causal_lm"),
        llama(),
    ),
    Case(("model=seq2seq", *RUN[1:], *TEXT), ("is a llama", "use model=causal_lm"), llama()),
    Case(("model=clip", *RUN[1:]), ("is a llama", "use model=causal_lm"), llama()),
    Case(("model=image_classifier", *RUN[1:]), ("is a llama", "use model=causal_lm"), llama()),
    Case(("model=blip2", *RUN[1:]), ("is a llama", "use model=causal_lm"), llama()),
    Case(("model=causal_lm",), ("model.path is required", "model.path=VALUE")),
    Case(
        ("model=torchvision_vit_b16", "model.architecture=vit_b_17"),
        ("model.architecture=vit_b_17", "vit_b_16"),
    ),
    Case(
        ("model=torchvision_vit_b16", "model.weights=nothing"),
        ("model.weights=nothing", "IMAGENET1K_V1"),
        after_load=True,
    ),
    Case(
        ("model=clip_mini", "task=easy_vqa"),
        ("task=easy_vqa needs a model that describes", "clip_mini only", "choose another"),
    ),
    Case(
        ("model=t5_mini", "task=easy_vqa"),
        ("task=easy_vqa needs a model that describes", "t5_mini only", "choose another"),
    ),
    Case(
        ("model=vit_mini", "task=quiz"),
        ("task=quiz needs a model that chooses", "vit_mini only", "choose another"),
    ),
    Case(("model.prompt=hello",), ("model.prompt='hello' must hold {} once",)),
    Case(("model.prompt='{} {}'",), ("model.prompt='{} {}' must hold {} once",)),
    Case(("model.prompt='{name}'",), ("model.prompt='{name}' must hold {} once",)),
    Case(("model.dtype=half",), ("model.dtype=half", "float16")),
]
