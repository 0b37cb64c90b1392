"""inspect=true on a model of the real size: every kind of layer is shown, and nothing is downloaded or held
in memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from tests.cli.conftest import ROOT

# Python runs this before anything else: whatever asks the network is written down and refused.
NO_NETWORK = """
import os, socket

def refuse(*arguments, **options):
    with open(os.environ["ASKED"], "a") as log:
        print(arguments, file=log)
    raise OSError("this test has no network")

socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
"""


@pytest.mark.skipif(
    not hasattr(transformers, "Blip2Config"), reason=f"transformers {transformers.__version__} has no BLIP-2"
)
def test_inspect_shows_a_published_model_without_network_or_memory(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    asked, shown = tmp_path / "asked.txt", tmp_path / "shown.txt"
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"PYTHONPATH": str(tmp_path), "HF_HOME": str(tmp_path / "hub"), "ASKED": str(asked)}
    with shown.open("w") as output:
        command = [sys.executable, str(ROOT / "main.py"), "inspect=true", "model=blip2_flan_t5_xl"]
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=tmp_path
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    lines = [line.split() for line in shown.read_text().splitlines()]
    assert process.returncode == 0, shown.read_text()
    assert not asked.exists(), asked.read_text()

    towers = {
        "vision": (39, 156, 984_023_040),
        "encoder": (24, 168, 1_157_627_904),
        "decoder": (24, 264, 1_560_281_088),
    }
    paths = ("vision_model.encoder.layers", "language_model.encoder.block", "language_model.decoder.block")
    for path, (tower, (blocks, layers, weights)) in zip(paths, towers.items(), strict=True):
        assert [tower, path, str(blocks), str(layers), f"{weights:,}"] in lines
    assert lines[0][0] == "blip2_flan_t5_xl:"
    assert "3,701,932,032 prunable" in " ".join(lines[0])
    assert ["0-38.mlp.fc1.weight", "6144", "1408", "39", f"{39 * 8_650_752:,}"] in lines
    decoder = ["0-23.layer.2.DenseReluDense.wo.weight", "2048", "5120", "24", f"{24 * 10_485_760:,}"]
    assert decoder in lines
    layers = [int(line[3]) for line in lines if len(line) == 5 and line[0].endswith(".weight")]
    assert sum(layers) == 588
    assert len(lines) < 120, "identical blocks are not said once"
    cross = "qformer.encoder.layer.0,2,4,6,8,10.crossattention.attention.query.weight"
    assert ["3,538,944", "6", cross] in lines
    assert ["tower", "qformer", "is", "left", "dense", "96", "104,988,672"] in lines
    assert ["65,798,144", "1", "language_model.shared.weight"] in lines

    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert peak < 2 * 3_942_446_592 / 2  # half of the weights' bytes at 16 bit
