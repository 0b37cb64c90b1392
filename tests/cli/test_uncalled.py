"""Weights that are used without a call of their module: found before anything is scored or pruned."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf

from ecoflap.errors import UserError
from ecoflap.storage.results import Result
from tests.cli.conftest import WORDS


@pytest.fixture
def mamba_run(tiny_llama: Path, text_run: list[str], tmp_path: Path) -> list[str]:
    if not hasattr(hf, "MambaForCausalLM"):
        pytest.skip(f"transformers {hf.__version__} has no Mamba")
    folder = tmp_path / "mamba"
    shutil.copytree(
        tiny_llama, folder, ignore=lambda _, names: [name for name in names if "token" not in name]
    )
    torch.manual_seed(0)
    config = hf.MambaConfig(
        vocab_size=2 + len(WORDS), hidden_size=16, num_hidden_layers=2, state_size=4, time_step_rank=4
    )
    hf.MambaForCausalLM(config).save_pretrained(folder)
    return [f"model.path={folder}" if option.startswith("model.path=") else option for option in text_run]


@pytest.mark.parametrize(
    "overrides",
    [["score=none", "pruner=wanda"], ["pruner=magnitude"], ["score=local", "pruner=magnitude"]],
    ids=" ".join,
)
def test_refused_before_anything_is_made(
    mamba_run: list[str], overrides: list[str], run: Callable[..., Result], tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=r"layers\.0\.mixer\.dt_proj\.weight and 1 more layers .* add skip_layers=\[dt_proj\]"
    ):
        run([*mamba_run, *overrides])
    assert not any(
        (tmp_path / "run" / product).exists() for product in ("scores.json", "allocation.json", "result.json")
    )


def test_with_the_option_that_the_error_names(mamba_run: list[str], run: Callable[..., Result]) -> None:
    result = run([*mamba_run, "skip_layers=[dt_proj]", "sparsity=0.5"])
    assert result is not None


def test_gradients_need_no_calls(mamba_run: list[str], run: Callable[..., Result]) -> None:
    run([*mamba_run, "score=first_order", "pruner=magnitude"])
