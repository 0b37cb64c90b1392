"""The hash of the code that computes a value: it follows every import that a result can depend on."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ecoflap.errors import UserError
from ecoflap.storage.cache import code

FILES = {
    "mine/__init__.py": "",
    "mine/scorer.py": "from mine import formulas\nfrom .parts.weights import scale\nimport torch\n",
    "mine/formulas.py": "import json\nSIGN = 1\n",
    "mine/parts/weights.py": "def scale(): \n    import beside\n    return beside.FACTOR\n",
    "mine/unrelated.py": "VALUE = 1\n",
    "beside.py": "FACTOR = 2\n",
}


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package outside the tree, on the path."""
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mine", "beside")]:
        del sys.modules[name]
    forget()


def forget() -> None:
    """What a new process knows."""
    for function in (code._read, code._spec, code._is_own, code._version, code._distributions):
        function.cache_clear()


def hashed(module: str) -> str:
    forget()
    return code.source_hash(module)


@pytest.mark.parametrize(
    "file", ["mine/__init__.py", "mine/scorer.py", "mine/formulas.py", "mine/parts/weights.py", "beside.py"]
)
def test_an_edit_of_anything_that_is_imported_changes_the_hash(parts: Path, file: str) -> None:
    before = hashed("mine.scorer")
    assert hashed("mine.scorer") == before
    (parts / file).write_text(FILES[file] + "# an edit\n")
    assert hashed("mine.scorer") != before


def test_without_the_package_only_other_modules_count(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (parts / "mine" / "scorer.py").write_text("import ecoflap.errors\nimport beside\n")
    forget()
    read, hashes = code._read, {}
    for edited in ("nothing", "ecoflap.errors", "beside"):
        with monkeypatch.context() as patch:
            patch.setattr(
                code, "_read", lambda name, one=edited: ("edited", ()) if name == one else read(name)
            )
            hashes[edited] = [code.source_hash("mine.scorer", package=package) for package in (True, False)]
    assert hashes["ecoflap.errors"][0] != hashes["nothing"][0]
    assert hashes["ecoflap.errors"][1] == hashes["nothing"][1]
    assert hashes["beside"][1] != hashes["nothing"][1]


def test_an_edit_of_anything_else_does_not(parts: Path) -> None:
    before = hashed("mine.scorer")
    (parts / "mine" / "unrelated.py").write_text("VALUE = 2\n")
    assert hashed("mine.scorer") == before


def test_libraries_count_by_their_version_wherever_they_are(
    parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lent = parts / "other" / "site-packages"
    (lent / "library").mkdir(parents=True)
    (lent / "library" / "__init__.py").write_text(
        "from library import only_elsewhere\nimport library._windows\n"
    )
    monkeypatch.syspath_prepend(str(lent))
    (parts / "mine" / "scorer.py").write_text("import library\n")
    before = hashed("mine.scorer")
    (lent / "library" / "__init__.py").write_text("# another release\n")
    assert hashed("mine.scorer") == before


@pytest.mark.parametrize("name", ["library", "distribution-of-it"])
def test_another_release_of_a_library_changes_the_hash(
    parts: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lent = parts / "other" / "site-packages"
    described = lent / f"{name.replace('-', '_')}-1.dist-info"
    described.mkdir(parents=True)
    (lent / "library.py").write_text("")
    (described / "top_level.txt").write_text("library\n")
    monkeypatch.syspath_prepend(str(lent))
    (parts / "beside.py").write_text("import library\n")
    hashes = []
    for release in ("1.0", "1.0", "1.1"):
        (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n")
        forget()
        hashes.append([code.source_hash("mine.scorer", package=package) for package in (True, False)])
    assert hashes[0] == hashes[1]
    assert hashes[1][0] != hashes[2][0]
    assert hashes[1][1] == hashes[2][1]


def test_where_the_package_lies_does_not_count(
    parts: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hashed("mine.scorer")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name, content in FILES.items():
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / name).write_text(content)
    monkeypatch.syspath_prepend(str(elsewhere))
    assert hashed("mine.scorer") == before


def test_the_folder_of_a_package_may_be_a_path(parts: Path) -> None:
    """As that of transformers is once its processors are imported; a checkout of it counts as one's own."""
    before = hashed("mine.scorer")
    spec = importlib.import_module("mine").__spec__
    assert spec is not None
    spec.submodule_search_locations = [parts / "mine"]  # type: ignore[list-item]
    assert hashed("mine.scorer") == before


def test_a_running_process_keeps_the_hash_of_the_code_that_it_runs(parts: Path) -> None:
    before = hashed("mine.scorer")
    (parts / "mine" / "formulas.py").write_text("SIGN = -1\n")
    assert code.source_hash("mine.scorer") == before


def test_imports_for_types_alone_do_not_count(parts: Path) -> None:
    scorer = parts / "mine" / "scorer.py"
    scorer.write_text("if TYPE_CHECKING:\n    import mine.formulas\n")
    before = hashed("mine.scorer")
    (parts / "mine" / "formulas.py").write_text("SIGN = -1\n")
    forget()
    assert hashed("mine.scorer") == before


def test_what_is_imported_where_types_are_not_checked_counts(parts: Path) -> None:
    scorer = parts / "mine" / "scorer.py"
    scorer.write_text("if typing.TYPE_CHECKING:\n    import beside\nelse:\n    import mine.formulas\n")
    before = hashed("mine.scorer")
    (parts / "beside.py").write_text("FACTOR = 3\n")
    assert hashed("mine.scorer") == before
    (parts / "mine" / "formulas.py").write_text("SIGN = -1\n")
    assert hashed("mine.scorer") != before


@pytest.mark.parametrize(
    "source",
    [
        "if not TYPE_CHECKING:\n    import mine.formulas\n",
        "if not typing.TYPE_CHECKING:\n    import mine.formulas\nelse:\n    import beside\n",
        "if sys.version_info > (3,) or TYPE_CHECKING:\n    import mine.formulas\n",
        "def score():\n    return importlib.import_module('mine.formulas').SIGN\n",
        "formulas = import_module('.formulas', __package__)\n",
        "formulas = import_module(name='mine.formulas')\n",
        "formulas = __import__('mine.formulas').formulas\n",
    ],
)
def test_what_runs_counts_however_it_is_imported(parts: Path, source: str) -> None:
    (parts / "mine" / "scorer.py").write_text(source)
    before = hashed("mine.scorer")
    (parts / "mine" / "formulas.py").write_text("SIGN = -1\n")
    forget()
    assert hashed("mine.scorer") != before


def test_names_that_only_the_running_code_knows_are_ignored(parts: Path) -> None:
    """As are those that are no module's."""
    (parts / "mine" / "scorer.py").write_text(
        "import_module(NAME)\nimport_module('no.such')\nimport_module('....far')\n__import__(3)\n"
    )
    assert hashed("mine.scorer")


LOSS = """
from functools import partial
from beside import FACTOR, decorated
from mine import formulas

def plain(module, batch, copies=1): ...

@decorated
def wrapped(module, batch, copies=1): ...

class Loss:
    def __call__(self, module, batch, copies=1): ...

instance, partly = Loss(), partial(plain, copies=1)
"""


@pytest.mark.parametrize("name", ["plain", "wrapped", "instance", "partly"])
def test_a_function_counts_with_what_its_module_imports(parts: Path, name: str) -> None:
    decorator = (
        "from functools import wraps\nFACTOR = 2\ndef decorated(one): return wraps(one)(lambda *_: 0)\n"
    )
    (parts / "beside.py").write_text(decorator)
    (parts / "mine" / "loss.py").write_text(LOSS)
    function = getattr(importlib.import_module("mine.loss"), name)

    def now(path: str | None = None) -> str:
        forget()
        return code.function_hash(function, path)

    before, by_path = now(), now(f"mine.loss.{name}")
    assert now() == before
    (parts / "mine" / "formulas.py").write_text("SIGN = -1\n")
    assert before != now()
    assert by_path != now(f"mine.loss.{name}")


def test_a_function_of_no_module_counts_by_its_file(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    hashes = []
    for text in ("def loss(): return 1\n", "def loss(): return 2\n"):
        file.write_text(text)
        found: dict[str, Any] = {"__name__": "nowhere"}
        exec(compile(text, str(file), "exec"), found)
        hashes.append(code.function_hash(found["loss"]))
    assert hashes[0] != hashes[1]
    assert code.function_hash(print) == code.function_hash(len)


@pytest.mark.parametrize("gone", ["mine/scorer.py", "mine/formulas.py"])
def test_a_file_that_is_gone_is_an_error(parts: Path, gone: str) -> None:
    (parts / "mine" / "scorer.py").write_text("import mine.formulas\n")
    (parts / gone).unlink()
    with pytest.raises(UserError, match=gone.removesuffix(".py").replace("/", ".")):
        hashed("mine.scorer")


def test_the_parts_of_the_package_hash_what_they_share(monkeypatch: pytest.MonkeyPatch) -> None:
    scorers = {name: hashed(f"ecoflap.score.{name}") for name in ("zeroth_order", "first_order", "local")}
    assert len(set(scorers.values())) == 3
    forget()
    read = code._read
    monkeypatch.setattr(
        code,
        "_read",
        lambda module: ("edited", read(module)[1]) if module == "ecoflap.ops.wanda" else read(module),
    )
    changed = {name: code.source_hash(f"ecoflap.score.{name}") for name in scorers}
    assert [name for name in scorers if changed[name] != scorers[name]] == [
        "zeroth_order",
        "local",
    ]  # no gradient needs ops


def test_nothing_is_imported_to_find_the_sources(parts: Path) -> None:
    hashed("mine.scorer")
    assert not {"mine", "mine.scorer", "beside"} & set(sys.modules)
