"""Our losses are LAVIS' own, sample by sample."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ecoflap.data.example import Example, Generation
from ecoflap.models.families.lavis.blip2 import LavisBlip2Interface
from ecoflap.models.families.lavis.nlvr import NlvrInterface, truth_logits
from tests.lavis import tiny


class Spoken:
    """A tokenizer for LAVIS' forward that gives the tokens of the calibration samples back."""

    pad_token_id, enc_token_id = 0, 7

    def __call__(self, tokens: torch.Tensor, **_: object) -> object:
        from transformers import BatchEncoding

        return BatchEncoding({"input_ids": tokens.clone(), "attention_mask": torch.ones_like(tokens)})


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.MODULES)
def test_loss_is_lavis_own(family: str) -> None:
    model = tiny.build(family)
    batch = tiny.samples(family, lengths=(6, 6, 6)).batches(3)[0]
    losses = model.loss(batch)
    assert losses.shape == (3,)
    assert losses.dtype == torch.float32
    assert losses.std() > 1e-3
    module = model.module
    module.t5_tokenizer = module.tokenizer = Spoken()
    if family == "blip2":
        own = module(
            {"image": batch["pixel_values"], "text_input": batch["input_ids"], "text_output": batch["labels"]}
        )["loss"]
    else:
        batch["input_ids"][:, 0] = Spoken.enc_token_id
        losses = model.loss(batch)
        first, second = batch["pixel_values"].unbind(1)
        own = module(
            {"image0": first, "image1": second, "text_input": batch["input_ids"], "label": batch["labels"]}
        )["loss"]
    torch.testing.assert_close(losses.mean(), own, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.MODULES)
def test_loss_of_a_batch_is_that_of_its_samples(family: str) -> None:
    model, calibration = tiny.build(family), tiny.samples(family, lengths=(5, 5, 5))
    one_by_one = [
        float(model.loss({name: tensor[None] for name, tensor in sample.items()}))
        for sample in calibration.samples
    ]
    torch.testing.assert_close(
        model.loss(calibration.batches(3)[0]), torch.tensor(one_by_one), rtol=1e-5, atol=1e-6
    )


@torch.no_grad()
def test_which_picture_comes_first_matters_and_is_kept() -> None:
    model = tiny.build("nlvr")
    batch = tiny.samples("nlvr", lengths=(5, 5)).batches(2)[0]
    swapped = {**batch, "pixel_values": batch["pixel_values"].flip(1)}
    assert not torch.allclose(model.loss(batch), model.loss(swapped))
    assert torch.equal(model.loss(batch), model.loss(batch))


def test_questions_are_encoded_and_answered_as_lavis_does(tmp_path: Path) -> None:
    from transformers import T5TokenizerFast

    model = tiny.build("blip2")
    tokenizer = T5TokenizerFast.from_pretrained(tiny.t5_tokenizer(tmp_path / "t5"))
    interface = LavisBlip2Interface(tokenizer, tiny.IMAGE, "Question: {} Short answer:")
    examples = [
        Example(text, "Yes.", tiny.picture(tmp_path / f"{i}.png", i))
        for i, text in enumerate(["Is the cat red?", "see the old house in the tree?"])
    ]
    sample = interface.encode(examples[0])
    assert tokenizer.convert_ids_to_tokens(sample["input_ids"]) == [
        "Question",
        ":",
        "is",
        "the",
        "cat",
        "red",
        "?",
        "Short",
        "answer",
        ":",
        "</s>",
    ]
    assert sample["labels"].tolist() == tokenizer(["yes"])["input_ids"][0]
    assert sample["pixel_values"].shape == (3, tiny.IMAGE, tiny.IMAGE)
    model.module.t5_tokenizer = tokenizer
    for generation, own in (
        (Generation(beams=1, max_new_tokens=4), 1),
        (Generation(beams=3, max_new_tokens=4, length_penalty=-1.0), 3),
    ):
        answers = interface.answer(model, examples, generation)
        images = torch.stack([interface.encode(example)["pixel_values"] for example in examples])
        asked = {"image": images, "text_input": [interface.question(example.text) for example in examples]}
        theirs = model.module.predict_answers(
            asked,
            num_beams=own,
            max_len=4,
            min_len=0,
            prompt=interface.prompt,
            length_penalty=-1 if own > 1 else 1,
        )
        assert answers == [answer.strip() for answer in theirs]
        assert any(answers)


def test_pairs_of_pictures_are_encoded_and_classified(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    from ecoflap.errors import UserError

    model = tiny.build("nlvr")
    tokenizer = BertTokenizer.from_pretrained(str(tiny.bert_tokenizer(tmp_path / "bert")))
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    interface = NlvrInterface(tokenizer, tiny.IMAGE)
    first, second = (tiny.picture(tmp_path / f"{i}.png", i) for i in range(2))
    examples = [
        Example("The cat sees a dog.", image=first, second_image=second, label=1),
        Example("a house", image=second, second_image=first, label=0),
    ]
    samples = [interface.encode(example) for example in examples]
    assert samples[0]["pixel_values"].shape == (2, 3, tiny.IMAGE, tiny.IMAGE)
    assert torch.equal(samples[0]["pixel_values"], samples[1]["pixel_values"].flip(0))
    assert tokenizer.decode(samples[0]["input_ids"]) == "[ENC] the cat sees a dog [SEP]"
    assert [int(sample["labels"]) for sample in samples] == [1, 0]
    apart = torch.cat(
        [
            truth_logits(model.module, {name: tensor[None] for name, tensor in sample.items()})
            for sample in samples
        ]
    )
    torch.testing.assert_close(
        interface.classify(model, examples), apart.detach(), rtol=1e-4, atol=1e-5
    )  # padded to one length
    with pytest.raises(UserError, match="two pictures"):
        interface.encode(Example("one", image=first, label=1))
    with pytest.raises(UserError, match="label"):
        interface.encode(Example("no label", image=first, second_image=second))
