"""Conversions in all directions, whole or interrupted, with a shard in memory."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ecoflap.cli.command import main
from ecoflap.errors import UserError
from ecoflap.storage import lease as leases
from ecoflap.storage.bitmask import convert as converting
from ecoflap.storage.bitmask.convert import convert
from ecoflap.storage.saved_model import open_checkpoint, weight_bytes
from tests.storage.bitmask.by_hand import decode_by_hand, pruned, raw, same
from tests.storage.bitmask.conftest import check_equal

pytestmark = pytest.mark.long

SHARDS = 9
FORMS = ("dense", "bitmask", "coded")


@pytest.mark.parametrize("first", FORMS)
@pytest.mark.parametrize("second", FORMS)
def test_both_ways_and_back(
    dense: Path, tensors: dict[str, Tensor], tmp_path: Path, first: str, second: str
) -> None:
    for source, out, form in (
        (dense, "one", first),
        (tmp_path / "one", "two", second),
        (tmp_path / "two", "three", "dense"),
    ):
        convert(source, tmp_path / out, form)
        check_equal(tmp_path / out, tensors)
        assert (tmp_path / out / "config.json").read_text() == "{}"
        assert (tmp_path / out / "inside" / "more.txt").read_text() == "more"
        assert "layers.0.weight" in load_file(tmp_path / out / "masks.bits")
        kinds = ("model-*", "bitmask-*") if form == "dense" else ("bitmask-*", "model*")
        assert len(list((tmp_path / out).glob(kinds[0]))) == SHARDS
        assert not list((tmp_path / out).glob(kinds[1]))


def test_the_documented_format_has_the_same_bytes(
    dense: Path, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    for form in ("bitmask", "coded"):
        convert(dense, tmp_path / form, form)
        assert decode_by_hand(tmp_path / form) == {name: raw(tensor) for name, tensor in tensors.items()}


def test_transformers_reads_what_was_made_dense_again(dense: Path, tmp_path: Path) -> None:
    """By the index: the same names and files as save_pretrained's."""
    convert(dense, tmp_path / "small", "coded")
    convert(tmp_path / "small", tmp_path / "again", "dense")
    found: dict[str, Tensor] = {}
    for file in sorted((tmp_path / "again").glob("model-*-of-00009.safetensors")):
        found |= load_file(file)
    original = load_file(dense / "model.safetensors")
    assert found.keys() == original.keys()
    assert all(same(found[name], original[name]) for name in original)


def test_a_single_dense_file_has_no_index(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converting, "SHARD_BYTES", 2**30)
    convert(dense, tmp_path / "small", "bitmask")
    convert(tmp_path / "small", tmp_path / "again", "dense")
    assert sorted(path.name for path in (tmp_path / "again").glob("model*")) == ["model.safetensors"]
    assert weight_bytes(tmp_path / "small") < weight_bytes(tmp_path / "again")


def in_child(job: Callable[[], Any], before: Callable[[], None]) -> int:
    """Do something in a copy of this process; returns minus the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        try:
            before()
            job()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def events(folder: Path, job: Callable[[], Any]) -> int:
    """How many times a job touches files."""
    count = folder / "count"
    seen = [0]
    before = lambda: sys.addaudithook(lambda event, _: seen.__setitem__(0, seen[0] + _touches(event)))
    assert in_child(lambda: (job(), count.write_text(str(seen[0]))), before) == 0
    return int(count.read_text())


def _touches(event: str) -> bool:
    return event == "open" or (event.startswith(("os.", "shutil.")) and event != "os.kill")


def kill_at(number: int) -> Callable[[], None]:
    """End the process before it touches a file for the n-th time, without any clean-up."""

    def start() -> None:
        seen = [0]

        def hook(event: str, _: Any) -> None:
            if not _touches(event):
                return
            seen[0] += 1
            if seen[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    return start


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.every_run("coded")
def test_killed_at_20_random_moments(
    dense: Path, tensors: dict[str, Tensor], tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "DEAD_AFTER", 1.0)  # where it was killed as it wrote its name
    source = dense
    if form == "dense":
        source = tmp_path / "source"
        convert(dense, source, "bitmask")
    total = events(tmp_path, lambda: convert(source, tmp_path / "whole", form))
    assert total > 60
    behind_the_rename = 3  # the flush of its folder, and the end of the lease
    for moment in Random(form).sample(range(1, total - behind_the_rename), 20):
        out = tmp_path / f"out{moment}"
        job = lambda out=out: convert(source, out, form)
        assert in_child(job, kill_at(moment)) == -signal.SIGKILL
        partial = out.with_name(f"{out.name}.partial")
        for folder in (out, partial):
            try:
                check_equal(folder, tensors)  # all is there, and only the last rename may be missing
            except FileNotFoundError:
                continue
        job()
        check_equal(out, tensors)
        assert not partial.exists()
        expected = sorted(path.name for path in (tmp_path / "whole").iterdir())
        assert sorted(path.name for path in out.iterdir()) == expected


@pytest.mark.parametrize("form", ["dense", "coded"])
def test_finished_shards_are_not_written_again_and_damaged_ones_are(
    dense: Path, tensors: dict[str, Tensor], tmp_path: Path, form: str
) -> None:
    source = tmp_path / "source"
    convert(dense, source, "bitmask")
    convert(source, tmp_path / "whole", form)
    partial = (tmp_path / "whole").rename(tmp_path / "out.partial")
    files = sorted(partial.glob("*-of-*.safetensors"))
    for index in partial.glob("*.index.json"):
        index.unlink()
    content = bytearray(files[1].read_bytes())
    content[-1] ^= 4
    files[1].write_bytes(content)
    files[3].unlink()
    before = {file: file.stat().st_ino for file in files if file.exists()}
    convert(source, tmp_path / "out", form)
    check_equal(tmp_path / "out", tensors)
    after = {file: (tmp_path / "out" / file.name).stat().st_ino for file in before}
    assert [file.name for file in before if before[file] != after[file]] == [files[1].name]


def test_shards_of_another_model_or_form_are_written_again(
    dense: Path, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    convert(dense, tmp_path / "out", "bitmask")
    (tmp_path / "out").rename(tmp_path / "out.partial")
    changed = {**tensors, "norm": -tensors["norm"]}
    save_file(changed, dense / "model.safetensors")
    convert(dense, tmp_path / "out", "coded")
    check_equal(tmp_path / "out", changed)
    convert(dense, tmp_path / "straight", "coded")
    for file in (tmp_path / "straight").iterdir():
        assert file.is_dir() or file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()


def test_what_a_killed_save_left_is_not_copied(dense: Path, tmp_path: Path) -> None:
    for folder in (dense / ".tmp-a", dense / "inside" / ".tmp-b"):
        folder.mkdir()
        (folder / "model.safetensors").write_text("half")
    convert(dense, tmp_path / "out", "bitmask")
    assert (tmp_path / "out" / "inside" / "more.txt").is_file()
    assert not list((tmp_path / "out").rglob(".tmp-*"))


def test_an_empty_folder_or_a_link_to_one_is_filled(
    dense: Path, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    for name in ("empty", "linked"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "linked")
    for out, filled in (("empty", "empty"), ("link", "linked")):
        convert(dense, tmp_path / out, "bitmask")
        check_equal(tmp_path / filled, tensors)
    assert (tmp_path / "link").is_symlink()


def test_a_mount_point_is_refused_at_once(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "disk")
    with pytest.raises(UserError, match=r"disk is where a disk is mounted.*choose a folder inside it"):
        convert(dense, tmp_path / "disk", "bitmask")
    assert list((tmp_path / "disk").iterdir()) == []


def test_refusals(dense: Path, tmp_path: Path) -> None:
    convert(dense, tmp_path / "small", "bitmask")
    for out, form, message in (
        (tmp_path / "new", "zip", "form=zip is not known; .*dense, bitmask, coded"),
        (tmp_path / "small", "dense", "is there and holds something"),
        (dense / "inside" / "deep", "bitmask", "is inside of"),
    ):
        with pytest.raises(UserError, match=message):
            convert(dense, out, form)
    (tmp_path / "new").mkdir()
    with pytest.raises(FileNotFoundError, match="the run's checkpoint was moved or never saved"):
        convert(tmp_path / "new", tmp_path / "out", "dense")
    torch.save({"model": {"w": torch.ones(2, 2)}}, tmp_path / "new" / "model.pth")
    with pytest.raises(UserError, match="LAVIS' format"):
        convert(tmp_path / "new", tmp_path / "out", "bitmask")


def test_a_dtype_that_is_not_known_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    save_file({"a": torch.ones(2, dtype=torch.uint16)}, tmp_path / "source" / "model.safetensors")
    with pytest.raises(UserError, match=r"can't be written in the form coded: .* of dtype U16; known"):
        convert(tmp_path / "source", tmp_path / "out", "coded")


@pytest.mark.parametrize("form", ["dense", "coded"])
def test_a_tensor_that_the_index_has_and_no_file_is_refused(dense: Path, tmp_path: Path, form: str) -> None:
    """The new folder would have an index without it, and nothing would tell that it is lost."""
    convert(dense, tmp_path / "shards", "dense")
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    shard = tmp_path / "shards" / index["weight_map"]["head"]
    rest = {name: tensor for name, tensor in load_file(shard).items() if name != "head"}
    save_file(rest, shard)
    with pytest.raises(UserError, match=rf"form {form}: {shard.name} has no head, which the index has there"):
        convert(tmp_path / "shards", tmp_path / "out", form)
    assert not (tmp_path / "out").exists()


def test_a_name_that_could_be_a_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    save_file({"a": torch.ones(2), "a:mask": torch.ones(2)}, tmp_path / "source" / "model.safetensors")
    with pytest.raises(UserError, match=r"a:mask .* save it in the form dense"):
        convert(tmp_path / "source", tmp_path / "out", "bitmask")


MEASURED = """
import resource, sys
from pathlib import Path
import torch
from ecoflap.storage.bitmask import convert as converting
from ecoflap.storage.saved_model import open_checkpoint

converting.SHARD_BYTES = 16 * 2**20
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
tiny, source, first, second = map(Path, sys.argv[1:])
converting.convert(tiny, first.with_name("warm"), "coded")  # imports and first allocations
before = peak()
converting.convert(source, first, "coded")
converting.convert(first, second, "dense")
with open_checkpoint(first) as checkpoint:
    for name in checkpoint.names():
        checkpoint.read(name)
print(peak() - before)
"""


def test_memory_is_bounded_by_a_shard(tmp_path: Path) -> None:
    """240 MiB of weights in shards of 16 MiB and tensors of 4 MiB."""
    tiny, source = tmp_path / "tiny", tmp_path / "source"
    tiny.mkdir()
    source.mkdir()
    save_file({"w": pruned((64, 64), 0.5, torch.bfloat16)}, tiny / "model.safetensors")
    one = pruned((1024, 2048), 0.5, torch.bfloat16)
    save_file({f"{i}": one.roll(i) for i in range(60)}, source / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, tiny, source, tmp_path / "first", tmp_path / "second"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 80  # MiB: a shard, and the work on a tensor


def test_an_open_checkpoint_reads_rows(dense: Path, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    convert(dense, tmp_path / "small", "coded")
    with open_checkpoint(tmp_path / "small") as checkpoint:
        assert same(checkpoint.tensor("experts", 1, 3), tensors["experts"][1:3])
        with pytest.raises(KeyError):
            checkpoint.tensor("nothing")
        shapes = checkpoint.shapes()
    assert {name: (like.shape, like.dtype) for name, like in shapes.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_in_the_place_of_the_new_one_is_refused(dense: Path, tmp_path: Path, form: str) -> None:
    source = dense.rename(tmp_path / "out.partial")
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="choose another name"):
        convert(source, tmp_path / "out", form)
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before


def start_and_wait(monkeypatch: pytest.MonkeyPatch, source: Path, out: Path) -> tuple[int, int]:
    """Start a conversion in another process that waits before its first shard; its id, and a pipe to it."""
    (started, say), (hear, go_on) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(go_on)
            write = converting.write_shard

            def waiting(*arguments: Any) -> None:
                os.write(say, b".")
                os.read(hear, 1)
                write(*arguments)

            monkeypatch.setattr(converting, "write_shard", waiting)
            convert(source, out, "coded")
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(say)
    assert os.read(started, 1) == b"."
    return child, go_on


def test_a_folder_that_another_process_writes_is_refused(
    dense: Path,
    tensors: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    child, go_on = start_and_wait(monkeypatch, dense, tmp_path / "out")
    assert main(["convert", str(dense), str(tmp_path / "out"), "--to", "bitmask"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"is being written by another ecoflap convert ({socket.gethostname()}:{child}); wait" in message
    os.close(go_on)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    check_equal(tmp_path / "out", tensors)
    assert {path.name for path in tmp_path.iterdir()} == {"dense", "out"}


def test_a_folder_that_is_written_meanwhile_is_refused(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the first look at it."""

    def write(path: Path) -> bool:
        path.mkdir()
        (path / "file").touch()
        return False

    monkeypatch.setattr(os.path, "ismount", write)
    with pytest.raises(UserError, match="out is there and holds something"):
        convert(dense, tmp_path / "out", "bitmask")
    assert {path.name for path in tmp_path.iterdir()} == {"dense", "out"}
