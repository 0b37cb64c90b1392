"""The page "Extend", followed word by word: its files, its command lines with a tiny model under them, and
what slow, obvious computations say of the results.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM

from ecoflap.cli import run
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.run.instantiate import build
from ecoflap.storage.cache import code
from ecoflap.storage.masks import load_masks
from tests.cli.conftest import ROOT, WORDS, composed
from tests.ops import reference as ops
from tests.prune import reference
from tests.refusals.conftest import fresh_process  # noqa: F401 - a fixture

PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
FILES = {
    name: content
    for content, name in re.findall(r"```\w+\n((?:# @[^\n]*\n)?# (\S+)\n.*?)```", PAGE, re.DOTALL)
    if "/" in name
}
COMMANDS = re.findall(r"^ecoflap run --config-dir my_parts/conf (.*)$", PAGE, re.MULTILINE)
EVEN = ["allocation=in_context", "allocation.rows=even"]  # the reference prunes all rows of a layer alike
MODULES = {Path(name).stem for name in FILES if name.endswith(".py")}
BERT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 104,  # the page's mask token is the last one
}


def command(*words: str) -> list[str]:
    """The page's command line that has these words, as a shell would split it."""
    (found,) = [line for line in COMMANDS if set(words) <= set(line.split())]
    return ["--config-dir", "my_parts/conf", *shlex.split(found)]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the page's files in it."""
    folder = tmp_path_factory.mktemp("followed")
    for name, content in FILES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    path = list(sys.path)
    yield folder
    sys.path[:] = path
    for module in MODULES:
        sys.modules.pop(module, None)
    for function in (code._read, code._spec, code._is_own):
        function.cache_clear()


@pytest.fixture
def lines(tmp_path: Path) -> list[str]:
    """Two texts with a sentence per line, as the page's ``TRAIN.txt`` and ``TEST.txt``."""
    draws = torch.Generator().manual_seed(5)
    texts = []
    for name in ("train", "test"):
        rows = torch.randint(len(WORDS), (12, 9), generator=draws).tolist()
        texts.append(tmp_path / f"{name}.txt")
        texts[-1].write_text("\n".join(" ".join(WORDS[pick] for pick in row) for row in rows) + "\n")
    return [str(file) for file in texts]


@pytest.fixture
def start(followed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_process: None) -> Any:
    """Run a command line of the page from the folder that the page assumes; returns the run's folder."""

    def begin(arguments: list[str]) -> Path:
        monkeypatch.chdir(followed)
        places = [f"hydra.run.dir={tmp_path / 'run'}", f"cache={tmp_path / 'cache'}"]
        assert run.main([*arguments, "tracking=none", "device=cpu", *places]) == 0
        return tmp_path / "run"

    return begin


def under(text_run: list[str], *without: str) -> list[str]:
    """The tiny model and its tokens, without the options of some groups."""
    return [one for one in text_run if not one.startswith((*without, "tracking", "device", "cache"))]


def tiny(text_run: list[str]) -> tuple[PrunableModel, Any]:
    """The tiny model and its calibration set."""
    config = composed(text_run)
    model = build("model", config.model).load(torch.device("cpu"), Selection())
    return model, build("calibration", config.calibration).load(model, seed=0)


def counts(folder: Path) -> dict[str, int]:
    keep: dict[str, int] = json.loads((folder / "allocation.json").read_text())["keep"]
    return keep


def assert_masks(folder: Path, text_run: list[str], prune_layer: reference.PruneLayer) -> None:
    """The run's masks are those of pruning layer by layer with full forward passes."""
    model, calibration = tiny(text_run)
    expected = reference.prune(model, calibration, prune_layer, counts(folder))
    masks = load_masks(folder / "checkpoint" / "masks.bits")
    assert masks.keys() == expected.keys()
    assert [name for name, mask in masks.items() if not torch.equal(mask, expected[name])] == []
    assert not all(bool(mask.all()) for mask in masks.values())


def multiflow(weight: Tensor, inputs: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """MULTIFLOW with the power of the page's command, weight by weight."""
    sizes = weight.double().abs().tolist()
    norms = [float(inputs[:, j].double().norm()) for j in range(len(sizes[0]))]
    flows = [[size * norm for size, norm in zip(row, norms, strict=True)] for row in sizes]
    columns = [sum(row[j] for row in flows) for j in range(len(norms))]
    scores = [
        [size * (sum(flow) * columns[j]) ** 0.5 for j, size in enumerate(row)]
        for row, flow in zip(sizes, flows, strict=True)
    ]
    mask = ops.matrix_mask(torch.tensor(scores, dtype=torch.float64), keep)
    return weight * mask, mask


def tails(weight: Tensor, inputs: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    mask = ops.row_mask(weight.double().abs() * inputs.double().pow(4).mean(dim=0) ** 0.25, keep)
    return weight * mask, mask


def test_multiflow(start: Any, text_run: list[str]) -> None:
    given = [*under(text_run), "model.save=true", "propagate=pruned"]
    assert_masks(start([*command("pruner=multiflow"), *given]), text_run, multiflow)


def test_a_statistic_of_ones_own(start: Any, text_run: list[str]) -> None:
    given = [*under(text_run), "model.save=true", "propagate=pruned", *EVEN]
    assert_masks(start([*command("pruner=tails"), *given]), text_run, tails)


def test_a_statistic_of_ones_own_from_dense_predecessors(start: Any, text_run: list[str]) -> None:
    """With dense predecessors the sums of Wanda's statistic are shared between runs, which these can't be."""
    given = [*under(text_run), "model.save=true", "propagate=dense", *EVEN]
    folder = start([*command("pruner=tails"), *given])
    model, calibration = tiny(text_run)
    masks = load_masks(folder / "checkpoint" / "masks.bits")
    for layer in model.layers:
        with torch.no_grad():
            inputs = reference.inputs_of(model, layer, calibration)
        assert torch.equal(masks[layer.name], tails(layer.matrix(), inputs, counts(folder)[layer.name])[1])


def test_a_ramp(start: Any, text_run: list[str]) -> None:
    folder = start([*command("allocation=ramp"), *under(text_run, "score."), "steps=[allocate]"])
    model, _ = tiny(text_run)
    keep, sizes = counts(folder), model.sizes
    assert sum(keep.values()) == sum(sizes.values()) * (1 - Fraction("0.6")) // 1
    first, last = ([layer.name for layer in block.layers] for block in model.blocks)
    sparsity = [
        1 - sum(keep[name] for name in block) / sum(sizes[name] for name in block) for block in (first, last)
    ]
    assert sparsity == pytest.approx([0.55, 0.65], abs=1 / sum(sizes[name] for name in first))


def test_a_scorer_and_an_allocator_for_it(start: Any, text_run: list[str]) -> None:
    folder = start(
        [*command("score=squared_norm"), *under(text_run, "score."), "steps=[calibrate,score,allocate]"]
    )
    model, _ = tiny(text_run)
    keep = counts(folder)
    norms = [
        sum(float(weight) ** 2 for layer in block.layers for weight in layer.matrix().flatten()) ** 0.5
        for block in model.blocks
    ]
    total = int(sum(layer.size for layer in model.layers) * (1 - Fraction("0.6")))
    for block, norm in zip(model.blocks, norms, strict=True):
        assert sum(keep[layer.name] for layer in block.layers) == pytest.approx(
            total * norm / sum(norms), abs=1
        )
    assert sum(keep.values()) == total


def test_an_allocator_without_its_scores(
    start: Any, text_run: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config-dir=my_parts/conf", *under(text_run, "score."), "allocation=by_norm", "score=none"]
    with pytest.raises(SystemExit, match="2"):
        start(arguments)
    assert "squared_norm" in capfd.readouterr().err


def language(tiny_llama: Path, line: list[str], texts: list[str]) -> list[str]:
    """A command line of the page with the tiny model in place of SmolLM2, and texts that are there."""
    train, test = texts
    return [
        *(
            word.replace("TRAIN.txt", train).replace("TEST.txt", test)
            for word in line
            if word != "model=smollm2_135m"
        ),
        "model=causal_lm",
        f"model.path={tiny_llama}",
        "score=none",
    ]


def test_a_task(start: Any, tiny_llama: Path, lines: list[str]) -> None:
    line = language(tiny_llama, command("task=next_token"), lines)
    folder = start([*line, "calibration.sequence_length=16"])
    result = json.loads((folder / "result.json").read_text())
    tokenizer, model = (
        AutoTokenizer.from_pretrained(tiny_llama),
        AutoModelForCausalLM.from_pretrained(tiny_llama),
    )
    shares = []
    for text in Path(lines[1]).read_text().splitlines():
        row = tokenizer(text)["input_ids"]
        right = 0
        for end in range(1, len(row)):
            with torch.no_grad():
                guess = int(model(input_ids=torch.tensor([row[:end]])).logits[0, -1].argmax())
            right += guess == row[end]
        shares.append(right / (len(row) - 1))
    metrics = result["metrics"]["dense"]["next_token"]
    assert metrics == {"accuracy": pytest.approx(100 * statistics.mean(shares)), "lines": len(shares)}
    error = 100 * statistics.stdev(shares) / len(shares) ** 0.5
    assert result["standard_errors"]["dense"]["next_token"] == {"accuracy": pytest.approx(error)}
    items = json.loads((folder / "predictions" / "next_token_pruned_items.json").read_text())
    assert items["dense"] == pytest.approx(shares, abs=1e-6)
    assert 0 <= result["metrics"]["pruned"]["next_token"]["accuracy"] <= 100
    identity = result["data"]["tasks"]["next_token"]
    assert identity.keys() == {"metric", "inputs"}
    assert len(identity["inputs"]) == 32


def test_a_data_set(start: Any, tiny_llama: Path, lines: list[str]) -> None:
    line = language(tiny_llama, command("calibration=lines"), lines)
    folder = start(
        [*line, "calibration.samples=5", "task.sequence_length=16", "model.save=true", "pruner.mask=matrix"]
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    texts = Path(lines[0]).read_text().splitlines()
    drawn = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))[:5].tolist()
    model = build("model", composed(["model=causal_lm", f"model.path={tiny_llama}"]).model).load(
        torch.device("cpu"), Selection()
    )
    first = model.layers[0]
    rows = [torch.tensor([tokenizer(texts[index])["input_ids"]]) for index in drawn]
    with torch.no_grad():
        inputs = reference.inputs_of(model, first, None, [{"input_ids": row} for row in rows])  # type: ignore[arg-type]
    metric = first.matrix().abs() * inputs.double().norm(dim=0)
    masks = load_masks(folder / "checkpoint" / "masks.bits")
    assert torch.equal(masks[first.name], ops.matrix_mask(metric, counts(folder)[first.name]))


def test_what_is_calibrated_with_is_not_measured_on(
    start: Any, tiny_llama: Path, lines: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    line = language(tiny_llama, command("task=next_token"), [lines[0], lines[0]])
    with pytest.raises(SystemExit, match="2"):
        start([*line, "calibration=lines"])
    assert "both read" in capfd.readouterr().err


def test_a_model(
    start: Any, tiny_llama: Path, lines: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    bert = BertForMaskedLM(BertConfig(**BERT))
    bert.save_pretrained(tmp_path / "bert")
    for file in tiny_llama.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "bert")
    line = [
        word.replace("google-bert/bert-base-uncased", str(tmp_path / "bert"))
        .replace("TRAIN.txt", lines[0])
        .replace("TEST.txt", lines[1])
        .replace("512", "16")
        for word in command("model=masked_lm")
    ]
    folder = start([*line, "score.samples=4"])
    assert "bert.encoder.layer" in capfd.readouterr().out
    result = json.loads((folder / "result.json").read_text())
    tokenizer, shares = AutoTokenizer.from_pretrained(tmp_path / "bert"), []
    for text in Path(lines[1]).read_text().splitlines():
        row = tokenizer(text)["input_ids"]
        asked = range(4, len(row), 5)
        seen = [103 if place in asked else token for place, token in enumerate(row)]
        with torch.no_grad():
            guesses = bert.eval()(input_ids=torch.tensor([seen])).logits[0].argmax(dim=-1).tolist()
        if asked:
            shares.append(sum(guesses[place] == row[place] for place in asked) / len(asked))
    assert result["metrics"]["dense"]["hidden_tokens"] == {
        "accuracy": pytest.approx(100 * statistics.mean(shares)),
        "lines": len(shares),
    }
    sparsity = result["sparsity"]
    prunable = sum(
        weight.numel() for name, weight in bert.named_parameters() if ".encoder." in name and weight.ndim == 2
    )
    assert sparsity["prunable"] == pytest.approx(1 - int(prunable * (1 - Fraction("0.6"))) / prunable)


def test_every_command_line_of_the_page_is_run() -> None:
    tested = ("pruner=multiflow", "pruner=tails", "allocation=ramp", "score=squared_norm", "task=next_token")
    assert len(COMMANDS) == len([*tested, "calibration=lines", "model=masked_lm"])


def test_the_test_of_a_part(followed: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "my_parts"],
        cwd=followed,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_an_installed_package(followed: Path, text_run: list[str], tmp_path: Path) -> None:
    """The package's folder stands in for an installation; groups that only it has are choices."""
    package = followed / "my_package" / "my_package"
    for folder in (package, package / "conf", package / "conf" / "pruner"):
        (folder / "__init__.py").touch()
    shutil.copy(followed / "my_parts" / "multiflow.py", package)
    (study := package / "conf" / "study").mkdir(exist_ok=True)
    (study / "__init__.py").touch()
    (study / "half.yaml").write_text("# @package _global_\nsparsity: 0.5\n")
    (line,) = re.findall(r"^ecoflap run (hydra\.searchpath=.*)$", PAGE, re.MULTILINE)
    given = [
        *under(text_run, "score."),
        "tracking=none",
        "device=cpu",
        "score=none",
        f"cache={tmp_path / 'cache'}",
    ]
    arguments = [*shlex.split(line), "+study=half", *given, f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{package.parent}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["config"]["pruner"]["_target_"] == "my_package.multiflow.Multiflow"
    assert result["config"]["sparsity"] == 0.5
