"""Tiny random models of LAVIS, built offline from sizes, and calibration data for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip(
    "lavis.models",
    reason="salesforce-lavis is not installed here; make test-lavis has an environment of its own",
)

from ecoflap.data.batch import Sample
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.lavis.blip2 import answer_loss
from ecoflap.models.families.lavis.modules import BareBlip2T5, BareNlvr
from ecoflap.models.families.lavis.nlvr import truth_loss
from ecoflap.models.loading.loader import prunable
from tests.cli.conftest import WORDS

VOCABULARY = 48
QUERIES = 3
IMAGE = 28
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
BERT = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
VISION = {"patch_size": 14, "embed_dim": 16, "depth": 2, "num_heads": 2}
BLIP2: dict[str, Any] = {
    "image_size": IMAGE,
    "queries": QUERIES,
    "vision": {**VISION, "mlp_ratio": 1.5},
    "qformer": {**BERT, "num_hidden_layers": 2},
    "t5": {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}
# From the seventh layer on the two pictures are merged by a layer of their own.
NLVR: dict[str, Any] = {
    "image_size": IMAGE,
    "vision": VISION,
    "text": {**BERT, "num_hidden_layers": 7, "vocab_size": VOCABULARY},
}

MODULES: dict[str, Callable[[], nn.Module]] = {
    "blip2": lambda: BareBlip2T5(BLIP2),
    "nlvr": lambda: BareNlvr(NLVR),
}
LOSSES = {"blip2": answer_loss, "nlvr": truth_loss}


def module(family: str, seed: int = 0) -> Any:
    """Random weights away from 0 and 1, where biases, norms and queries start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = MODULES[family]()
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return built.eval()


def build(family: str, towers: list[str] | None = None) -> PrunableModel:
    return prunable(family, module(family), None, LOSSES[family], Selection(towers))


def samples(family: str, lengths: tuple[int, ...] = (5, 7, 5, 7, 5), seed: int = 1) -> CalibrationSet:
    """One sample per length."""
    generator = torch.Generator().manual_seed(seed)
    return CalibrationSet("tiny", tuple(_sample(family, length, generator) for length in lengths))


def _sample(family: str, length: int, generator: torch.Generator) -> Sample:
    text = _tokens(length, generator)
    if family == "blip2":
        return {
            "pixel_values": torch.randn(3, IMAGE, IMAGE, generator=generator),
            "input_ids": text,
            "labels": _tokens(length - 2, generator),
        }
    pixels = torch.randn(2, 3, IMAGE, IMAGE, generator=generator)
    return {
        "pixel_values": pixels,
        "input_ids": text,
        "attention_mask": torch.ones_like(text),
        "labels": torch.tensor(length % 4 // 2),
    }


def _tokens(length: int, generator: torch.Generator) -> Tensor:
    return torch.randint(3, VOCABULARY, (length,), generator=generator)


def t5_tokenizer(folder: Path) -> Path:
    """A word tokenizer in a folder, as T5's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [
        "<pad>",
        "</s>",
        "<unk>",
        *WORDS,
        "Question",
        "Short",
        "answer",
        ":",
        "is",
        "see",
        "?",
        "yes",
        "no",
    ]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(dict.fromkeys(words))}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def bert_tokenizer(folder: Path) -> Path:
    """A word tokenizer in a folder, as BERT's."""
    from transformers import BertTokenizer

    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS)])
    )
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def picture(file: Path, seed: int) -> str:
    """A random picture in a file."""
    from PIL import Image

    pixels = torch.randint(256, (40, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    Image.fromarray(pixels.numpy()).save(file)
    return str(file)
