"""Any vision-language model of transformers through its own processor, from questions to a verified
checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from ecoflap.data.easy_vqa.reading import read_questions
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.vlm.vlm import VisionLanguage
from ecoflap.storage.results import Result, verify
from tests import tiny

SPECIAL = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<image>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "USER:",
    "ASSISTANT:",
]
CHAT = (
    "{% for message in messages %}USER: {% for part in message['content'] %}{% if part['type'] == 'image'"
    " %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    " ASSISTANT:{% endfor %}"
)


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted(
        {
            word
            for question in read_questions("train")[:2000]
            for word in f"{question.text} {question.target}".replace("?", " ?").split()
        }
    )
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    names = ["input_ids", "attention_mask"]
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made, additional_special_tokens=SPECIAL[4:], model_input_names=names, **special
    )


def language(vocabulary: int) -> dict[str, Any]:
    return {
        **tiny.LLAMA,
        "vocab_size": vocabulary,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
    }


def save_llava(folder: Path) -> None:
    words = tokenizer()
    vision = hf.CLIPVisionConfig(**tiny.VISION)
    text = hf.LlamaConfig(**language(len(words)), bos_token_id=1, eos_token_id=2)
    config = hf.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=words.convert_tokens_to_ids("<image>")
    )
    hf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = hf.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    hf.LlavaProcessor(
        images, words, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ).save_pretrained(folder)


def save_qwen(folder: Path) -> None:
    words = tokenizer()
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    config = tiny.qwen_config(
        **{name: words.convert_tokens_to_ids(token) for name, token in names.items()},
        text=language(len(words)),
    )
    hf.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    images = hf.Qwen2VLImageProcessor(
        patch_size=2, merge_size=2, temporal_patch_size=2, min_pixels=64, max_pixels=256
    )
    video = hf.Qwen2VLVideoProcessor(patch_size=2, merge_size=2, temporal_patch_size=2)
    hf.Qwen2_5_VLProcessor(images, words, video, chat_template=CHAT).save_pretrained(folder)


FAMILIES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "llava": (save_llava, ["model.prompt='USER: <image> {} ASSISTANT:'"]),
    "qwen2_5_vl": (save_qwen, []),  # its chat template knows how
}


@pytest.fixture(params=[family for family in FAMILIES if family in tiny.FAMILIES])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, list[str]]:
    save, options = FAMILIES[request.param]
    torch.manual_seed(0)
    save(tmp_path / request.param)
    return request.param, [f"model.path={tmp_path / request.param}", *options]


def test_questions_run_through_the_models_own_processor(
    run: Callable[..., Result], saved: tuple[str, list[str]], tmp_path: Path
) -> None:
    shared = [
        "model=vlm",
        "calibration=easy_vqa",
        "calibration.samples=6",
        "task=easy_vqa",
        "task.limit=6",
        "task.batch_size=3",
    ]
    shared += [
        "tracking=none",
        "device=cpu",
        "score=first_order",
        "score.batch_size=2",
        f"cache={tmp_path / 'cache'}",
        "model.save=true",
    ]
    result = run([*shared, *saved[1]])
    assert result.sparsity["prunable"] == pytest.approx(0.6, abs=1e-3)
    assert set(result.sparsity["towers"]) == {"vision", "language"}
    assert verify(tmp_path / "run") == []


def test_the_loss_of_a_sample_is_the_models_own_on_the_answer_alone(
    saved: tuple[str, list[str]], tmp_path: Path
) -> None:
    family, options = saved
    prompt = options[1].removeprefix("model.prompt='").removesuffix("'") if len(options) > 1 else None
    model = VisionLanguage(str(tmp_path / family), prompt=prompt).load(torch.device("cpu"), Selection())
    question = read_questions("train")[0]
    sample = model.interface.encode(question)
    target = sample["labels"][sample["labels"] != -100]
    assert (
        model.processor.tokenizer.decode(target, skip_special_tokens=True).split() == question.target.split()
    )
    loss = model.loss({name: tensor[None] for name, tensor in sample.items()})
    with torch.no_grad():
        assert float(loss) == pytest.approx(float(model.module(**sample).loss), rel=1e-5)
