"""Pictures with their classes, from every layout."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ecoflap.data.classification.class_names import imagenet_names, name_classes, openai_templates, own_labels
from ecoflap.data.classification.clip_sets import SETS
from ecoflap.data.classification.reading import PictureSource
from ecoflap.data.easy_vqa.reading import NAMES
from ecoflap.errors import UserError
from tests.data.picture_sets import CLASSES, COOP, COUNTS, easy_pictures, write_folders, write_set

TRUTH = {
    Path(picture.image or "").read_bytes(): picture.target
    for split in ("train", "test")
    for picture in easy_pictures(split)
}


def source(name: str, path: Path | None, split: str = "test", **options: object) -> PictureSource:
    return PictureSource(name, split, None if path is None else str(path), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", COOP)
@pytest.mark.parametrize("place", ["root", "set"])
def test_every_layout_of_coop(tmp_path: Path, name: str, place: str) -> None:
    folder = write_set(tmp_path, name)
    test = "val" if name == "imagenet" else "test"
    classes = str(folder / "classnames.txt") if name == "imagenet" else None
    for split in ("train", test):
        read = source(name, tmp_path if place == "root" else folder, split, classes=classes).read(
            "task", named=True
        )
        assert read.names == NAMES
        assert Counter(one.label for one in read.examples) == dict.fromkeys(range(24), COUNTS[split])
        for one in read.examples:
            assert one.target == NAMES[one.label or 0] == TRUTH[Path(one.image or "").read_bytes()]


def test_the_splits_share_no_picture(tmp_path: Path) -> None:
    write_set(tmp_path, "dtd")
    files = {
        split: {one.image for one in source("dtd", tmp_path, split).read("task", named=True).examples}
        for split in COUNTS
    }
    assert (
        len(set.union(*files.values()))
        == sum(len(of_it) for of_it in files.values())
        == 24 * sum(COUNTS.values())
    )


def test_own_pictures_in_a_folder_per_class(tmp_path: Path) -> None:
    write_folders(tmp_path, "test")
    (tmp_path / "test" / CLASSES[0] / "notes.txt").write_text("no picture")
    (tmp_path / "test" / CLASSES[0] / "0.png").rename(tmp_path / "test" / CLASSES[0] / "0.GIF")
    read = source("image_folder", tmp_path).read("task", named=True)
    assert read.names == NAMES
    assert len(read.examples) == 48
    assert {TRUTH[Path(one.image or "").read_bytes()] == one.target for one in read.examples} == {True}


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    """Jupyter and macOS leave copies and attributes of pictures beside them, with the endings of pictures."""
    write_folders(tmp_path, "test")
    wanted = source("image_folder", tmp_path).read("task", named=True)
    of_class, split = tmp_path / "test" / CLASSES[0], tmp_path / "test" / ".ipynb_checkpoints"
    for hidden in (split, of_class / ".ipynb_checkpoints"):
        hidden.mkdir()
        shutil.copy(of_class / "0.png", hidden / "0-checkpoint.png")
    (of_class / "._0.png").write_bytes(b"attributes")
    assert source("image_folder", tmp_path).read("task", named=True) == wanted
    assert source("image_folder", tmp_path / "test", "train").read("task", named=True).names == wanted.names
    for shown in CLASSES:
        shutil.rmtree(tmp_path / "test" / shown)
    with pytest.raises(UserError, match="A split is a folder with a folder of pictures per class"):
        source("image_folder", tmp_path).read("task", named=True)


def test_class_folders_without_a_split_are_train(tmp_path: Path) -> None:
    classes = write_folders(tmp_path, "train") / "train"
    read = source("image_folder", classes, "train").read("calibration", named=True)
    assert read == source("image_folder", tmp_path, "train").read("calibration", named=True)
    assert len(read.examples) == 48
    with pytest.raises(UserError, match=r"test is not in task\.path"):
        source("image_folder", classes).read("task", named=True)
    classes.rename(tmp_path / "mine")
    with pytest.raises(UserError, match=r"train is not in task\.path"):  # mine is a split, and no class
        source("image_folder", tmp_path, "train").read("task", named=True)
    (tmp_path / "mine" / "test").mkdir()
    with pytest.raises(UserError, match=r"train is not in task\.path"):
        source("image_folder", tmp_path / "mine", "train").read("task", named=True)


@pytest.mark.parametrize("split", [".", "", "..", "train/..", "/", "./test"])
def test_a_split_is_a_name(tmp_path: Path, split: str) -> None:
    with pytest.raises(UserError, match="is not the name of a split; choose one such as train"):
        source("image_folder", write_folders(tmp_path, "train"), split).read("calibration", named=True)


def test_imagenet_wherever_its_splits_are(tmp_path: Path) -> None:
    for folder in ("imagenet/images", "images", "."):
        write_folders(
            tmp_path / folder.replace("/", "_") / folder, "val", [f"n{label:08d}" for label in range(24)]
        )
        read = source("imagenet", tmp_path / folder.replace("/", "_"), "val", classes="torchvision").read(
            "task", named=False
        )
        assert [one.label for one in read.examples] == [
            label for label in range(24) for _ in range(COUNTS["val"])
        ]


@pytest.mark.parametrize("name", ["imagenet", "dtd", "fgvc_aircraft"])
def test_a_path_from_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_set(tmp_path / "data", name)
    monkeypatch.chdir(tmp_path)
    read = source(name, Path("data"), "train").read("task", named=False)
    assert len(read.examples) == 48
    assert all(Path(one.image or "").is_file() for one in read.examples)


def test_a_file_names_the_classes(tmp_path: Path) -> None:
    write_set(tmp_path, "dtd")
    (tmp_path / "names.txt").write_text("".join(f"texture_{index}\n" for index in range(24)))
    read = source("dtd", tmp_path, classes=str(tmp_path / "names.txt")).read("task", named=True)
    assert (read.names[3], read.examples[-1].target) == ("texture 3", "texture 23")
    text = (tmp_path / "names.txt").read_text()
    (tmp_path / "names.txt").write_text(text, encoding="utf-8-sig")  # as Excel and Notepad write it
    assert source("dtd", tmp_path, classes=str(tmp_path / "names.txt")).read("task", named=True) == read


def test_a_file_with_folders_may_name_more_classes() -> None:
    assert name_classes(["n2", "n4"], ["n1 a", "n2 great white shark", "n4 c_d"], "") == (
        ["a", "great white shark", "c d"],
        [1, 2],
    )
    assert name_classes(["b", "a"], ["a", "b"], "") == (["a", "b"], [1, 0])
    assert name_classes(["x", "great"], ["great white shark", "x"], "") == (
        ["great white shark", "x"],
        [0, 1],
    )
    keyed = ["n01440764 tench", "n01443537 goldfish"]
    for found in (["n01440764", "n01443538"], ["n02084071", "n02121808"]):
        with pytest.raises(UserError, match=f"task=i has no line for the class {found[-1]}|{found[0]}"):
            name_classes(found, keyed, "task=i")
    with pytest.raises(UserError, match=r"task\.classes=f has 1 names, and the pictures have 2 classes"):
        name_classes(["x", "y"], ["a"], "task.classes=f")


def test_lines_with_folders_are_sorted_as_the_folders_are() -> None:
    """The devkit of ImageNet lists its classes in another order than that of a classifier."""
    found, lines = ["n1", "n2", "n3"], ["n2 goldfish", "n3 shark", "n1 tench"]
    for space in (" ", "\t", "  "):  # a tab in words.txt of Tiny ImageNet
        spaced = [line.replace(" ", space) for line in lines]
        assert name_classes(found, spaced, "") == (["tench", "goldfish", "shark"], [0, 1, 2])


@pytest.mark.parametrize("found", [["great white shark", "ray"], ["great_white_shark", "ray"]])
def test_lines_that_are_the_names_in_the_files_come_in_any_order(found: list[str]) -> None:
    """By their order alone, sharks would be rays."""
    own = ["great white shark", "ray"]
    for lines in (own, own[::-1], [*own, "ray"]):
        assert name_classes(found, lines, "") == (own, [0, 1])
    assert name_classes(found, ["tiger cat", *own[::-1]], "") == ([*own, "tiger cat"], [0, 1])


def test_a_class_has_one_name() -> None:
    """A second one would be a class without pictures, which takes those of the first."""
    assert name_classes(["n1"], ["n1 tench", "n1 tench"], "") == (["tench"], [0])
    with pytest.raises(UserError, match=r"task\.classes=f has more than one name for the class n1; keep one"):
        name_classes(["n1", "n2"], ["n1 tench", "n2 goldfish", "n1 Tinca tinca"], "task.classes=f")
    keyed = ["n01440764 tench", "n01443537"]
    with pytest.raises(UserError, match=r"task\.classes=f has no name for the class n01443537; add it"):
        name_classes(["n01440764", "n01443537"], keyed, "task.classes=f")


def test_numbered_folders_are_named_by_lines_with_their_numbers() -> None:
    found, names = sorted(map(str, range(11))), [f"thing {number}" for number in range(11)]
    with pytest.raises(
        UserError, match=r"task\.classes=f: .* numbers, sorted .* \(0, 1, 10, 2, \.\.\.\).*'10 NAME'"
    ):
        name_classes(found, names, "task.classes=f")
    keyed, places = name_classes(found, [f"{number} thing {number}" for number in range(11)], "")
    assert [keyed[place] for place in places] == [f"thing {number}" for number in found]
    assert name_classes(["00", "01", "10"], ["a", "b", "c"], "") == (["a", "b", "c"], [0, 1, 2])


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("classes", [[str(label) for label in range(24)], CLASSES])
def test_imagenets_order_is_that_of_wordnets_numbers(
    tmp_path: Path, indexed: bool, classes: list[str]
) -> None:
    """Folders with other names sort otherwise, so that each picture would have another one's class."""
    write_folders(tmp_path, "val", classes)
    imagenet = source("imagenet", tmp_path, "val", classes=None if indexed else "torchvision")
    with pytest.raises(UserError, match=f"task=imagenet: .*a folder is named {classes[0]}; .*image_folder"):
        imagenet.read("task", named=False, indexed=indexed)


def test_a_classifiers_own_classes() -> None:
    assert own_labels(["a_b", "c", "c"], ["c", "a b"], "task=dtd", indexed=False) == [1, 0]
    assert own_labels(["tench", "goldfish"], ["n1", "n2"], "task=imagenet", indexed=True) == [0, 1]
    with pytest.raises(UserError, match=r"task=dtd: the model has no class 'cat' \(nearest: cut"):
        own_labels(["cut", "dog"], ["cat"], "task=dtd", indexed=False)
    with pytest.raises(
        UserError, match="task=imagenet has 1 classes, and the model has 2; choose another task"
    ):
        own_labels(["cut", "dog"], ["cat"], "task=imagenet", indexed=True)


def test_imagenets_names_and_templates() -> None:
    names = imagenet_names("torchvision", "task")
    assert (len(names), names[0], names[999]) == (1000, "tench", "toilet tissue")
    pytest.importorskip("open_clip")
    assert len(imagenet_names("open_clip", "task")) == 1000
    templates = openai_templates("task")
    assert (len(templates), {template.count("{}") for template in templates}) == (80, {1})
    own = PictureSource("eurosat", "test", templates=["{}!", "openai"]).prompts("task")
    assert own == ("{}!", *templates)
    assert PictureSource("eurosat", "test").prompts("task") == ("a centered satellite photo of {}.",)


def test_without_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(
        UserError,
        match=r"task\.templates=\[openai\] needs the open_clip package: pip install -e '\.\[open-clip\]'",
    ):
        PictureSource("imagenet", "val", templates=["openai"]).prompts("task")
    with pytest.raises(UserError, match=r"task\.classes=open_clip needs the open_clip package"):
        imagenet_names("open_clip", "task")


def broken(root: Path, change: Callable[[dict[str, list]], object]) -> PictureSource:
    file = write_set(root, "dtd") / str(SETS["dtd"].splits)
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return source("dtd", root)


def aircraft(root: Path) -> PictureSource:
    (write_set(root, "fgvc_aircraft") / "images_variant_test.txt").write_text("0001 A380\n")
    return source("fgvc_aircraft", root)


def numbered(root: Path, name: str) -> PictureSource:
    return source(name, write_folders(root, "test", [f"n{label:08d}" for label in range(24)]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda root: source("dtd", None),
            r"task=dtd needs the data set's folder: task\.path=FOLDER with dtd/split_zhou_Desc.*DATASETS\.md",
        ),
        (lambda root: source("dtd", root), r"dtd/split_zhou_DescribableTextures\.json is not in task\.path="),
        (
            lambda root: source("imagenet", root, "val"),
            r"imagenet/images/val is not in task\.path=.*a folder per class",
        ),
        (
            lambda root: source("dtd", (write_set(root, "dtd"), root)[1], "valid"),
            r"task\.split=valid is not in split_zhou.*train, val, test",
        ),
        (
            lambda root: broken(root, lambda splits: splits["train"].append(["x.jpg", 99, "x"])),
            "its labels are not 0 to 24",
        ),
        (
            lambda root: broken(root, lambda splits: splits.update(test=[["x.jpg", 0, "x"]])),
            f"its label 0 is both {CLASSES[0]} and x; number the classes alike in all splits",
        ),
        (
            lambda root: broken(root, lambda splits: splits.update(test=[["x.jpg", 1]])),
            "holds no rows of picture, label and class",
        ),
        (aircraft, r"'0001 A380' names no variant of variants\.txt"),
        (
            lambda root: numbered(root, "image_folder"),
            r"WordNet's numbers; name them by task\.classes=open_clip",
        ),
        (
            lambda root: source("image_folder", ((root / "test").mkdir(), root)[1]),
            "Couldn't find any class folder",
        ),
        (
            lambda root: source("image_folder", ((root / "test" / "cat").mkdir(parents=True), root)[1]),
            "Found no valid file for the classes cat",
        ),
        (
            lambda root: source("image_folder", write_folders(root, "test"), classes="names.csv"),
            r"task\.classes=names\.csv is neither a file nor",
        ),
        (lambda root: source("dtt", root), r"task\.dataset=dtt is not known; did you mean dtd"),
    ],
)
def test_refusals(tmp_path: Path, make: Callable[[Path], PictureSource], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(tmp_path).read("task", named=True)
