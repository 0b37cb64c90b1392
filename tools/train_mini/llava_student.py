"""What ``llava_smollm2`` learns: a projector, and low-rank updates of a frozen language model in bf16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tools.train_mini.llava_lessons import IGNORED, Lesson, Row, lesson_of
from tools.train_mini.pictures import CLASSES


class Updated(nn.Module):
    """A frozen linear layer with a low-rank update (LoRA), y = W x + scale up down x.

    The factors are held in fp32 and used in the dtype of the layer; peft would compute with them in fp32, which
    costs two fifths more time per step on a CPU.
    """

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        """Start with an update of 0.

        Args:
            layer: the frozen layer.
            rank: of the update.
            scale: of the update.
        """
        super().__init__()
        self.layer, self.scale = layer, scale
        self.down = nn.Parameter(torch.empty(rank, layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[..., cols] -> [..., rows]."""
        return self.layer(x) + linear(linear(x, self.down.to(x)), (self.scale * self.up).to(x))


class Student(nn.Module):
    """Projector and language model, which answer from a ViT's features."""

    def __init__(self, projector: Any, language: Any, head: Any) -> None:
        """Take the parts of a LLaVA.

        Args:
            projector: from the ViT's features to those of the language model.
            language: the blocks of the language model.
            head: from its features to its vocabulary; shares its weight with the embeddings.
        """
        super().__init__()
        self.projector, self.language, self.head = projector, language, head

    def freeze(self, rank: int, alpha: int) -> None:
        """Freeze the language model in bf16, and give its linear layers updates in fp32 that start at 0."""
        self.language.bfloat16().requires_grad_(False)
        self.head.bfloat16().requires_grad_(False)
        for name, layer in list(self.language.named_modules()):
            if isinstance(layer, nn.Linear):
                self.language.set_submodule(name, Updated(layer, rank, alpha / rank))

    def trained(self) -> dict[str, nn.Parameter]:
        """What learns, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def forward(self, features: Tensor, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """Logits [answer tokens, vocabulary] and labels [answer tokens] of a lesson."""
        words = self.language.embed_tokens(lesson.input_ids)
        pictures = self.projector(features.float()).to(words)
        hidden = self.language(
            inputs_embeds=torch.cat([pictures, words], dim=1),
            attention_mask=lesson.mask.to(words),
            position_ids=lesson.positions,
            use_cache=False,
        ).last_hidden_state
        asked = lesson.labels != IGNORED
        return self.head(hidden[asked]).float(), lesson.labels[asked]

    def joining(self) -> dict[str, Tensor]:
        """What the loader of ``llava_smollm2`` reads, in half precision: up and down of each layer, with the
        update's scale in up.
        """
        found = {f"projector.{name}": value for name, value in self.projector.state_dict().items()}
        for name, layer in self.language.named_modules():
            if isinstance(layer, Updated):
                found |= {f"{name}.down": layer.down, f"{name}.up": layer.scale * layer.up}
        return {name: value.detach().half().contiguous() for name, value in found.items()}


def student_of(module: Any) -> Student:
    """The parts of a ``LlavaForConditionalGeneration`` that come after its ViT."""
    return Student(module.model.multi_modal_projector, module.model.language_model, module.lm_head)


@torch.no_grad()
def class_words(language: Any, tokenizer: Any) -> Tensor:
    """What a language model reads for each class, [classes, features]: its name's words, added.

    Args:
        language: the language model.
        tokenizer: its tokenizer.
    """
    embeddings = language.embed_tokens.weight

    def word(text: str) -> Tensor:
        return embeddings[tokenizer(f" {text}")["input_ids"]].mean(0)

    return torch.stack([torch.stack([word(part) for part in name.split()]).sum(0) for name in CLASSES])


@torch.inference_mode()
def accuracy(student: Student, features: Tensor, rows: list[Row]) -> tuple[float, float]:
    """Share of questions, and of captions, that greedy generation would answer right, and then stop.

    Args:
        student: what answers.
        features: of all pictures, [images, patches, features].
        rows: what is asked.
    """
    right: dict[bool, list[bool]] = {True: [], False: []}
    for start in range(0, len(rows), 8):
        part = rows[start : start + 8]
        lesson = lesson_of(part, features.shape[1])
        logits, labels = student(features[lesson.pictures], lesson)
        hits = torch.zeros(lesson.labels.shape, dtype=torch.bool)
        hits[lesson.labels != IGNORED] = logits.argmax(-1) == labels
        for hit, row in zip(hits, part, strict=True):
            for asked, places in zip(row.asked, row.answers(features.shape[1]), strict=True):
                right[bool(asked.question)].append(bool(hit[places].all()))
    return sum(right[True]) / len(right[True]), sum(right[False]) / len(right[False])
