"""Calibration rows that the dense model generates, beside those of a text.

Williams, Chrysostomou and Aletras (2024), Self-calibration for Language Model Quantization and Pruning,
calibrate on nothing else and begin each row with the BOS token. Here a row begins with a part of a drawn one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from ecoflap.data.example import refuse_nan
from ecoflap.data.text.options import TextOptions, TokenFileOptions
from ecoflap.distributed.collectives import from_first
from ecoflap.errors import UserError
from ecoflap.models.core.batched_generation import Inputs, generate_texts
from ecoflap.models.core.prunable import PrunableModel

log = logging.getLogger(__name__)

PROMPT = 8
"""A row begins with an eighth of a drawn one."""
BATCH = 16
"""Rows that are generated at once."""
Options = TextOptions | TokenFileOptions


def check_generated(options: Options) -> None:
    """Refuse a number of generated rows that leaves none to begin them with.

    Raises:
        UserError: if it is negative, or not below the number of samples.
    """
    if options.generated < 0:
        raise UserError(f"calibration.generated={options.generated} must be 0 or more")
    if options.samples is not None and 0 < options.generated >= options.samples:
        raise UserError(
            f"calibration.generated={options.generated} is not below calibration.samples={options.samples},"
            " of which it is a part: generated rows begin with a piece of the others"
        )


def require_generates(options: Options, model: PrunableModel) -> None:
    """Refuse to generate with a model that does not continue texts.

    Raises:
        UserError: if rows are to be generated and the model is not a decoder of transformers.
    """
    module: Any = model.module
    decodes = hasattr(module, "can_generate") and module.can_generate()
    if options.generated and (not decodes or module.config.is_encoder_decoder):
        raise UserError(
            f"calibration.generated={options.generated}: {model.name} does not continue texts; use"
            " calibration.generated=0"
        )


def with_generated(
    options: Options, model: PrunableModel, drawn: Sequence[Tensor], seed: int
) -> list[Tensor]:
    """The drawn rows [tokens], and those that the model generates.

    Tokens are sampled from the model's distribution, at temperature 1 and without the end-of-text token, up
    to the length of a drawn row. The first generated row begins as the first drawn one, and so on, again from
    the first after the last. Several processes get the rows of the first one.

    Args:
        options: the number of generated rows.
        model: the dense model.
        drawn: rows of one length.
        seed: seed of the sampling.

    Raises:
        NumericalError: if the model's logits are NaN.
    """
    if not options.generated:
        return list(drawn)
    length = len(drawn[0])
    prompts = torch.stack(
        [row[: max(1, length // PROMPT)] for row in islice(cycle(drawn), options.generated)]
    )
    log.info("calibrate: the dense model generates %d rows of %d tokens", options.generated, length)
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        generated = torch.cat([_continued(model, batch, length) for batch in prompts.split(BATCH)])
    return [*drawn, *from_first(generated)]


@torch.no_grad()
def _continued(model: PrunableModel, prompts: Tensor, length: int) -> Tensor:
    """Rows [rows, length] that begin with the prompts [rows, tokens]."""
    module: Any = model.module
    begun, new_tokens = prompts.shape[1], length - prompts.shape[1]

    def generate(inputs: Inputs) -> Tensor:
        written: Tensor = module.generate(
            **inputs,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=True,
            top_k=0,
            use_cache=True,
            logits_processor=[refuse_nan],
        )
        return written[:, begun:]

    ids = prompts.to(model.device)
    with _without_options(module):
        written = generate_texts(module, generate, ids, torch.ones_like(ids), pad=0)
    return torch.cat([ids, written], dim=1).to(prompts)


@contextmanager
def _without_options(module: Any) -> Iterator[None]:
    """Generate without the options that come with a checkpoint, such as a temperature or forbidden tokens."""
    own = module.generation_config
    end = getattr(module.config, "eos_token_id", None) if own.eos_token_id is None else own.eos_token_id
    # No row needs the padding, as all end together; transformers would warn that it is missing.
    module.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=0)
    try:
        yield
    finally:
        module.generation_config = own
