"""Padding of any model inputs is removed: a padded batch gives the masks that its samples give one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import ecoflap
from ecoflap.models.core.losses import IGNORED, token_loss
from tests import tiny
from tests.api.test_data_forms import refused
from tests.api.test_model_inputs import special

LENGTHS, TARGETS = (4, 12, 5), (7, 3, 5)
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SIDES = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
WIDTHS = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
Rows = list[dict[str, Tensor]]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape)


def targets() -> list[Tensor]:
    return [torch.randint(3, 20, (count,)) for count in TARGETS]


def whisper() -> Any:
    config = hf.WhisperConfig(
        vocab_size=20, num_mel_bins=8, max_source_positions=15, **special(), **SIDES, **WIDTHS
    )
    return hf.WhisperForConditionalGeneration(config)


def speech_to_text() -> Any:
    config = {
        "input_feat_per_channel": 8,
        "conv_channels": 8,
        "num_conv_layers": 1,
        "max_source_positions": 40,
    }
    return hf.Speech2TextForConditionalGeneration(
        hf.Speech2TextConfig(vocab_size=20, conv_kernel_sizes=(5,), **config, **special(), **SIDES, **WIDTHS)
    )


def qwen3() -> Any:
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**{**tiny.LLAMA, "head_dim": 8, "num_key_value_heads": 1}))


def t5() -> Any:
    return hf.T5ForConditionalGeneration(hf.T5Config(**tiny.GATED_T5))


def bert() -> Any:
    return hf.BertForTokenClassification(hf.BertConfig(num_labels=20, **tiny.TEXT))


def captioner() -> Any:
    decoder = {"is_decoder": True, "add_cross_attention": True, "bos_token_id": 1, "eos_token_id": 2}
    encoder, decoder = hf.ViTConfig(**tiny.VISION), hf.BertConfig(**tiny.TEXT, **decoder)
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return hf.VisionEncoderDecoderModel(config)


def wav2vec2() -> Any:
    kernels = {"conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (5, 4)}
    sizes = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer"}
    return hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(vocab_size=20, **kernels, **sizes, **SIZE))


def pix2struct() -> Any:
    text = {"vocab_size": 20, "hidden_size": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    vision = {"patch_embed_hidden_size": 12, "d_ff": 24, "d_kv": 8, "seq_len": 12, **SIZE}
    del vision["intermediate_size"]
    config = hf.Pix2StructConfig(text_config={**text, "decoder_start_token_id": 0}, vision_config=vision)
    return hf.Pix2StructForConditionalGeneration(config)


def siglip2() -> Any:
    vision = {**SIZE, "num_patches": 16, "patch_size": 2, "num_channels": 3}
    return hf.Siglip2ForImageClassification(hf.Siglip2Config(vision_config=vision))


def shaped() -> Rows:
    """Patches of pictures of unequal shapes, whose mask is cut with them."""
    shapes = [(2, 2), (3, 4), (1, 5)]
    return [
        {
            "pixel_values": noise(rows * cols, 12),
            "pixel_attention_mask": torch.ones(rows * cols).long(),
            "spatial_shapes": torch.tensor([rows, cols]),
        }
        for rows, cols in shapes
    ]


def patches() -> Rows:
    """Flattened ones, which begin with their row and column; as Pix2Struct's processor returns them."""
    made = [torch.cat([torch.arange(2 * n).view(n, 2) % 5, noise(n, 12)], dim=1) for n in LENGTHS]
    pairs = zip(made, targets(), strict=True)
    return [{"flattened_patches": of[None], "labels": label[None]} for of, label in pairs]


def spoken(name: str, *shapes: tuple[int, ...]) -> Rows:
    return [{name: noise(*shape), "labels": label} for shape, label in zip(shapes, targets(), strict=True)]


def embedded(same: bool) -> Rows:
    lengths = LENGTHS if same else TARGETS
    labels = [torch.randint(3, 20, (length,)) for length in lengths]
    pairs = zip(LENGTHS, labels, strict=True)
    return [{"inputs_embeds": noise(length, 16), "labels": label} for length, label in pairs]


def written_loss(module: nn.Module, batch: Any, copies: int = 1) -> Tensor:
    return token_loss(module(**batch).logits, batch["labels"])


def heard_loss(module: nn.Module, batch: Any, copies: int = 1) -> Tensor:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    return module(**inputs).logits.square().mean(dim=(1, 2))


def seen_loss(module: nn.Module, batch: Any, copies: int = 1) -> Tensor:
    return module(**batch).logits.square().mean(dim=1)


WAVES = [(100,), (400,), (160,)]
FRAMES = [(24, 8), (40, 8), (12, 8)]
KINDS: dict[str, tuple[Callable[[], Any], Callable[[], Rows], str | None, Any]] = {
    # the model, its samples, the input that is padded and masked, and a loss where it has none of its own
    "whisper": (whisper, lambda: spoken("input_features", *[(8, 30)] * 3), None, written_loss),
    "speech_to_text": (
        speech_to_text,
        lambda: spoken("input_features", *FRAMES),
        "input_features",
        written_loss,
    ),
    "qwen3": (qwen3, lambda: embedded(True), "inputs_embeds", None),
    "t5": (t5, lambda: embedded(False), "inputs_embeds", None),
    "bert": (bert, lambda: embedded(True), "inputs_embeds", written_loss),
    "captioner": (captioner, lambda: spoken("pixel_values", *[(3, 8, 8)] * 3), None, None),
    "pix2struct": (pix2struct, patches, "flattened_patches", None),
    "wav2vec2": (wav2vec2, lambda: spoken("input_values", *WAVES), "input_values", heard_loss),
}


def filled(tensors: list[Tensor], dim: int, value: float, side: str) -> Tensor:
    """The tensors at one length along a dimension, one after the other in a batch."""
    longest = max(tensor.shape[dim] for tensor in tensors)
    rows = []
    for tensor in tensors:
        shape = list(tensor.shape)
        shape[dim] = longest - shape[dim]
        parts = (tensor, tensor.new_full(shape, value))
        rows.append(torch.cat(parts if side == "right" else parts[::-1], dim=dim))
    return torch.stack(rows)


def padded(rows: Rows, name: str | None, side: str) -> dict[str, Tensor]:
    """A batch as a collator makes it; labels of tokens are padded as these are, others at their end."""
    joins = "flattened_patches" in rows[0]
    rows = [{name: tensor[0] if joins else tensor for name, tensor in row.items()} for row in rows]
    together = name == "inputs_embeds" and all(len(row["labels"]) == len(row[name]) for row in rows)
    labels = filled([row["labels"] for row in rows], 0, IGNORED, side if together else "right")
    if name is None:
        (name,) = set(rows[0]) - {"labels"}
        return {name: torch.stack([row[name] for row in rows]), "labels": labels}
    ones = [torch.ones(len(row[name])).long() for row in rows]
    return {
        name: filled([row[name] for row in rows], 0, 1, side),
        "attention_mask": filled(ones, 0, 0, side),
        "labels": labels,
    }


def masks(module: Any, data: Any, loss: Any) -> dict[str, Tensor]:
    model = ecoflap.load(module, **({} if loss is None else {"loss": loss}))
    choices = {"pruner": "wanda", "score": "none", "propagate": "dense", "batch_size": 2}
    return dict(ecoflap.prune(model, data=data, sparsity=0.5, **choices).masks)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_batch_is_pruned_as_its_samples_are(kind: str, side: str) -> None:
    make, samples, name, loss = KINDS[kind]
    if name is None and side == "left":
        pytest.skip("nothing that the encoder reads is padded")
    found = []
    for batch in (False, True):
        torch.manual_seed(0)
        rows, module = samples(), make().eval()
        found.append(masks(module, [padded(rows, name, side)] if batch else rows, loss))
    alone, together = found
    assert any(mask.any() and not mask.all() for mask in alone.values())
    assert not [layer for layer, mask in alone.items() if not torch.equal(mask, together[layer])]


@pytest.mark.skipif(not hasattr(hf, "Siglip2ForImageClassification"), reason="a newer model")
def test_a_padded_batch_of_patches_is_pruned_as_its_pictures_are() -> None:
    found = []
    for batch in (False, True):
        torch.manual_seed(0)
        rows, module = shaped(), siglip2().eval()
        together = {
            "spatial_shapes": torch.stack([row["spatial_shapes"] for row in rows]),
            **{
                name: filled([row[name] for row in rows], 0, 0, "right")
                for name in ("pixel_values", "pixel_attention_mask")
            },
        }
        found.append(masks(module, [together] if batch else rows, seen_loss))
    alone, padded_together = found
    assert any(mask.any() and not mask.all() for mask in alone.values())
    assert not [layer for layer, mask in alone.items() if not torch.equal(mask, padded_together[layer])]


class Own(nn.Module):
    """Blocks whose masks may be of any meaning."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(block, 2).layers

    def forward(self, states: Tensor | None = None, **others: Tensor) -> Tensor:
        states = others["inputs_embeds"] if states is None else states
        for layer in self.layers:
            states = layer(states)
        return states


CAUSAL = torch.ones(5, 5).tril()


@pytest.mark.parametrize(
    "mask",
    [
        CAUSAL.bool(),
        torch.where(CAUSAL == 1, 0.0, -1e9),
        torch.zeros(5),
        torch.tensor([0.0, 0, 0, -1e9, -1e9]),
    ],
)
@pytest.mark.parametrize("name", ["states", "inputs_embeds"])
def test_masks_of_one_s_own_model_that_mark_no_padding_are_as_given(name: str, mask: Tensor) -> None:
    loss = lambda module, batch, copies=1: module(**batch).square().mean(dim=(1, 2))
    given = {name: noise(1, 5, 8), "attention_mask": mask[None]}
    (sample,) = ecoflap.calibrate(ecoflap.load(Own(), loss=loss), [given]).samples
    assert torch.equal(sample[name], given[name][0])
    assert torch.equal(sample["attention_mask"], mask)


def test_a_mask_that_is_added_is_not_taken_for_padding_of_tokens() -> None:
    given = {"inputs_embeds": noise(1, 5, 16), "labels": torch.ones(1, 5).long()}
    added = torch.tensor([[0.0, 0.0, 0.0, -1e9, -1e9]])
    refused(ecoflap.load(qwen3()), [{**given, "attention_mask": added}], "of ones and zeros in the shape [5]")


def test_padding_of_a_wave_whose_frames_have_labels_is_refused() -> None:
    module = hf.Wav2Vec2ForAudioFrameClassification(wav2vec2().config)
    wave, mask = noise(1, 100), torch.tensor([1, 0]).repeat_interleave(50)[None]
    given = {"input_values": wave, "labels": torch.zeros(1, 3, 2)}
    model = ecoflap.load(module, loss=heard_loss)
    assert len(ecoflap.calibrate(model, [given])) == 1
    refused(model, [{**given, "attention_mask": mask}], "labels [3, 2]", "one by one, without padding")


def test_a_mask_of_frames_stays_where_all_are_read() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([1, 0]).repeat_interleave(15)
    rows = [{**row, "attention_mask": mask} for row in spoken("input_features", *[(8, 30)] * 3)]
    found = ecoflap.calibrate(ecoflap.load(whisper(), loss=written_loss), rows).samples
    for sample, row in zip(found, rows, strict=True):
        assert sample.keys() == row.keys()
        assert all(torch.equal(sample[name], row[name]) for name in row)


def test_what_goes_with_the_tokens_is_cut_with_their_padding() -> None:
    model = ecoflap.load(bert(), loss=written_loss)
    torch.manual_seed(0)
    places, mask = torch.arange(6)[None], torch.tensor([[0, 0, 1, 1, 1, 0]])
    beside = {"position_ids": places, "token_type_ids": places % 2, "labels": places}
    (sample,) = ecoflap.calibrate(
        model, [{"inputs_embeds": noise(1, 6, 16), "attention_mask": mask, **beside}]
    ).samples
    assert {name: list(tensor.shape) for name, tensor in sample.items()} == {
        "inputs_embeds": [3, 16],
        **{name: [3] for name in ("attention_mask", *beside)},
    }
    assert sample["position_ids"].tolist() == sample["labels"].tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    ("labels", "beside", "kept"),
    [
        ([5, 6, IGNORED, IGNORED], {"decoder_input_ids": [1, 5, 6, 0]}, 2),
        ([IGNORED, 6, 7, 8], {"decoder_attention_mask": [0, 1, 1, 1]}, 3),
    ],
)
def test_all_that_a_decoder_reads_beside_a_picture_is_cut(
    labels: list[int], beside: dict[str, list[int]], kept: int
) -> None:
    text = {name: torch.tensor([row]) for name, row in {"labels": labels, **beside}.items()}
    model = ecoflap.load(captioner())
    (sample,) = ecoflap.calibrate(model, [{"pixel_values": noise(1, 3, 8, 8), **text}]).samples
    assert {name: list(sample[name].shape) for name in text} == {name: [1, kept] for name in text}


def test_the_class_of_a_text_is_no_text() -> None:
    config = hf.BartConfig(**{**tiny.bart_config().to_dict(), "num_labels": 3})
    model = ecoflap.load(hf.BartForSequenceClassification(config), loss=lambda *_: torch.zeros(1))
    given = {"input_ids": torch.randint(3, 20, (2, 5)), "labels": torch.tensor([1, 2])}
    assert [sample["labels"].tolist() for sample in ecoflap.calibrate(model, [given]).samples] == [1, 2]


def test_padding_that_cannot_be_removed_is_refused() -> None:
    waves, halves = ecoflap.load(wav2vec2(), loss=heard_loss), torch.tensor([1, 0]).repeat_interleave(50)
    wave = {"input_values": noise(1, 100)}
    by_frame = {**wave, "attention_mask": halves[None, ::10]}
    one = ("one by one, without padding", "attention_mask [10] with zeros", "input_values [100]")
    refused(waves, [by_frame], *one)
    refused(waves, [{**wave, "attention_mask": 0 * halves[None]}], "nothing but padding")
    gap = halves.roll(25)[None]
    refused(waves, [{**wave, "attention_mask": 1 - gap}], "50 zeros between its ones", "without the gap")
    pictures = ecoflap.load(tiny.CLASSIFIER["vit"](), loss=heard_loss)
    picture = {"pixel_values": noise(2, 3, 8, 8), "pixel_mask": torch.ones(2, 8, 8)}
    assert len(ecoflap.calibrate(pictures, [picture])) == 2
    picture["pixel_mask"][1, 5:] = 0
    refused(pictures, [picture], "one by one, without padding", "pixel_mask [8, 8]")


def test_embeddings_are_checked_as_tokens_are() -> None:
    model, given = (
        ecoflap.load(qwen3()),
        {"inputs_embeds": noise(1, 5, 16), "labels": torch.ones(1, 5).long()},
    )
    packed = torch.ones(1, 5, 5).tril()
    refused(model, [{**given, "attention_mask": packed}], "inputs_embeds [5, 16]", "the shape [5]", "packed")
    gap = torch.tensor([[1, 1, 0, 1, 1]])
    refused(model, [{**given, "attention_mask": gap}], "1 zeros between its ones", "inputs_embeds")
    refused(model, [{**given, "labels": torch.ones(1, 4).long()}], "labels [4]", "a label per token")
    refused(model, [{**given, "labels": torch.full((1, 5), IGNORED)}], "no target")
    written = torch.full((1, 4), IGNORED)
    refused(ecoflap.load(captioner()), [{"pixel_values": noise(1, 3, 8, 8), "labels": written}], "no target")
