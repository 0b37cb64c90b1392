"""The image sets of CLIP's evaluation: their files in CoOp's layout, and CoOp's prompt for each."""

from __future__ import annotations

from dataclasses import dataclass

from ecoflap.errors import UserError, did_you_mean


@dataclass(frozen=True)
class PictureSet:
    """The facts about a set.

    Attributes:
        folder: folder of the set, inside the folder of all sets.
        images: folder of the pictures, inside the set's.
        splits: file with the pictures of all splits, or of one if it contains ``{split}``; None for one
            folder per split and class.
        prompt: prompt of a class, with ``{}`` for its name.
        indexed: whether classifiers of the set number its classes like the sorted folders, under any names.
    """

    folder: str
    images: str
    splits: str | None
    prompt: str = "a photo of a {}."
    indexed: bool = False


# Layouts: DATASETS.md of CoOp (https://github.com/KaiyangZhou/CoOp). Prompts: those of its zero-shot CLIP.
SETS = {
    "caltech101": PictureSet("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json"),
    "dtd": PictureSet("dtd", "images", "split_zhou_DescribableTextures.json", "{} texture."),
    "eurosat": PictureSet("eurosat", "2750", "split_zhou_EuroSAT.json", "a centered satellite photo of {}."),
    "fgvc_aircraft": PictureSet(
        "fgvc_aircraft", "images", "images_variant_{split}.txt", "a photo of a {}, a type of aircraft."
    ),
    "food101": PictureSet("food-101", "images", "split_zhou_Food101.json", "a photo of {}, a type of food."),
    "image_folder": PictureSet(".", ".", None),
    "imagenet": PictureSet("imagenet", "images", None, indexed=True),
    "oxford_flowers": PictureSet(
        "oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json", "a photo of a {}, a type of flower."
    ),
    "oxford_pets": PictureSet(
        "oxford_pets", "images", "split_zhou_OxfordPets.json", "a photo of a {}, a type of pet."
    ),
    "stanford_cars": PictureSet("stanford_cars", ".", "split_zhou_StanfordCars.json"),
    "sun397": PictureSet("sun397", "SUN397", "split_zhou_SUN397.json"),
    "ucf101": PictureSet(
        "ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", "a photo of a person doing {}."
    ),
}


def find_set(name: str, option: str) -> PictureSet:
    """The facts about a set.

    Args:
        name: name of the set.
        option: the config group of the part, for the message.

    Raises:
        UserError: if there is no such set.
    """
    if name not in SETS:
        raise UserError(
            f"{option}.dataset={name} is not known; {did_you_mean(name, SETS)}; or image_folder for pictures"
            " of your own"
        )
    return SETS[name]
