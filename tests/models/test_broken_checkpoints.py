"""A checkpoint folder with something wrong in it: one line that says what, wherever its weights are to be,
and before they are read.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.errors import NumericalError, UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.clip.clip import Clip
from ecoflap.models.families.language.causal_lm import CausalLM
from ecoflap.models.families.language.seq2seq import Seq2Seq
from ecoflap.models.families.vlm.vlm import VisionLanguage
from ecoflap.models.loading.checkpoint_folder import stored_in
from ecoflap.models.loading.conversion import match_tensors, untie
from ecoflap.models.offload.load import load_offloaded
from ecoflap.prune.driver import prune
from ecoflap.prune.magnitude import Magnitude
from ecoflap.storage.checkpoint import save_checkpoint, write_checkpoint
from tests import tiny
from tests.cli.conftest import tiny_llama  # noqa: F401 - a fixture
from tests.models.test_quantised import (  # noqa: F401 - two of them fixtures
    change_config,
    change_weights,
    folder,
    no_weights_read,
)
from tests.storage.test_disks import fill, small_disk  # noqa: F401 - a fixture

INDEX = "model.safetensors.index.json"
LAYER = "model.layers.1.mlp.up_proj.weight"
TWO_VALUES = r"different values for \S+ and \S+, .*set tie_word_embeddings to false"
Break = Callable[[Path], None]


def load(path: Path, offload: str, work: Path, **options: Any) -> PrunableModel:
    return load_offloaded(
        CausalLM(path=str(path), **options), torch.device("cpu"), Selection(), offload, work
    )


def load_all(path: Path, offload: str, work: Path) -> None:
    """Load a model and have every block in memory once."""
    model = load(path, offload, work)
    for block in model.blocks:
        with model.placement.using(block):
            pass


def shard(path: Path) -> None:
    """Write the weights in several files with an index."""
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    places = {name: f"model-{number % 3}.safetensors" for number, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file(
            {name: tensor for name, tensor in tensors.items() if places[name] == file},
            path / file,
            metadata={"format": "pt"},
        )
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def sharded(change: Break) -> Break:
    def both(path: Path) -> None:
        shard(path)
        change(path)

    return both


def cut(name: str, keep: Callable[[int], int]) -> Break:
    def change(path: Path) -> None:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: keep(len(content))])

    return change


def remove(pattern: str) -> Break:
    def change(path: Path) -> None:
        for file in path.glob(pattern):
            file.unlink()

    return change


def write(name: str, text: str) -> Break:
    def change(path: Path) -> None:
        (path / name).write_text(text)

    return change


def weights(change: Callable[[dict[str, Tensor]], object]) -> Break:
    def both(path: Path) -> None:
        change_weights(path, change)

    return both


def config(**changes: Any) -> Break:
    return lambda path: change_config(path, **changes)


def without_model_type(path: Path) -> None:
    settings = json.loads((path / "config.json").read_text())
    del settings["model_type"]
    (path / "config.json").write_text(json.dumps(settings))


def one_folder_too_high(path: Path) -> None:
    (path / "checkpoint").mkdir()
    (path / "config.json").rename(path / "checkpoint" / "config.json")


def only_unfinished(path: Path) -> None:
    """What killed saves of a run, and of ``ecoflap.save``, leave."""
    for name in ("checkpoint.partial", "checkpoint.partial.dense", ".tmp-host-1-2"):
        (path / name).mkdir()
        shutil.copy(path / "config.json", path / name)
    (path / "config.json").unlink()


def another_tokenizer(path: Path) -> None:
    file = path / "tokenizer.json"
    settings = json.loads(file.read_text())
    vocabulary = settings["model"]["vocab"]
    vocabulary |= {f"word{number}": number for number in range(len(vocabulary), len(vocabulary) + 9)}
    file.write_text(json.dumps(settings))


# What is wrong -> (how it comes about, what the message has to say).
BEFORE_WEIGHTS: dict[str, tuple[Break, str]] = {
    "no config": (
        remove("config.json"),
        r"model\.path=\S+ has no config\.json; give a folder that save_pretrained wrote",
    ),
    "the folder above": (one_folder_too_high, r"has no config\.json; give \S+/checkpoint$"),
    "the folder of a killed run": (
        only_unfinished,
        r"has no config\.json; give a folder that save_pretrained wrote",
    ),
    "a cut config": (
        cut("config.json", lambda size: size // 2),
        r"config\.json of model\.path=\S+ is not valid JSON \(.*\); copy it anew",
    ),
    "a list for a config": (write("config.json", "[]"), r"config\.json of model\.path=\S+ holds no settings"),
    "no kind": (without_model_type, r"config\.json of model\.path=\S+ has no model_type"),
    "an unknown kind": (
        config(model_type="lama"),
        r"says model_type=lama, which transformers \S+ does not know \(nearest: llama",
    ),
    "code of its own": (
        config(model_type="mine", auto_map={}),
        r"model_type=mine.*code that comes with a checkpoint is not run",
    ),
    "a vision-language model": (
        lambda path: tiny.VLM["llava"]().config.save_pretrained(path),
        r"is a llava, .*AutoModelForCausalLM.*use model=vlm$",
    ),
    "an encoder-decoder": (
        lambda path: tiny.SEQ2SEQ["t5"]().config.save_pretrained(path),
        r"is a t5, .*use model=seq2seq$",
    ),
    "a dual encoder": (
        lambda path: tiny.DUAL["clip"]().config.save_pretrained(path),
        r"is a clip, .*use model=clip$",
    ),
    "a size that can't be": (
        config(hidden_size="x"),
        r"model\.path=\S+ could not be loaded: .*check the files",
    ),
    "no weights": (
        remove("model.safetensors"),
        rf"has no weights: no model\.safetensors and no {INDEX}; save the model there",
    ),
    "weights of another name": (
        lambda path: (path / "model.safetensors").rename(path / "w.safetensors"),
        r"has no weights.*only w\.safetensors",
    ),
    "zero bytes": (
        cut("model.safetensors", lambda _: 0),
        r"model\.safetensors is not a safetensors file, or is cut off; copy the file anew",
    ),
    "a cut header": (
        cut("model.safetensors", lambda _: 100),
        r"model\.safetensors is not a safetensors file, or is cut off",
    ),
    "cut data": (
        cut("model.safetensors", lambda size: size - 1),
        r"model\.safetensors is cut off: it has [\d,]+ of [\d,]+ bytes; copy the file anew",
    ),
    "another file": (
        write("model.safetensors", "<html>Not found, sorry</html>"),
        r"model\.safetensors is not a safetensors file",
    ),
    "a cut index": (
        sharded(cut(INDEX, lambda size: size // 2)),
        rf"{INDEX} of model\.path=\S+ is not valid JSON",
    ),
    "an empty index": (
        sharded(write(INDEX, "{}")),
        rf"{INDEX} of model\.path=\S+ has no weight_map",
    ),
    "a missing shard": (
        sharded(remove("model-1.safetensors")),
        rf"lacks model-1\.safetensors \(1 of 3 files that its {INDEX} names\)",
    ),
    "a cut shard": (
        sharded(cut("model-2.safetensors", lambda size: size - 1)),
        r"model-2\.safetensors is cut off",
    ),
    "another shard": (
        sharded(
            lambda path: shutil.copy(path / "model-0.safetensors", path / "model-1.safetensors") and None
        ),
        (
            r"model-1\.safetensors of model\.path=\S+ has no \S+, which its model\.safetensors\.index\.json"
            r" looks for there"
        ),
    ),
    "no tokenizer": (
        remove("tokenizer.json"),
        r"^the tokenizer or processor of model\.path=\S+ could not be loaded",
    ),
    "no file of a tokenizer": (
        remove("*token*"),
        r"^model\.path=\S+ has no tokenizer or processor, such as tokenizer\.json",
    ),
    "another tokenizer": (
        another_tokenizer,
        r"the tokenizer of model\.path=\S+ has 31 tokens and its model embeds 22; they don't belong together",
    ),
}
WITH_WEIGHTS: dict[str, tuple[Break, str]] = {
    "a missing weight": (
        weights(lambda tensors: tensors.pop(LAYER)),
        rf"lacks 1 weights of its model, such as {LAYER}; the checkpoint is damaged",
    ),
    "another name": (
        weights(lambda tensors: tensors.update(mine=tensors.pop(LAYER))),
        rf"lacks 1 weights of its model, such as {LAYER}",
    ),
    "another shape": (
        weights(lambda tensors: tensors.update({LAYER: torch.zeros(8, 16)})),
        rf"another shape .* such as {LAYER}|{LAYER} has the shape \(8, 16\)",
    ),
    "a NaN": (
        weights(lambda tensors: tensors[LAYER].__setitem__((0, 0), float("nan"))),
        rf"{LAYER}.* holds NaN or infinite weights",
    ),
    "an infinity": (
        weights(lambda tensors: tensors[LAYER].__setitem__((0, 0), float("inf"))),
        rf"{LAYER}.* holds NaN or infinite weights",
    ),
    "more blocks in the config": (
        config(num_hidden_layers=3, layer_types=None),
        r"lacks 9 weights of its model, such as model\.layers\.2\.input_layernorm\.weight",
    ),
}


@pytest.mark.parametrize("offload", ["none", "disk"])
@pytest.mark.parametrize("kind", BEFORE_WEIGHTS)
@pytest.mark.usefixtures("no_weights_read")
def test_before_weights_are_read(folder: Path, tmp_path: Path, kind: str, offload: str) -> None:
    change, message = BEFORE_WEIGHTS[kind]
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        load(folder, offload, tmp_path)
    assert "\n" not in str(caught.value)
    assert "None" not in str(caught.value)


@pytest.mark.parametrize("offload", ["none", "cpu", "disk"])
@pytest.mark.parametrize("kind", WITH_WEIGHTS)
def test_as_weights_are_read(folder: Path, tmp_path: Path, kind: str, offload: str) -> None:
    change, message = WITH_WEIGHTS[kind]
    change(folder)
    with pytest.raises((UserError, NumericalError), match=message) as caught:
        load_all(folder, offload, tmp_path)
    assert "\n" not in str(caught.value)


def test_both_names_are_in_the_message(folder: Path, tmp_path: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update(mine=tensors.pop(LAYER)))
    with pytest.raises(
        UserError,
        match=(
            rf"such as {LAYER}, and has 1 that belong to nothing in it, such as mine; .*runtime\.offload=cpu"
        ),
    ):
        load(folder, "disk", tmp_path)


@pytest.mark.parametrize("offload", ["none", "disk"])
def test_a_weight_of_nothing_is_one_warning(
    folder: Path, tmp_path: Path, offload: str, caplog: pytest.LogCaptureFixture
) -> None:
    extra = "model.layers.7.mlp.up_proj.weight"
    change_weights(folder, lambda tensors: tensors.update({extra: torch.zeros(32, 16)}))
    load(folder, offload, tmp_path)
    mine = [message for message in caplog.messages if extra in message]
    assert mine == [
        f"model.path={folder} has 1 tensors that belong to nothing in its LlamaForCausalLM, such as {extra};"
        " they are neither used nor saved"
    ]


def test_two_values_of_one_tensor(folder: Path, tmp_path: Path) -> None:
    """Releases before the fifth take one of them without a word."""
    if hasattr(hf.PreTrainedModel, "get_expanded_tied_weights_keys"):
        pytest.skip("from_pretrained leaves them untied")
    change_config(folder, tie_word_embeddings=True)
    with pytest.raises(UserError, match=TWO_VALUES):
        load(folder, "disk", tmp_path)


def test_two_values_of_a_tensor_that_is_one_by_construction(folder: Path) -> None:
    module: Any = hf.LlamaForCausalLM.from_pretrained(folder)
    first, second = module.model.layers[:2]
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    stored = stored_in(folder)
    untie(str(folder), module, stored)
    assert second.mlp.up_proj.weight is first.mlp.up_proj.weight
    with pytest.raises(UserError, match=TWO_VALUES):
        match_tensors(str(folder), module, stored)


@pytest.mark.parametrize("equal", [False, True])
def test_two_values_of_embeddings_that_the_config_ties(
    folder: Path, tmp_path: Path, equal: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """They are tied where from_pretrained ties them, also in the saved model."""
    if not hasattr(hf.PreTrainedModel, "get_expanded_tied_weights_keys"):
        pytest.skip("from_pretrained takes one of them")
    change_config(folder, tie_word_embeddings=True)
    if equal:
        head = "lm_head.weight"
        change_weights(
            folder, lambda tensors: tensors.update({head: tensors["model.embed_tokens.weight"] + 0})
        )
    right = hf.LlamaForCausalLM.from_pretrained(folder)
    model = load(folder, "disk", tmp_path / "work")
    mine: Any = model.module
    assert (mine.lm_head.weight is mine.model.embed_tokens.weight) is equal
    assert (right.lm_head.weight is right.model.embed_tokens.weight) is equal
    assert any("are left untied" in message for message in caplog.messages) is not equal
    for name, _, parts in model.placement.tensors(mine):
        assert torch.equal(torch.cat([part.flatten() for part in parts]), right.state_dict()[name].flatten())
    for name, one in (("saved", model), ("same", load(folder, "none", tmp_path))):
        masks = prune(one, None, Magnitude(), WaterFilling()(one, None, 0.5), 2).masks
        write_checkpoint(one, masks, tmp_path / name)
    first, second = (hf.LlamaForCausalLM.from_pretrained(tmp_path / name) for name in ("saved", "same"))
    assert (first.lm_head.weight is first.model.embed_tokens.weight) is equal
    assert all(torch.equal(weight, second.state_dict()[name]) for name, weight in first.state_dict().items())
    assert torch.equal(first.lm_head.weight, right.lm_head.weight)


@pytest.mark.parametrize("offload", ["none", "disk"])
@pytest.mark.parametrize("sound", [True, False], ids=["tensors", "other things"])
def test_pickles(folder: Path, tmp_path: Path, sound: bool, offload: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors if sound else {"model": Path("x")}, folder / "pytorch_model.bin")
    if sound and offload == "none":
        model = load(folder, offload, tmp_path)
        assert all(torch.equal(layer.weight, tensors[layer.name]) for layer in model.layers), (
            "tensors are read without unpickling anything else"
        )
        return
    with pytest.raises(UserError) as caught:
        load(folder, offload, tmp_path)
    assert "safetensors" in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pickle_of_the_old_kind(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"model": Path("x")}))
    with pytest.raises(UserError, match=r"holds other things than tensors.*give safetensors instead"):
        load(folder, "none", tmp_path)


def test_tokens_that_were_added(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<mine>"])
    tokenizer.save_pretrained(folder)
    load(folder, "none", tmp_path)
    assert any("a text with <mine> can't be read" in message for message in caplog.messages)


@pytest.mark.usefixtures("no_weights_read")
def test_a_revision_of_a_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"model\.revision=main is for models of the hub, and model\.path=\S+ is a local folder; leave"
            r" it out"
        ),
    ):
        load(folder, "none", tmp_path, revision="main")


@pytest.mark.parametrize(
    ("loader", "wanted"),
    [
        (Clip, "loads a clip"),
        (Seq2Seq, "AutoModelForSeq2SeqLM"),
        (VisionLanguage, "AutoModelForImageTextToText"),
    ],
)
@pytest.mark.usefixtures("no_weights_read")
def test_a_language_model_elsewhere(folder: Path, loader: Any, wanted: str) -> None:
    with pytest.raises(UserError, match=rf"is a llama, .*{wanted}.*; use model=causal_lm$"):
        loader(path=str(folder)).load(torch.device("cpu"), Selection())


@pytest.mark.parametrize("offload", ["none", "cpu", "disk"])
def test_a_full_disk(folder: Path, tmp_path: Path, small_disk: Path, offload: str) -> None:
    model = load(folder, offload, tmp_path)
    run_folder = small_disk / "run"
    run_folder.mkdir()
    (run_folder / "kept").write_text("x")
    fill(small_disk)
    with pytest.raises(
        UserError, match=r"no space left for the checkpoint in \S+ \(0 MiB are free\); make room"
    ) as caught:
        save_checkpoint(model, {}, run_folder)
    assert "\n" not in str(caught.value)
    assert [path.name for path in run_folder.iterdir()] == ["kept"]


def test_a_full_disk_for_pruned_blocks(folder: Path, small_disk: Path) -> None:
    model = load(folder, "disk", small_disk / "offload")
    fill(small_disk)
    with model.placement.using(model.blocks[0]):
        model.placement.changed(model.blocks[0])
    with pytest.raises(UserError, match="no space left for pruned blocks"):
        list(model.placement.tensors(model.module))


def test_a_release_without_the_class_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CausalLM, "classes", ("AutoConfig", "AutoModelForThoughts", "AutoTokenizer"))
    with pytest.raises(UserError, match=r"model=causal_lm needs AutoModelForThoughts, which transformers \d"):
        CausalLM("somewhere").load(torch.device("cpu"), Selection())
