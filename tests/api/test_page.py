"""The page "Python" and the README, run block after block as they stand, with tiny models in place of the
named ones.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.api.conftest import llama, texts
from tests.cli import forked
from tests.cli.conftest import ROOT

PAGE = (ROOT / "docs" / "python.md").read_text()
SET_UP = """
import transformers as hf
from tests.api.conftest import llama, llava, picture, texts as some_texts

import ecoflap
from ecoflap.data.text.perplexity import TextPerplexity

hf.logging.disable_progress_bar()
texts = some_texts()
pictures = [picture(number) for number in range(6)]
fresh_model = lambda: llama().module
vision_language = llava()
vision_language_model, processor = vision_language.module, vision_language.processor
TextPerplexity.read_text = lambda task, option: open("test.txt").read()  # the data set isn't here
"""


def run_blocks(page: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run the Python of a page in a folder that has a model where the page has a hub id."""
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    one = llama()
    folder = tmp_path / "facebook" / "opt-125m"  # a relative path where the page has a hub id
    one.module.save_pretrained(folder)
    one.processor.save_pretrained(folder)
    (tmp_path / "test.txt").write_text(" ".join(texts(100, seed=2)))
    (tmp_path / "page.py").write_text("\n".join([SET_UP, *blocks]))
    return forked.python(["page.py"], tmp_path)


def test_the_readme_runs_as_written(tmp_path: Path) -> None:
    done = run_blocks((ROOT / "README.md").read_text(), tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pruned" / "masks.bits").is_file()


def test_every_block_of_the_page_runs_as_written(tmp_path: Path) -> None:
    done = run_blocks(PAGE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "PruneResult(LlamaForCausalLM: 0.6000" in done.stdout
    assert "did you mean sparsegpt?" in done.stdout
    written = {file.parent.name for file in tmp_path.glob("pruned*/masks.bits")}
    assert written == {"pruned", "pruned_0.4", "pruned_0.5", "pruned_0.6"}


def test_the_page_names_every_function() -> None:
    import ecoflap

    functions = {name for name in ecoflap.__all__ if name.islower()}
    assert all(f"ecoflap.{name}(" in PAGE for name in functions)
