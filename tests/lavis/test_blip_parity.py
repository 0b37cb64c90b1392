"""The same BLIP for questions and for retrieval in LAVIS and in transformers: what the text encoder reads,
matches, and answers out of a list.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from tests.lavis import tiny  # skips where LAVIS is not installed

if not hasattr(transformers, "BlipForQuestionAnswering"):
    pytest.skip("this release of transformers has no BLIP", allow_module_level=True)

from lavis.models import med
from lavis.models.blip_models.blip_retrieval import BlipRetrieval
from lavis.models.blip_models.blip_vqa import BlipVQA

from ecoflap.data.example import Example
from ecoflap.models.core.losses import class_loss
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.families.blip.retrieval import RetrievalInterface
from ecoflap.models.families.blip.text import VqaInterface
from ecoflap.models.families.lavis.modules import blip_tower
from tests.cli.conftest import WORDS

TEXTS = ("the cat", "the red dog likes a small tree in the old house", "a house")
ANSWERS = ["cat", "red dog", "red", "old house", "tree and house", "dog", "the cat sees"]
RENAMED = (
    ("visual_encoder.blocks.", "vision_model.encoder.layers."),
    ("visual_encoder.norm.", "vision_model.post_layernorm."),
    ("visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    (".attn.proj.", ".self_attn.projection."),
    (".attn.", ".self_attn."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
)


@pytest.fixture
def words(tmp_path: Path) -> Any:
    """BERT's tokenizer over a few words, as the published checkpoints of transformers have it: without [DEC]
    and [ENC].
    """
    return transformers.BertTokenizer.from_pretrained(tiny.bert_tokenizer(tmp_path / "words"))


def lavis_tokenizer(folder: Path) -> Any:
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    tokenizer.enc_token_id = tokenizer.additional_special_tokens_ids[0]
    return tokenizer


def lavis_module(kind: str, tokenizer: Any) -> Any:
    """LAVIS' class around towers of two blocks, without its downloads."""
    bert = med.BertConfig(
        **tiny.BERT,
        num_hidden_layers=2,
        vocab_size=len(tokenizer),
        encoder_width=16,
        add_cross_attention=True,
        add_type_embeddings=False,
    )
    module: Any = BlipVQA.__new__(BlipVQA) if kind == "vqa" else BlipRetrieval.__new__(BlipRetrieval)
    nn.Module.__init__(module)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module.tokenizer, module.max_txt_len = tokenizer, 35
        module.visual_encoder = blip_tower(tiny.IMAGE, tiny.VISION)
        module.text_encoder = med.XBertEncoder(bert, add_pooling_layer=False)
        if kind == "vqa":
            module.text_decoder = med.XBertLMHeadDecoder(bert)
        else:
            module.vision_proj, module.text_proj, module.itm_head = (
                nn.Linear(16, 8),
                nn.Linear(16, 8),
                nn.Linear(16, 2),
            )
        for parameter in module.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return module.eval()


def in_transformers(kind: str, module: Any, vocabulary: int) -> Any:
    """The same weights in transformers' class."""
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {
        **size,
        "intermediate_size": 64,
        "image_size": tiny.IMAGE,
        "patch_size": 14,
        "layer_norm_eps": 1e-6,
        "attention_dropout": 0.0,
    }
    special = {"bos_token_id": vocabulary - 2, "pad_token_id": 0, "sep_token_id": 3, "eos_token_id": 3}
    text = {
        **size,
        "encoder_hidden_size": 16,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        **special,
    }
    config = transformers.BlipConfig(vision_config=vision, text_config=text, image_text_hidden_size=8)
    built: Any = (
        transformers.BlipForQuestionAnswering if kind == "vqa" else transformers.BlipForImageTextRetrieval
    )(config).eval()
    state = {}
    for name, tensor in module.state_dict().items():
        for theirs, ours in RENAMED if name.startswith("visual_encoder") else ():
            name = name.replace(theirs, ours)
        state[name] = tensor
    own = built.state_dict()
    lost, unknown = built.load_state_dict(
        {name: tensor for name, tensor in state.items() if name in own}, strict=False
    )
    assert not unknown
    assert not [name for name in lost if "position_ids" not in name]
    return built


def pictures() -> Tensor:
    return torch.randn(len(TEXTS), 3, tiny.IMAGE, tiny.IMAGE, generator=torch.Generator().manual_seed(3))


def processor(tokenizer: Any) -> Any:
    """``image`` of the examples is the number of a picture."""
    return SimpleNamespace(tokenizer=tokenizer, image_processor=None)


def looks(interface: Any) -> None:
    interface.pixels = lambda paths: pictures()[[int(path) for path in paths]]


def as_model(module: Any, interface: Any) -> PrunableModel:
    return PrunableModel("tiny", module, (), (), (), lambda *_: torch.zeros(1), None, interface)


@torch.no_grad()
def test_questions_as_the_encoder_reads_them_and_ranked_answers(words: Any, tmp_path: Path) -> None:
    theirs = lavis_module("vqa", lavis_tokenizer(tmp_path / "words"))
    module = in_transformers("vqa", theirs, len(theirs.tokenizer))
    interface = VqaInterface(module, processor(words), theirs.tokenizer.enc_token_id)
    looks(interface)
    model, samples = as_model(module, interface), {"image": pictures(), "text_input": list(TEXTS)}
    expected = theirs.forward_encoder(samples)[0].last_hidden_state
    read = {}
    hook = module.text_encoder.register_forward_hook(lambda *call: read.update(states=call[2][0]))
    asked = [Example(text, image=str(row)) for row, text in enumerate(TEXTS)]
    ranked = {k: interface.rank(model, asked, ANSWERS, k) for k in (1, 4, 128)}
    hook.remove()
    real = samples["tokenized_text"].attention_mask.bool()
    torch.testing.assert_close(read["states"][real], expected[real], rtol=1e-4, atol=1e-5)
    for k, answers in ranked.items():
        assert answers == theirs.predict_answers(
            {"image": pictures(), "text_input": list(TEXTS)}, answer_list=ANSWERS, num_ans_candidates=k
        )


@torch.no_grad()
def test_matches_and_texts_apart(words: Any, tmp_path: Path) -> None:
    theirs = lavis_module("retrieval", lavis_tokenizer(tmp_path / "words"))
    module = in_transformers("retrieval", theirs, len(theirs.tokenizer))
    interface = RetrievalInterface(None, words, theirs.tokenizer.enc_token_id)  # type: ignore[arg-type]
    looks(interface)
    model, tokens = (
        as_model(module, interface),
        theirs.tokenizer(list(TEXTS), padding=True, return_tensors="pt"),
    )
    apart = nn.functional.normalize(
        theirs.text_proj(theirs.text_encoder.forward_text(tokens).last_hidden_state[:, 0]), dim=-1
    )
    torch.testing.assert_close(interface.embed_texts(model, TEXTS), apart, rtol=1e-4, atol=1e-5)
    tokens["input_ids"][:, 0] = theirs.tokenizer.enc_token_id
    states = theirs.visual_encoder.forward_features(pictures())
    logits = theirs.itm_head(theirs.text_encoder.forward_automask(tokens, states).last_hidden_state[:, 0])
    torch.testing.assert_close(
        interface.match(model, ["0", "1", "2"], TEXTS), logits[:, 1], rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_the_matching_loss(words: Any, tmp_path: Path) -> None:
    """Of right pairs and of each text with the picture of the sample before it, from LAVIS' own encoder and
    head.
    """
    from ecoflap.models.families.blip.retrieval import match_loss

    theirs = lavis_module("retrieval", lavis_tokenizer(tmp_path / "words"))
    module = in_transformers("retrieval", theirs, len(theirs.tokenizer))
    interface = RetrievalInterface(None, words, theirs.tokenizer.enc_token_id)  # type: ignore[arg-type]
    looks(interface)
    tokens = theirs.tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    batch = {
        "pixel_values": pictures(),
        "input_ids": tokens["input_ids"].clone(),
        "attention_mask": tokens["attention_mask"],
    }
    batch["encoder_token"] = torch.stack(
        [interface.encode(Example(target=text, image="0"))["encoder_token"] for text in TEXTS]
    )
    tokens["input_ids"][:, 0] = theirs.tokenizer.enc_token_id
    states = theirs.visual_encoder.forward_features(pictures())
    logits = [
        theirs.itm_head(theirs.text_encoder.forward_automask(tokens, shown).last_hidden_state[:, 0])
        for shown in (states, states.roll(1, 0))
    ]
    expected = (
        class_loss(logits[0], torch.ones(3, dtype=torch.long))
        + class_loss(logits[1], torch.zeros(3, dtype=torch.long))
    ) / 2
    torch.testing.assert_close(match_loss(module, batch), expected, rtol=1e-4, atol=1e-5)
    assert set(" ".join(TEXTS).split()) <= set(WORDS), "no unknown words, which would all read alike"
