"""Mask files: one bit per weight, nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ecoflap.storage.file_names import MASKS
from ecoflap.storage.masks import MaskFile, Rows, load_masks, save_masks


@pytest.mark.parametrize("shape", [(), (1,), (8,), (3, 5), (4, 16), (2, 3, 7), (0, 4)])
def test_round_trip_of_any_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    save_masks(tmp_path / "new" / "masks.bits", {"layer.weight": mask})
    loaded = load_masks(tmp_path / "new" / "masks.bits")
    assert list(loaded) == ["layer.weight"]
    assert loaded["layer.weight"].dtype == torch.bool
    assert torch.equal(loaded["layer.weight"], mask)
    assert loaded["layer.weight"].shape == mask.shape


def test_orientation_is_that_of_the_tensor_and_not_of_its_memory(tmp_path: Path) -> None:
    mask = torch.tensor([[True, False, False], [True, True, False]]).T
    save_masks(tmp_path / "masks", {"w": mask})
    assert load_masks(tmp_path / "masks")["w"].tolist() == [[True, True], [False, True], [False, False]]


def test_a_weight_takes_one_bit_with_the_first_in_the_highest(tmp_path: Path) -> None:
    save_masks(tmp_path / "masks", {"w": torch.tensor([True] + [False] * 9 + [True])})
    with safe_open(str(tmp_path / "masks"), framework="pt") as file:
        assert file.get_tensor("w").tolist() == [0b1000_0000, 0b0010_0000]


def test_only_bool_masks_are_taken_and_an_old_file_stays(tmp_path: Path) -> None:
    save_masks(tmp_path / "masks", {"w": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(TypeError, match=r"mask of w has dtype torch\.float32"):
        save_masks(tmp_path / "masks", {"w": torch.zeros(3)})
    assert load_masks(tmp_path / "masks")["w"].all()
    assert len(list(tmp_path.iterdir())) == 1


def test_equal_masks_are_equal_bytes(tmp_path: Path) -> None:
    masks = {name: torch.ones(3, 5, dtype=torch.bool) for name in ("b", "a")}
    for number in range(20):
        save_masks(tmp_path / f"{number}", masks, {"b": "c"}, {"d": [Rows("a", 0, 1)]})
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_the_folder_of_a_checkpoint_names_its_masks(tmp_path: Path) -> None:
    save_masks(tmp_path / MASKS, {"w": torch.ones(3, dtype=torch.bool)})
    assert load_masks(tmp_path)["w"].all()


def test_files_that_are_not_masks(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no mask file"):
        load_masks(tmp_path / "missing")
    save_file({"w": torch.zeros(3)}, tmp_path / "weights")
    with pytest.raises(ValueError, match="not a mask file"):
        load_masks(tmp_path / "weights")
    (tmp_path / "broken").write_bytes(b"12345678nonsense")
    with pytest.raises(ValueError, match="cannot be read"):
        load_masks(tmp_path / "broken")


def test_a_damaged_name_of_a_tensor(tmp_path: Path) -> None:
    save_masks(tmp_path / "masks", {"layer.weight": torch.ones(2, 3, dtype=torch.bool)})
    whole = (tmp_path / "masks").read_bytes()
    place = whole.rindex(b"layer.weight")
    (tmp_path / "masks").write_bytes(whole[:place] + b"m" + whole[place + 1 :])
    with pytest.raises(ValueError, match=r"is damaged: it lacks the mask of layer\.weight"):
        load_masks(tmp_path / "masks")


def test_one_mask_at_a_time(tmp_path: Path) -> None:
    save_masks(
        tmp_path / "masks", {"a": torch.ones(2, 3, dtype=torch.bool), "b": torch.zeros(4, dtype=torch.bool)}
    )
    with MaskFile(tmp_path / "masks") as file:
        assert file.shapes == {"a": [2, 3], "b": [4]}
        assert not file["b"].any()
