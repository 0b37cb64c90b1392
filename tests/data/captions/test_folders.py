"""Captions in folders of one's own: links, hidden copies, and several lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecoflap.data.captions.reading import CaptionSource
from ecoflap.errors import UserError
from tests.data import caption_folders as folders


def test_hidden_copies_are_left_out_and_links_followed(tmp_path: Path) -> None:
    """Jupyter's copies, what macOS notes of a file, and a split that lies elsewhere."""
    pictures = folders.one_of_each("train")[:3]
    shown = ("data/train/1.png", "data/train/.ipynb_checkpoints/1-checkpoint.png", "elsewhere/train/2.png")
    for name, picture in zip(shown, pictures, strict=True):
        folders.shown_at(tmp_path / name, picture)
        (tmp_path / name).with_suffix(".txt").write_text(f"a {picture.target}")
    (tmp_path / "data" / "train" / "._1.txt").write_bytes(b"\0\5\x16\7\xff")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    found = CaptionSource(str(tmp_path / "data")).pictures("calibration", apart=True)
    assert [one.captions for one in found] == [(f"a {pictures[place].target}",) for place in (2, 0)]
    (tmp_path / "data" / "train" / "1.txt").unlink()
    (tmp_path / "elsewhere" / "train" / "2.txt").unlink()
    with pytest.raises(UserError, match=r"calibration=captions: \*\*/metadata\.jsonl is not in"):
        CaptionSource(str(tmp_path / "data")).pictures("calibration")
