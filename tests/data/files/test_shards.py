"""Tar shards that other programs than WebDataset's own pack."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from ecoflap.data.files.calibration import WebDataset
from ecoflap.errors import UserError
from tests.data.files import rows as given


def test_links_in_a_shard_are_the_files_that_they_lead_to(tmp_path: Path) -> None:
    """As tar stores a file that has two names, or a link."""
    write_text_and_links(tmp_path / "0.tar", "0.png", tarfile.LNKTYPE)
    write_text_and_links(tmp_path / "1.tar", "gone.png", tarfile.SYMTYPE)
    rows = WebDataset().open([tmp_path / "0.tar"])
    assert [row.values["images"][0]["bytes"] for row in rows.read([0, 1])] == [given.png(0)] * 2
    gone = WebDataset().open([tmp_path / "1.tar"])
    assert len(rows) == len(gone) == 2
    with pytest.raises(UserError, match=r"sample 1: 1\.png is a link to gone\.png, which is no file of the"):
        gone.read([1])


def test_a_shard_that_was_cut_between_two_members_is_refused(tmp_path: Path) -> None:
    """As a download that stopped or a writer that was killed leaves it: it can be read to its last byte."""
    shard = tmp_path / "0.tar"
    given.write_shard(shard, {"0.png": given.png(0), "0.txt": b"a", "1.png": given.png(1), "1.txt": b"b"})
    with tarfile.open(shard) as whole:
        second = whole.getmember("1.png").offset
        end = whole.offset
    assert len(WebDataset().open([shard])) == 2
    for size in (end, second):
        os.truncate(shard, size)
        with pytest.raises(UserError, match=r"0\.tar can't be read as tar \(its end is missing"):
            WebDataset().open([shard])


def write_text_and_links(file: Path, target: str, kind: bytes) -> None:
    """A sample with a picture, one with a link, and a link to a folder, which is no sample."""
    given.write_shard(file, {"0.png": given.png(0), "0.txt": b"a", "1.txt": b"b"})
    with tarfile.open(file, "a") as shard:
        for name, leads in (("1.png", target), ("folder", "..")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, leads
            shard.addfile(member)
