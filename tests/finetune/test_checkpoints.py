"""Which checkpoint a training resumes from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ecoflap.finetune.checkpoints import last_checkpoint


def checkpoint(folder: Path) -> Path:
    """A checkpoint in a folder, as far as it is looked at."""
    made = folder / "checkpoint-4"
    made.mkdir()
    (made / "optimizer.pt").touch()
    (made / "trainer_state.json").write_text('{"best_model_checkpoint": null}')
    return made


def test_a_folder_that_was_being_removed_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Trainer resumes without the optimizer's state if that is missing."""
    folder = tmp_path / "finetune"
    assert last_checkpoint(folder, {"steps": 8}) is None
    made = checkpoint(folder)
    assert last_checkpoint(folder, {"steps": 8}) == str(made)

    def killed(*_: Any, **__: Any) -> None:
        (made / "optimizer.pt").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            last_checkpoint(folder, {"steps": 9})
    assert last_checkpoint(folder, {"steps": 8}) is None
    assert not made.exists()
