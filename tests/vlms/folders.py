"""One folder per model, as its authors' is made up, with a model of a few thousand weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from tests.vlms.crossing import mllama
from tests.vlms.gemma import gemma3
from tests.vlms.qwen import DEEPSTACK, EXPERTS, THINKING, qwen
from tests.vlms.routed import ernie4_5_vl_moe
from tests.vlms.sizes import HYBRID, ROPE
from tests.vlms.tiled import internvl3_5, llava_onevision, minicpm_v, smolvlm2


@dataclass(frozen=True)
class Tiny:
    """A tiny model of a choice of ``model``.

    Attributes:
        make: returns module and processor.
        kind: what the names of its classes in transformers begin with.
        package: that its processor needs beside transformers.
        choice: the choice of ``model`` that loads it; None for that of its name.
    """

    make: Callable[[], tuple[Any, Any]]
    kind: str
    package: str | None = None
    choice: str | None = None

    def build(self) -> tuple[Any, Any]:
        """The module and the processor; skips a test of a model that the installed packages lack."""
        kind = f"{self.kind}ForConditionalGeneration"
        if not hasattr(hf, kind):
            pytest.skip(f"transformers {hf.__version__} has no {kind}")
        if hf.__version__ < "5":
            pytest.skip(f"transformers {hf.__version__} builds the parts of processors by other arguments")
        if self.package is not None:
            pytest.importorskip(self.package)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.make()

    def save(self, folder: Path) -> None:
        """Write the folder."""
        module, processor = self.build()
        module.save_pretrained(folder)
        processor.save_pretrained(folder)


MODELS = {
    "qwen3_vl": Tiny(
        qwen("Qwen3VL", {"num_hidden_layers": 3, "rope_parameters": ROPE}, DEEPSTACK), "Qwen3VL"
    ),
    "qwen3_vl_moe": Tiny(
        qwen("Qwen3VLMoe", {"num_hidden_layers": 3, "rope_parameters": ROPE, **EXPERTS}, DEEPSTACK),
        "Qwen3VLMoe",
    ),
    "qwen3_5_vl": Tiny(qwen("Qwen3_5", HYBRID, {"deepstack_visual_indexes": []}, THINKING), "Qwen3_5"),
    "qwen3_5_vl_moe": Tiny(
        qwen(
            "Qwen3_5Moe",
            {**HYBRID, **EXPERTS, "shared_expert_intermediate_size": 24},
            {"deepstack_visual_indexes": []},
            THINKING,
        ),
        "Qwen3_5Moe",
    ),
    "internvl3_5": Tiny(internvl3_5, "InternVL"),
    "gemma3": Tiny(gemma3, "Gemma3"),
    "llava_onevision": Tiny(llava_onevision, "LlavaOnevision"),
    "smolvlm2": Tiny(smolvlm2, "SmolVLM", "num2words"),
    "minicpm_v": Tiny(minicpm_v, "MiniCPMV4_6"),
    "ernie4_5_vl_moe": Tiny(ernie4_5_vl_moe, "Ernie4_5_VLMoe", choice="vlm"),
    "mllama": Tiny(mllama, "Mllama", choice="vlm"),
}
