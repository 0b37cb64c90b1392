"""Model inputs of any kind: sound, embeddings, long texts, and tensors that go with the tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf

import ecoflap
from ecoflap.api import readable
from ecoflap.errors import UserError
from tests import tiny
from tests.api.conftest import llama, refused
from tests.api.masked_inputs import special, wav2vec2, whisper


def spectrogram_transformer() -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return hf.ASTForAudioClassification(hf.ASTConfig(max_length=32, num_mel_bins=16, **sizes))


@pytest.mark.parametrize(
    ("make", "name", "shape"),
    [
        (whisper, "input_features", (8, 30)),
        (wav2vec2, "input_values", (100,)),
        (spectrogram_transformer, "input_values", (32, 16)),
        (lambda: llama().module, "inputs_embeds", (7, 16)),
    ],
)
def test_one_sample_of_other_inputs_is_one(
    make: Callable[[], Any], name: str, shape: tuple[int, ...]
) -> None:
    model = ecoflap.load(make(), loss=lambda *_: torch.zeros(1))
    rows = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    wanted = ecoflap.calibrate(model, [{name: rows}])
    assert [list(sample[name].shape) for sample in wanted.samples] == [list(shape)] * 4
    for rows_of in (list(rows), [row[None] for row in rows]):
        found = ecoflap.calibrate(model, [{name: row} for row in rows_of])
        assert found.fingerprint() == wanted.fingerprint()


def gpt2(**sizes: int) -> Any:
    torch.manual_seed(0)
    layers = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 30, "n_positions": 16}
    return hf.GPT2LMHeadModel(hf.GPT2Config(bos_token_id=1, eos_token_id=2, **{**layers, **sizes}))


def ids(tokens: int, most: int = 20) -> torch.Tensor:
    return torch.randint(3, most, (2, tokens), generator=torch.Generator().manual_seed(0))


def test_texts_longer_than_the_positions_are_refused() -> None:
    model = ecoflap.load(gpt2())
    refused(model, [{"input_ids": ids(24)}], "input_ids of 24 tokens", "positions for 16", "shorter")
    padded = torch.nn.functional.pad(ids(16), (0, 8))
    found = ecoflap.calibrate(model, [{"input_ids": padded, "attention_mask": padded != 0}])
    assert [list(sample["input_ids"].shape) for sample in found.samples] == [[16]] * 2


@pytest.mark.parametrize("positions", [{}, {"position_ids": torch.arange(8)[None]}])
@pytest.mark.parametrize("make", [lambda: llama().module, lambda: gpt2(), lambda: led()])
def test_a_mask_with_a_gap_is_refused(make: Callable[[], Any], positions: dict[str, torch.Tensor]) -> None:
    gap = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 0]])
    text = {"input_ids": ids(8)[:1], "labels": ids(8)[:1], **positions}
    refused(
        ecoflap.load(make()), [{**text, "attention_mask": gap}], "2 zeros between its ones", "without the gap"
    )


def test_padding_on_both_sides_is_removed_with_its_positions() -> None:
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 0, 0]])
    given = {"input_ids": ids(8)[:1], "attention_mask": mask, "position_ids": torch.arange(8)[None]}
    model = ecoflap.load(llama().module)
    batch = ecoflap.calibrate(model, [given]).batches(1)[0]
    assert torch.equal(batch["position_ids"], torch.arange(1, 6)[None])
    labels = given["input_ids"].masked_fill(torch.tensor([[1, 1, 0, 0, 0, 0, 1, 1]]).bool(), -100)
    with torch.no_grad():
        torch.testing.assert_close(model.loss(batch)[0], model.module(**given, labels=labels).loss)


@pytest.mark.parametrize(
    ("targets", "read"),
    [
        ({"labels": [-100, -100, 12, 13], "decoder_input_ids": [0, 10, 11, 12]}, range(4)),
        ({"labels": [10, -100, 12, 13]}, range(4)),
        ({"labels": [10, -100, 12, 13, -100, -100]}, range(4)),
        ({"labels": [-100, -100, 12, 13], "decoder_attention_mask": [0, 1, 1, 1]}, range(1, 4)),
    ],
    ids=["a prompt", "a gap", "padding at the end", "padding at the start"],
)
def test_a_decoder_reads_tokens_that_are_not_predicted(targets: dict[str, list[int]], read: range) -> None:
    torch.manual_seed(0)
    module = hf.T5ForConditionalGeneration(hf.T5Config(**tiny.GATED_T5)).eval()
    given = {"input_ids": ids(5)[:1], **{name: torch.tensor([row]) for name, row in targets.items()}}
    model = ecoflap.load(module)
    batch = ecoflap.calibrate(model, [given]).batches(1)[0]
    assert batch["labels"][0].tolist() == [targets["labels"][place] for place in read]
    with torch.no_grad():
        torch.testing.assert_close(model.loss(batch)[0], module(**given).loss)


def test_positions_are_looked_for_once_per_set(monkeypatch: pytest.MonkeyPatch) -> None:
    model, looked = ecoflap.load(gpt2()), list[Any]()
    monkeypatch.setattr(readable, "most_tokens", looked.append)
    assert len(ecoflap.calibrate(model, [{"input_ids": ids(8)}, {"input_ids": ids(12)}])) == 4
    assert looked == [model.module]


def test_each_part_of_an_encoder_decoder_has_positions_of_its_own() -> None:
    model = ecoflap.load(led())
    assert len(ecoflap.calibrate(model, [{"input_ids": ids(24), "labels": ids(16)}])) == 2
    long, short = ids(40), ids(8)
    refused(model, [{"input_ids": long, "labels": short}], "input_ids of 40", "positions for 32")
    refused(model, [{"input_ids": short, "labels": ids(24)}], "labels of 24", "positions for 16")


def test_a_set_that_was_drawn_for_another_model_is_checked() -> None:
    larger = ecoflap.calibrate(ecoflap.load(gpt2(vocab_size=90)), [{"input_ids": 60 + ids(8)}])
    longer = ecoflap.calibrate(ecoflap.load(gpt2(n_positions=32)), [{"input_ids": ids(24)}])
    model = ecoflap.load(gpt2())
    for data, said in ((larger, "a vocabulary of 30"), (longer, "positions for 16")):
        for step in (
            lambda data=data: ecoflap.calibrate(model, data),
            lambda data=data: ecoflap.prune(model, data=data, sparsity=0.5),
            lambda data=data: ecoflap.score(model, data),
        ):
            with pytest.raises(UserError, match=said):
                step()


def led() -> Any:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    widths = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "decoder_attention_heads": 2}
    lengths = {"max_encoder_position_embeddings": 32, "max_decoder_position_embeddings": 16}
    return hf.LEDForConditionalGeneration(
        hf.LEDConfig(vocab_size=30, attention_window=8, **special(), **sizes, **widths, **lengths)
    )


def test_what_goes_with_the_tokens_is_cut_with_their_padding() -> None:
    real, count = torch.tensor([[1] * 8 + [0] * 4, [1] * 12]), torch.arange(24).view(2, 12)
    beside = {"global_attention_mask": count % 2, "langs": count, "bbox": count[..., None].repeat(1, 1, 4)}
    given = {"input_ids": ids(12), "attention_mask": real, "labels": ids(5), **beside}
    model = ecoflap.load(led().eval())
    data = ecoflap.calibrate(model, [given])
    for row, length in enumerate((8, 12)):
        for name, tensor in beside.items():
            assert torch.equal(data.samples[row][name], tensor[row, :length]), name
    read = {name: tensor for name, tensor in given.items() if name not in ("langs", "bbox")}
    short = ecoflap.calibrate(model, [read]).batches(1)[0]
    alone = {name: tensor[:1, : 8 if tensor.shape[1] == 12 else None] for name, tensor in read.items()}
    with torch.no_grad():
        torch.testing.assert_close(model.loss(short)[0], model.module(**alone).loss)


@pytest.mark.parametrize("name", ["completion_mask", "assistant_masks"])
def test_masks_of_learned_tokens_become_labels(name: str) -> None:
    """TRL writes the one, and chat templates return the other."""
    model = ecoflap.load(gpt2())
    rows = ids(8)
    learned = torch.tensor([0, 0, 0, 1, 1, 0, 1, 1]).expand(2, -1)
    wanted = ecoflap.calibrate(model, [{"input_ids": rows, "labels": rows.masked_fill(learned == 0, -100)}])
    listed = [{"input_ids": a.tolist(), name: b.tolist()} for a, b in zip(rows, learned, strict=True)]
    for data in ([{"input_ids": rows, name: learned}], [{"input_ids": rows, name: learned.bool()}], listed):
        assert ecoflap.calibrate(model, data).fingerprint() == wanted.fingerprint()
    both = {"completion_mask": torch.ones_like(rows), "assistant_masks": learned}
    assert ecoflap.calibrate(model, [{"input_ids": rows, **both}]).fingerprint() == wanted.fingerprint()
    given = {"input_ids": rows, "labels": rows.masked_fill(learned == 0, -100), name: learned * 0}
    assert ecoflap.calibrate(model, [given]).fingerprint() == wanted.fingerprint()
    refused(model, [{"input_ids": rows, name: learned[:, :5]}], f"{name} of the data has the shape [2, 5]")
