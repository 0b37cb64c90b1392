"""The loss of halves, on a tiny random BERT: no weights of the package are needed."""

from __future__ import annotations

import torch
from ecoflap_sentences.model import halves_loss

from tests import tiny


@torch.no_grad()
def test_a_passage_that_stands_twice_in_a_batch() -> None:
    """Either of two equal ones is right, so a batch of one passage alone, twice, is as
    uncertain as it must be.
    """
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    module = BertModel(BertConfig(**tiny.TEXT), add_pooling_layer=False).eval()
    ids = torch.randint(1, tiny.VOCABULARY, (1, 2, 4)).repeat(2, 1, 1)
    loss = halves_loss(module, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    torch.testing.assert_close(loss, torch.full((2,), 2.0).log())
