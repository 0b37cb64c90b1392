"""Names of the classes of a picture set, and their indices in a classifier."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ecoflap.data.folder import text_lines
from ecoflap.errors import UserError, nearest
from ecoflap.storage.installation import install_extra

OPENAI = "openai"
PACKAGES = ("open_clip", "torchvision")
WORDNET = re.compile(r"n\d{8}")  # the name of a class in ImageNet's files


def openai_templates(option: str) -> list[str]:
    """OpenAI's 80 prompts for ImageNet, from the open_clip package.

    Raises:
        UserError: if the package is not installed.
    """
    return [
        template("{}") for template in _open_clip(f"{option}.templates=[{OPENAI}]").OPENAI_IMAGENET_TEMPLATES
    ]


def imagenet_names(package: str, option: str) -> list[str]:
    """ImageNet's 1000 class names in the order of its sorted folders, from open_clip or torchvision.

    Raises:
        UserError: if the package is not installed.
    """
    if package == "torchvision":
        from torchvision.models import ViT_B_16_Weights

        return list(ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"])
    return list(_open_clip(f"{option}.classes=open_clip").IMAGENET_CLASSNAMES)


def _open_clip(asked: str) -> Any:
    try:
        import open_clip
    except ImportError:
        raise UserError(
            f"{asked} needs the open_clip package: {install_extra('open-clip')}; or give names and templates"
            " of your own"
        ) from None
    return open_clip


def class_lines(classes: str, option: str) -> list[str]:
    """The lines that name the classes, from a package or a file.

    Raises:
        UserError: if it is neither, or the package is not installed.
    """
    if classes in PACKAGES:
        return imagenet_names(classes, option)
    file = Path(classes).expanduser()
    if not file.is_file():
        raise UserError(f"{option}.classes={classes} is neither a file nor one of {', '.join(PACKAGES)}")
    return text_lines(file)


def require_wordnet(found: Sequence[str], asked: str, option: str) -> None:
    """Refuse classes that ImageNet's order says nothing about: it is that of WordNet's numbers.

    Args:
        found: the classes of the files.
        asked: the option with the set, for the message.
        option: the config group of the part, for the message.

    Raises:
        UserError: if a class is not one of WordNet's numbers.
    """
    if other := [name for name in found if not WORDNET.fullmatch(name)]:
        raise UserError(
            f"{asked}: ImageNet's classes are known by the order of WordNet's numbers (n01440764, ...), and a"
            f" folder is named {other[0]}; name the folders so, or choose {option}=image_folder with"
            f" {option}.classes=FILE"
        )


def name_classes(found: Sequence[str], lines: Sequence[str], asked: str) -> tuple[list[str], list[int]]:
    """Match the names of classes with the classes of the files.

    Lines that are the names in the files, or begin with them ("n01440764 tench"), may name more classes, and
    are sorted by them, as the folders are; other lines name one each, in the same order.

    Raises:
        UserError: if there are more or fewer names than classes, or two for one class, or the classes of the
            files are numbers that a sort by digits puts in another order.
    """
    whole = sorted(set(map(spaced, lines)))
    if set(map(spaced, found)) <= set(whole):
        return whole, [whole.index(spaced(name)) for name in found]
    pairs = sorted({(*line.split(maxsplit=1), "")[:2] for line in lines})
    order = {key: index for index, (key, _) in enumerate(pairs)}
    nameless = [key for key, name in pairs if not name]
    if not nameless and set(found) <= set(order):
        if twice := [key for index, (key, _) in enumerate(pairs) if order[key] != index]:
            raise UserError(f"{asked} has more than one name for the class {twice[0]}; keep one of them")
        return [spaced(name) for _, name in pairs], [order[key] for key in found]
    if all(map(WORDNET.fullmatch, order)):
        lacking = next((name for name in found if name not in order), None)
        what = f"name for the class {nameless[0]}" if lacking is None else f"line for the class {lacking}"
        raise UserError(f"{asked} has no {what}; add it, or give the file of this set")
    if len(lines) != len(found):
        raise UserError(
            f"{asked} has {len(lines)} names, and the pictures have {len(found)} classes; give a file with a"
            " line for each class"
        )
    if all(map(str.isdecimal, found)) and list(found) != sorted(found, key=int):
        raise UserError(
            f"{asked}: the classes of the pictures are numbers, sorted by their digits"
            f" ({', '.join(found[:4])}, ...); give a line such as '{found[2]} NAME' for each"
        )
    return [spaced(line) for line in lines], list(range(len(found)))


def own_labels(own: Sequence[str], names: Sequence[str], asked: str, indexed: bool) -> list[int]:
    """The index of each class of a data set among a classifier's own classes.

    Args:
        own: names of the classifier's classes.
        names: names of the data set's classes.
        asked: the option, for messages.
        indexed: whether both have the same order, whatever the names.

    Raises:
        UserError: if the classifier has other classes.
    """
    if indexed:
        if len(own) != len(names):
            raise UserError(
                f"{asked} has {len(names)} classes, and the model has {len(own)}; choose another"
                f" {asked.split('=')[0]}, or another model"
            )
        return list(range(len(own)))
    index_of = {spaced(name): index for index, name in reversed(list(enumerate(own)))}
    if strange := [name for name in names if name not in index_of]:
        raise UserError(
            f"{asked}: the model has no class {strange[0]!r} (nearest: {nearest(strange[0], index_of)});"
            " choose a set of its own classes"
        )
    return [index_of[name] for name in names]


def spaced(name: str) -> str:
    """A class name with spaces in place of underscores."""
    return name.replace("_", " ")
