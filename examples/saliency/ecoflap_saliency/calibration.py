"""Calibration on pictures for a saliency model, with the dense model's own maps as labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ecoflap.data.calibration_set import CalibrationSet, draw
from ecoflap.data.folder import is_hidden
from ecoflap.data.sources import picture_sources
from ecoflap.errors import UserError, require_positive
from ecoflap.models.core.pictures import load_image
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.loading.installed import installed_file
from ecoflap_saliency.model import SIZE, SaliencyModel, saliency_logits

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# The pictures that come with scikit-image, in two halves; the two views of one motorcycle are in the same
# half.
CALIBRATION = (
    *(
        "astronaut.png",
        "cell.png",
        "clock_motion.png",
        "coins.png",
        "color.png",
        "grass.png",
        "ihc.png",
        "moon.png",
    ),
    *("motorcycle_left.png", "motorcycle_right.png", "page.png", "retina.jpg"),
)
HELD_OUT = (
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "horse.png",
    "logo.png",
    "phantom.png",
    "rocket.jpg",
    "text.png",
)


def require_saliency_model(model: PrunableModel, option: str) -> None:
    """Refuse a model that returns no saliency maps.

    Raises:
        UserError: if it returns none.
    """
    if not isinstance(model.module, SaliencyModel):
        raise UserError(
            f"{option} looks at saliency maps, and {model.name} makes none; choose another"
            f" {option.split('=')[0]}, or model=vit_s_saliency"
        )


def picture_files(path: str | None, from_package: Sequence[str], option: str) -> list[Path]:
    """The pictures of a folder in the order of their names, or some of scikit-image.

    Raises:
        UserError: if there are none.
    """
    if path is None:
        install = f"make real-models, or give a folder with {option}.path=FOLDER"
        return [installed_file("skimage", f"data/{name}", install) for name in from_package]
    folder = Path(path).expanduser()
    every = (file for file in folder.glob("*") if not is_hidden(file, folder))
    files = sorted(file for file in every if file.suffix.lower() in SUFFIXES)
    if not files:
        what = f"no picture ({', '.join(SUFFIXES)}) in it" if folder.is_dir() else "no such folder"
        raise UserError(
            f"{option}.path={path}: there is {what}; give a folder of pictures, or null for those of"
            " scikit-image"
        )
    return files


def read_pixels(model: PrunableModel, files: Sequence[Path]) -> Tensor:
    """Pictures in the model's format, each complete in a black square, [pictures, 3, height, width]."""
    from PIL import ImageOps

    squares = [ImageOps.pad(load_image(str(file)), (SIZE, SIZE)) for file in files]
    return torch.as_tensor(model.processor(images=squares, return_tensors="pt")["pixel_values"])


@torch.no_grad()
def saliency_maps(model: PrunableModel, pixels: Tensor, batch_size: int) -> Tensor:
    """Saliency maps of pixels [pictures, 3, height, width], 0 to 1, on the CPU, [pictures, height, width]."""
    model.module.eval()
    return torch.cat(
        [saliency_logits(model.module, part).sigmoid().cpu() for part in pixels.split(batch_size)]
    )


@dataclass(frozen=True)
class Pictures:
    """Pictures of a folder, or the first half of scikit-image's.

    Attributes:
        path: a folder of pictures; null for scikit-image's.
        samples: number of pictures.
        name: shown in logs and written to result files.
        unlabelled: True, as labels that are the dense model's own maps are nothing to train on.
    """

    path: str | None = None
    samples: int = 12
    name: str = "pictures"
    unlabelled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples")

    def check_data(self, group: str) -> None:
        """Refuse missing pictures.

        Raises:
            UserError: if pictures are missing.
        """
        picture_files(self.path, CALIBRATION, group)

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that makes no saliency maps.

        Raises:
            UserError: if the model makes no saliency maps.
        """
        require_saliency_model(model, f"calibration={self.name}")

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Draw pictures, and label them with the maps of the dense model.

        Raises:
            UserError: if the model returns no saliency maps, or there are no pictures.
        """
        self.check_model(model)
        files = picture_files(self.path, CALIBRATION, "calibration")
        chosen = [files[index] for index in draw(len(files), self.samples, seed)]
        pixels = read_pixels(model, chosen)
        labels = saliency_maps(model, pixels, batch_size=8) > 0.5
        samples = tuple(
            {"pixel_values": image, "labels": label} for image, label in zip(pixels, labels, strict=True)
        )
        return CalibrationSet(self.name, samples, picture_sources(map(str, chosen)))
