"""Tiny models in memory, each with its tokenizer or processor, and data that they read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

import ecoflap
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from tests import tiny
from tests.cli.conftest import WORDS
from tests.cli.test_vlm import language
from tests.cli.test_vlm import tokenizer as vlm_tokenizer

QUICK = {"score": ecoflap.ZerothOrder(samples=4, batch_size=4)}
MINI_CLIP = Path(ecoflap.__file__).parent / "mini" / "clip"
CHAT = (
    "{% for message in messages %}USER: {% for part in message['content'] %}{% if part['type'] == 'image'"
    " %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %} ASSISTANT:{% endfor %}"
)


@dataclass(frozen=True)
class Given:
    """A model in memory with what it takes.

    Attributes:
        module: of transformers.
        processor: its tokenizer or processor.
        data: what it calibrates with.
        again: the class that loads it.
    """

    module: nn.Module
    processor: Any
    data: list[Any]
    again: Any

    def inputs(self) -> dict[str, torch.Tensor]:
        """A batch of one sample of the data."""
        sample = ecoflap.calibrate(ecoflap.load(self.module, self.processor), self.data).samples[0]
        batched = isinstance(self.module, hf.LlavaForConditionalGeneration)
        return {
            name: tensor if batched else tensor[None] for name, tensor in sample.items() if name != "labels"
        }


def texts(count: int = 12, seed: int = 1) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    return [
        " ".join(WORDS[pick] for pick in torch.randint(len(WORDS), (30,), generator=generator).tolist())
        for _ in range(count)
    ]


def picture(number: int) -> Any:
    from PIL import Image

    values = torch.randint(
        256, (20, 24, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8
    )
    return Image.fromarray(values.numpy())


def word_tokenizer(**options: Any) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: index for index, word in enumerate(["<pad>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", **options)


def llama() -> Given:
    torch.manual_seed(0)
    sizes = {**tiny.LLAMA, "vocab_size": len(WORDS) + 2, "max_position_embeddings": 64}
    module = hf.LlamaForCausalLM(hf.LlamaConfig(num_key_value_heads=1, initializer_range=0.3, **sizes))
    return Given(module.eval(), word_tokenizer(), texts(), hf.AutoModelForCausalLM)


def clip() -> Given:
    torch.manual_seed(0)
    processor = hf.CLIPProcessor.from_pretrained(MINI_CLIP)
    config = hf.CLIPConfig.from_pretrained(MINI_CLIP)
    config.text_config.num_hidden_layers = config.vision_config.num_hidden_layers = 1
    data = [{"image": picture(i), "text": f"a picture of {i} things"} for i in range(6)]
    return Given(hf.CLIPModel(config).eval(), processor, data, hf.CLIPModel)


def llava() -> Given:
    torch.manual_seed(0)
    words = vlm_tokenizer()
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**tiny.VISION),
        text_config=hf.LlamaConfig(**language(len(words)), bos_token_id=1, eos_token_id=2),
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    images = hf.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    processor = hf.LlavaProcessor(
        images,
        words,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )
    questions = ["what shape is there ?", "is there a circle ?"]
    data = [
        {"image": picture(i), "text": questions[i % 2], "target": ["circle", "no"][i % 2]} for i in range(6)
    ]
    module = hf.LlavaForConditionalGeneration(config)
    return Given(module.eval(), processor, data, hf.LlavaForConditionalGeneration)


MODELS: dict[str, Callable[[], Given]] = {"llama": llama, "clip": clip, "llava": llava}


@pytest.fixture(params=MODELS)
def given(request: pytest.FixtureRequest) -> Given:
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def language_model() -> PrunableModel:
    one = llama()
    return ecoflap.load(one.module, one.processor)


def talk(question: str, answer: str, **columns: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **columns}


def refused(model: PrunableModel, data: Any, *words: str, **options: Any) -> None:
    with pytest.raises(UserError) as caught:
        ecoflap.calibrate(model, data, **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)
