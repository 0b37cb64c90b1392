"""Easy-VQA's pictures in the layouts that pictures with captions are published in."""

from __future__ import annotations

import json
from pathlib import Path

from ecoflap.data.easy_vqa.reading import NAMES, read_pictures
from ecoflap.data.example import Example

SAID = ("A picture of a {}.", "a {}", "This is a {}!", "a photo of a {}", "{}, a small one")


def one_of_each(split: str) -> list[Example]:
    """A picture of each of the 24 things."""
    pictures = {picture.target: picture for picture in read_pictures(split)}
    return [pictures[name] for name in NAMES]


def captions(picture: Example) -> list[str]:
    return [said.format(picture.target) for said in SAID]


def shown_at(file: Path, picture: Example) -> str:
    """Put a picture there; returns its name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.symlink_to(Path(picture.image or ""))
    return file.name


def karpathy(root: Path, name: str = "coco") -> Path:
    """As Karpathy has COCO (two folders of pictures) or Flickr30k (one): half of the training pictures are
    restval.
    """
    rows, place = [], {"train": "train2014", "val": "val2014", "test": "val2014", "restval": "val2014"}
    for offset, split in enumerate(("train", "val", "test")):
        for index, picture in enumerate(
            one_of_each("train" if split == "train" else "test")[: 2 if split == "val" else None]
        ):
            row = {
                "split": "restval" if split == "train" and index % 2 else split,
                "sentences": [{"raw": text} for text in captions(picture)],
            }
            number = 1000 * offset + index
            if name == "coco":
                row |= {
                    "filepath": place[row["split"]],
                    "filename": f"COCO_{place[row['split']]}_{number:012}.jpg",
                    "cocoid": number,
                }
            else:
                row |= {"filename": f"{number}.jpg"}
            shown_at(root / row.get("filepath", "flickr30k-images") / row["filename"], picture)
            rows.append(row)
    (root / f"dataset_{name}.json").write_text(json.dumps({"images": rows, "dataset": name}))
    return root


def nocaps(root: Path) -> Path:
    images, annotations = [], []
    for index, picture in enumerate(one_of_each("test")):
        name = shown_at(root / "images" / f"{index:016x}.jpg", picture)
        images.append(
            {
                "id": index,
                "file_name": name,
                "open_images_id": name[:-4],
                "domain": ("in-domain", "near-domain", "out-domain")[index % 3],
            }
        )
        annotations += [
            {"id": len(annotations) + said, "image_id": index, "caption": text}
            for said, text in enumerate(captions(picture))
        ]
    (root / "nocaps_val_4500_captions.json").write_text(
        json.dumps({"images": images, "annotations": annotations[::-1]})
    )
    return root


def cc3m(root: Path, tsv: bool = False) -> Path:
    rows = [
        (f"train/{index}.png", captions(picture)[index % 5])
        for index, picture in enumerate(one_of_each("train"))
    ]
    for (image, _), picture in zip(rows, one_of_each("train"), strict=True):
        shown_at(root / image, picture)
    if tsv:
        (root / "cc3m.tsv").write_text("".join(f"{caption}\t{image}\n" for image, caption in rows))
    else:
        (root / "cc3m.json").write_text(
            json.dumps([{"image": image, "caption": caption} for image, caption in rows])
        )
    return root


def plain(root: Path, splits: bool = True) -> Path:
    """One folder with a line per caption, or one per split with a line per picture."""
    for split in ("train", "test") if splits else ("train",):
        place, lines = root / split if splits else root, []
        for index, picture in enumerate(one_of_each(split)):
            name = shown_at(place / f"{index}.png", picture)
            lines += (
                [{"file_name": name, "text": captions(picture)}]
                if splits
                else [{"file_name": name, "text": text} for text in captions(picture)]
            )
        (place / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root
