"""Pictures from files of any kind, whole and damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ecoflap.errors import UserError
from ecoflap.models.core.pictures import load_image


def test_sixteen_bits_of_grey_become_eight(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.array([[0, 1000, 30000, 65535]], dtype=np.uint16)).save(tmp_path / "grey.png")
    assert np.asarray(load_image(str(tmp_path / "grey.png"))).tolist() == [
        [[value] * 3 for value in (0, 3, 117, 255)]
    ]


def test_eight_bits_in_thirty_two_stay_what_they_are(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.array([[0, 3, 117, 255]], dtype=np.int32)).save(tmp_path / "grey.tiff")
    assert np.asarray(load_image(str(tmp_path / "grey.tiff"))).tolist() == [
        [[value] * 3 for value in (0, 3, 117, 255)]
    ]


def damaged(folder: Path) -> dict[str, Path]:
    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(folder / "whole.png")
    content = (folder / "whole.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "chunk.png").write_bytes(content.replace(b"IHDR", b"IHDX"))  # a SyntaxError of Pillow's
    (folder / "text.png").write_text("no picture")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    return {name: folder / f"{name}.png" for name in ("cut", "chunk", "text", "bomb", "missing")}


@pytest.mark.parametrize("name", ["cut", "chunk", "text", "bomb", "missing"])
def test_a_damaged_picture_is_named(tmp_path: Path, name: str) -> None:
    file = damaged(tmp_path)[name]
    with pytest.raises(UserError, match=rf"the picture .*{name}\.png cannot be read"):
        load_image(str(file))
