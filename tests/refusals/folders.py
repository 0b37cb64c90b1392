"""What bad command lines read: language models without weights, texts, tokens, pictures, questions."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ecoflap.data.vqa.reading import VQAV2
from tests.data import caption_folders
from tests.data.vqa_folders import write_coco_questions, write_nlvr2, write_test_questions

Prepare = Callable[[Path], None]
WORDS = ("cat", "dog", "tree", "house", "red", "blue")


def all_of(*prepare: Prepare) -> Prepare:
    """One after the other."""

    def do(folder: Path) -> None:
        for one in prepare:
            one(folder)

    return do


def language_models(folder: Path) -> None:
    """``llama``, made for 64 tokens, and ``gpt2``, with positions for 16; no weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, LlamaConfig, PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(("<pad>", "<unk>", *WORDS))}
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    LlamaConfig(
        vocab_size=8, max_position_embeddings=64, architectures=["LlamaForCausalLM"], **sizes
    ).save_pretrained(folder / "llama")
    GPT2Config(vocab_size=8, n_positions=16, n_embd=16, n_layer=2, n_head=2).save_pretrained(folder / "gpt2")
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    for name in ("llama", "gpt2"):
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
        fast.save_pretrained(folder / name)


def text(name: str, content: str | bytes) -> Prepare:
    """A text file, and the language models."""

    def write(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return all_of(language_models, write)


def compressed(content: bytes, length: int | None = None) -> Prepare:
    """``text.jsonl.gz``, all of it or its beginning."""
    return text("text.jsonl.gz", gzip.compress(content)[:length])


def tokens(folder: Path) -> None:
    """Tensors of tokens, good and bad ones, and the language models."""
    language_models(folder)
    rows = torch.arange(40).reshape(2, 20) % 8
    save_file(
        {
            "good": rows,
            "floats": rows.float(),
            "flat": rows.flatten().clone(),
            "none": rows[:0],
            "single": rows[:, :1].contiguous(),
            "foreign": rows + 100,
            "negative": rows - 1,
        },
        folder / "tokens.safetensors",
    )
    (folder / "words.safetensors").write_text("this is no safetensors file")


def allocation(change: Callable[[dict[str, Any]], object]) -> Prepare:
    """``allocation.json`` of the LLaMA, changed."""

    def write(folder: Path) -> None:
        language_models(folder)
        shapes = {
            "self_attn.q_proj": 256,
            "self_attn.k_proj": 256,
            "self_attn.v_proj": 256,
            "self_attn.o_proj": 256,
        }
        shapes |= {"mlp.gate_proj": 512, "mlp.up_proj": 512, "mlp.down_proj": 512}
        sizes = {
            f"model.layers.{block}.{name}.weight": size for block in range(2) for name, size in shapes.items()
        }
        keep = {name: size // 2 for name, size in sizes.items()}
        value: dict[str, Any] = {"keep": keep, "sizes": sizes, "target": 0.5, "granularity": "layer"}
        change(value)
        (folder / "allocation.json").write_text(json.dumps(value))

    return write


def file(name: str, content: Any) -> Prepare:
    """A file in ``data``: a text as it is, anything else as JSON."""

    def write(folder: Path) -> None:
        place = folder / "data" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content if isinstance(content, str) else json.dumps(content))

    return write


def captions(layout: str, change: Callable[[Path], object] | None = None) -> Prepare:
    """Pictures with captions in ``data``, changed."""

    def write(folder: Path) -> None:
        data = folder / "data"
        data.mkdir()
        {
            "coco": caption_folders.karpathy,
            "nocaps": caption_folders.nocaps,
            "cc3m": caption_folders.cc3m,
            "folder": caption_folders.plain,
        }[layout](data)
        if change is not None:
            change(data)

    return write


def questions(split: str, change: Callable[[Path], object] | None = None) -> Prepare:
    """VQAv2's questions of a split in ``data``, changed."""

    def write(folder: Path) -> None:
        data = folder / "data"
        data.mkdir()
        if split == "test-dev":
            write_test_questions(data, VQAV2)
        else:
            write_coco_questions(data, VQAV2, split)
        if change is not None:
            change(data)

    return write


def pairs(split: str, change: Callable[[Path], object] | None = None) -> Prepare:
    """NLVR2's sentences of a split in ``data``, changed."""

    def write(folder: Path) -> None:
        data = folder / "data"
        data.mkdir()
        write_nlvr2(data, split)
        if change is not None:
            change(data)

    return write


def classes(split: str, *names: str) -> Prepare:
    """Pictures of some classes in ``data``, one each."""

    def write(folder: Path) -> None:
        for name, picture in zip(names, caption_folders.one_of_each("test"), strict=False):
            place = folder / "data" / split / name
            place.mkdir(parents=True)
            shutil.copy(picture.image or "", place / "0.png")

    return write


def edited(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    """A change of a JSON file's value, in place."""

    def edit(data: Path) -> None:
        value = json.loads((data / name).read_text())
        change(value)
        (data / name).write_text(json.dumps(value))

    return edit


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    """A change of the text of files."""

    def replace(data: Path) -> None:
        for place in data.glob(name):
            place.write_text(place.read_text().replace(old, new))

    return replace


def without(name: str) -> Callable[[Path], None]:
    """One file less."""
    return lambda data: next(data.glob(name)).unlink()
