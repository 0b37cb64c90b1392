"""Pictures from files of any kind, whole and damaged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageColor, ImageDraw

from ecoflap.data.files.pictures import locate
from ecoflap.data.image_in_memory import ImageInMemory
from ecoflap.errors import UserError
from ecoflap.models.core.pictures import Pixels, load_image

pytestmark = [pytest.mark.any_release, pytest.mark.long]


@pytest.mark.parametrize(
    ("row", "dtype", "kind"),
    [((0, 1000, 30000, 65535), np.uint16, "png"), ((0, 3, 117, 255), np.int32, "tiff")],
    ids=["sixteen bits", "eight bits in thirty-two"],
)
def test_grey_has_eight_bits(tmp_path: Path, row: tuple[int, ...], dtype: type, kind: str) -> None:
    file = tmp_path / f"grey.{kind}"
    Image.fromarray(np.array([row], dtype=dtype)).save(file)
    assert np.asarray(load_image(str(file))).tolist() == [[[value] * 3 for value in (0, 3, 117, 255)]]


def damaged(folder: Path) -> dict[str, Path]:
    Image.new("RGB", (8, 8), "red").save(folder / "whole.png")
    content = (folder / "whole.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "chunk.png").write_bytes(content.replace(b"IHDR", b"IHDX"))  # a SyntaxError of Pillow's
    (folder / "text.png").write_text("no picture")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    return {name: folder / f"{name}.png" for name in ("cut", "chunk", "text", "bomb", "missing")}


@pytest.mark.parametrize("name", ["cut", "chunk", "text", "bomb", "missing"])
@pytest.mark.every_run("cut", "text", "missing")
def test_a_damaged_picture_is_named(tmp_path: Path, name: str) -> None:
    file = damaged(tmp_path)[name]
    advice = "check the folder" if name == "missing" else "replace it, or take it out of the data set"
    with pytest.raises(UserError, match=rf"the picture .*{name}\.png cannot be read .*; {advice}"):
        load_image(str(file))


def test_an_example_without_a_picture_is_named() -> None:
    with pytest.raises(UserError, match="the model reads a picture, and an example has none"):
        Pixels(lambda _: torch.zeros(1))([None])


def circle(colour: str) -> Any:
    """A picture of two colours whose pixels are indices of them."""
    picture = Image.new("RGB", (16, 16), "white")
    ImageDraw.Draw(picture).ellipse((3, 3, 12, 12), fill=colour)
    return picture.quantize(2)


def clear(index: int) -> Any:
    """A picture with one transparent colour."""
    picture = circle("red")
    picture.info["transparency"] = index
    return picture


@pytest.mark.parametrize("pair", [(circle("red"), circle("blue")), (clear(0), clear(1))])
def test_pictures_in_memory_differ_by_their_palettes(pair: tuple[Any, Any]) -> None:
    one, other = pair
    assert one.tobytes() == other.tobytes()
    assert ImageInMemory(one) != ImageInMemory(other)
    assert ImageInMemory(one) == ImageInMemory(one.copy())


def test_pictures_of_other_colours_have_other_pixels() -> None:
    pixels = Pixels(lambda image: torch.tensor(np.asarray(image)))
    red, blue = pixels([ImageInMemory(circle(colour)) for colour in ("red", "blue")])
    assert not red.equal(blue)


def test_a_file_that_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []

    def prepare(image: Any) -> Any:
        read.append(image)
        return torch.tensor(image.getpixel((0, 0)))

    pixels = Pixels(prepare)
    for folder, colour in (("a", "red"), ("b", "blue")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8), colour).save(tmp_path / folder / "one.png")
        monkeypatch.chdir(tmp_path / folder)
        assert pixels(["one.png"])[0].tolist() == list(ImageColor.getrgb(colour))
    assert pixels(["one.png", str(tmp_path / "b" / "one.png")])[0].tolist() == [0, 0, 255]
    assert len(read) == 2
    Image.new("RGB", (8, 8), "lime").save("one.png")
    os.utime("one.png", ns=(1, 1))  # clocks of file systems may be too coarse for a test
    assert pixels(["one.png"])[0].tolist() == [0, 255, 0]
    Path("one.png").unlink()
    with pytest.raises(UserError, match=r"the picture one\.png cannot be read"):
        pixels(["one.png"])


def sideways(folder: Path) -> Path:
    """A photo of a camera held upright: red at the left as it is stored, at the top as it is shown."""
    picture, exif = Image.new("RGB", (16, 8), "blue"), Image.Exif()
    picture.paste("red", (0, 0, 8, 8))
    exif[ExifTags.Base.Orientation] = 6
    picture.save(folder / "photo.jpg", exif=exif, quality=100)
    return folder / "photo.jpg"


def test_a_photo_is_turned_as_its_camera_was(tmp_path: Path) -> None:
    file = sideways(tmp_path)
    wanted = np.asarray(datasets.Image().decode_example({"path": str(file), "bytes": None}))
    assert wanted.shape == (16, 8, 3)
    assert wanted[0, 0, 0] > 200 > wanted[-1, 0, 0]
    for row in (str(file), file.read_bytes(), {"bytes": file.read_bytes()}, Image.open(file)):
        assert np.array_equal(np.asarray(load_image(locate(row, None, "the row"))), wanted)
    made = Image.open(file).convert("RGB")  # a program may have turned it, and keeps the EXIF of the file
    assert load_image(locate(made, None, "the row")).size == (16, 8)
    stored = Image.open(file)
    flat = Image.frombytes("RGB", stored.size, stored.tobytes())
    assert locate(Image.open(file), None, "the row") != locate(flat, None, "the row")
