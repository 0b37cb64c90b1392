"""Training with labels: what a step averages, and what stays beside the trained values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import Trainer

import ecoflap
from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.finetune.full import Full
from ecoflap.finetune.job import Job, Point, masks_fingerprint
from ecoflap.finetune.lora import Lora
from ecoflap.finetune.training_set import split_of
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.families.language.causal_lm import language_loss
from tests.distributed.together import together
from tests.finetune.test_masked_parameters import pruned
from tests.tiny import samples

BATCH_NORMS = Full(
    data="calibration",
    epochs=6,
    batch_size=4,
    held_out=8,
    learning_rate=0.03,
    log_every=1,
    precision="float32",
)


def gradients(folder: Path, **options: Any) -> list[Tensor]:
    """Of the only step, as the optimizer gets them."""
    model, masks = pruned("llama")
    found: list[Tensor] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        values = (value for group in optimizer.param_groups for value in group["params"])
        found.extend(value.grad.clone() for value in values if value.grad is not None)

    schedule = Full(data="calibration", steps=1, clip=1e9, precision="float32", **options)
    hook = register_optimizer_step_pre_hook(keep)
    try:
        schedule.finetune(Job(model, masks, None, samples("llama"), lambda: model, 2, 0, folder))
    finally:
        hook.remove()
    return found


def test_every_sample_of_a_step_weighs_the_same(tmp_path: Path) -> None:
    """Also those of the last part, which has one sample: there are five."""
    whole = gradients(tmp_path / "whole", batch_size=5)
    parts = gradients(tmp_path / "parts", batch_size=2, accumulation=3)
    assert whole
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def trained(folder: Path, **options: Any) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of the curve, and the weights, after two epochs of five samples and three that are held
    out.
    """
    model, masks = pruned("llama")
    drawn = samples("llama", (5, 7, 5, 7, 5, 7, 7, 5))
    schedule = Full(
        data="calibration",
        held_out=3,
        epochs=2,
        learning_rate=0.01,
        log_every=1,
        clip=1e9,
        precision="float32",
        **options,
    )
    curve = schedule.finetune(Job(model, masks, None, drawn, lambda: model, 2, 0, folder)).curve
    losses = [point.get("loss", point.get("held_out_loss", 0.0)) for point in curve]
    assert len(losses) == 6, "four steps and two epochs"
    return losses, dict(model.module.state_dict())


def assert_alike(
    one: tuple[list[float], dict[str, Tensor]], other: tuple[list[float], dict[str, Tensor]]
) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-4)
    for name, value in other[1].items():
        torch.testing.assert_close(one[1][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_last_step_of_fewer_parts_counts_as_much(tmp_path: Path) -> None:
    """Of five samples, the second step of an epoch has one, in one part instead of two."""
    parts = trained(tmp_path / "parts", batch_size=2, accumulation=2)
    assert_alike(parts, trained(tmp_path / "whole", batch_size=4))


@pytest.mark.parametrize("parts", [{"batch_size": 2}, {"batch_size": 1, "accumulation": 2}])
def test_two_processes_count_each_sample_once(tmp_path: Path, parts: dict[str, int]) -> None:
    """Also in the last step of an epoch, which has one of five samples, and among three that are held out."""
    one = trained(tmp_path / "one", batch_size=4)
    for found in together(2, lambda: trained(tmp_path / "two", **parts)):
        assert_alike(found, one)


def test_an_end_that_a_release_reads_beyond_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old releases may ask for more parts in the last step of an epoch than are left."""

    def reading_on(
        self: Trainer, parts: Iterator[Any], *given: Any, own: Any = Trainer.get_batch_samples
    ) -> Any:
        found = own(self, parts, *given)
        if self.accelerator.gradient_state.end_of_dataloader:
            assert next(parts, None) is None
        return found

    one = trained(tmp_path / "one", batch_size=4)
    monkeypatch.setattr(Trainer, "get_batch_samples", reading_on)
    for found in together(2, lambda: trained(tmp_path / "two", batch_size=2)):
        assert_alike(found, one)


def twice(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    return 2 * language_loss(module, batch, copies)


def test_the_loss_of_ones_own_is_the_one_that_is_trained(tmp_path: Path) -> None:
    plain = gradients(tmp_path / "plain", batch_size=5)
    own = gradients(tmp_path / "own", batch_size=5, loss=f"{__name__}.twice")
    assert plain
    torch.testing.assert_close(own, [2 * gradient for gradient in plain], rtol=1e-4, atol=1e-6)


def test_a_training_begins_anew_when_its_loss_was_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gradients(tmp_path, batch_size=5)
    assert not gradients(tmp_path, batch_size=5), "the checkpoint of the last step is resumed"
    monkeypatch.setattr(PrunableModel, "loss_identity", lambda *_: {"source": "edited"})
    assert gradients(tmp_path, batch_size=5)


class Looked(Exception):
    pass


def test_only_a_training_with_the_same_seed_options_and_samples_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, masks = pruned("llama")
    found: list[dict[str, Any]] = []

    def look(_: Path, identity: dict[str, Any]) -> None:
        found.append(identity)
        raise Looked

    monkeypatch.setattr("ecoflap.finetune.training.last_checkpoint", look)
    plain = Job(model, masks, None, samples("llama"), lambda: model, 2, 0, tmp_path, {"masks": 1})
    fewer = replace(plain, calibration=samples("llama").take(3))
    jobs = [plain, plain, replace(plain, seed=1), fewer, replace(plain, identity={"masks": 2}), plain]
    for job, rate in zip(jobs, [0.1, 0.1, 0.1, 0.1, 0.1, 0.2], strict=True):
        with pytest.raises(Looked):
            Full(data="calibration", learning_rate=rate).finetune(job)
    same, *others = found
    assert [other == same for other in others] == [True, False, False, False, False]


def test_the_calibration_samples_are_divided() -> None:
    drawn = samples("llama")

    def read(_: int | None) -> CalibrationSet:
        raise AssertionError("the training split is not looked at")

    schedule = Full(data="calibration", samples=4, held_out=1)
    found = split_of(schedule, drawn, read)
    assert len(drawn) > 4
    assert [id(one) for one in found.train] == [id(one) for one in drawn.samples[:3]]
    assert [id(one) for one in found.held_out] == [id(drawn.samples[3])]
    everything = split_of(replace(schedule, samples=None, held_out=0), drawn, read)
    assert len(everything.train) == len(drawn)


def test_the_trainer_gets_the_options() -> None:
    schedule = Full(epochs=3, batch_size=2, accumulation=2, warmup=0.25, weight_decay=0.05, clip=0.5)
    for processes, steps in ((1, 9), (2, 6)):
        found = schedule.arguments(Path(), 7, torch.device("cpu"), samples=9, processes=processes)
        assert found["max_steps"] == steps, "of 4 samples each, or 8"
        assert found["warmup_steps"] == 2
    names = ("weight_decay", "max_grad_norm", "seed", "lr_scheduler_type")
    assert [found[name] for name in names] == [0.05, 0.5, 7, "cosine"]


def with_batch_norms() -> tuple[PrunableModel, dict[str, Tensor], CalibrationSet]:
    """A LeViT half of whose weights are zero, and pictures."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LevitConfig(
        image_size=32,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[2, 2, 2],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
        num_labels=4,
    )
    model = ecoflap.load(transformers.LevitForImageClassification(config), kind="image_classifier")
    generator = torch.Generator().manual_seed(1)
    masks = {layer.name: torch.rand(layer.weight.shape, generator=generator) < 0.5 for layer in model.layers}
    with torch.no_grad():
        for layer in model.layers:
            layer.weight[~masks[layer.name]] = 0.0
    pictures = [
        {
            "pixel_values": 2 * torch.randn(3, 32, 32, generator=generator) + index % 4,
            "labels": torch.tensor(index % 4),
        }
        for index in range(24)
    ]
    return model, masks, CalibrationSet("pictures", tuple(pictures))


def buffers(model: PrunableModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.module.named_buffers()}


def test_the_returned_model_has_the_best_held_out_loss(tmp_path: Path) -> None:
    model, masks, pictures = with_batch_norms()
    before = buffers(model)
    job = Job(model, masks, None, pictures, lambda: model, 4, 0, tmp_path)
    training = BATCH_NORMS.finetune(job)
    with torch.no_grad():
        found = float(model.loss(CalibrationSet("held out", pictures.samples[16:]).batches(8)[0]).mean())
    losses = [point["held_out_loss"] for point in training.curve if "held_out_loss" in point]
    assert found == pytest.approx(min(losses), rel=1e-4)
    torch.testing.assert_close(buffers(model), before, rtol=0, atol=0)


def test_lora_leaves_the_running_means(tmp_path: Path) -> None:
    model, masks, pictures = with_batch_norms()
    before = buffers(model)
    Lora(data="calibration", steps=3, batch_size=4, rank=2).finetune(
        Job(model, masks, None, pictures, lambda: model, 4, 0, tmp_path)
    )
    torch.testing.assert_close(buffers(model), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("steps", "every", "found"), [(1, 50, [1]), (3, 50, [1, 3]), (4, 2, [1, 2, 4]), (5, 2, [1, 2, 4, 5])]
)
def test_the_curve_has_the_first_and_the_last_step(
    tmp_path: Path, steps: int, every: int, found: list[int]
) -> None:
    model, masks = pruned("llama")
    shown: list[Point] = []
    schedule = Full(data="calibration", steps=steps, batch_size=2, log_every=every, precision="float32")
    training = schedule.finetune(
        Job(model, masks, None, samples("llama"), lambda: model, 2, 0, tmp_path, show=shown.append)
    )
    assert [point["step"] for point in training.curve] == found
    assert all(point["loss"] > 0 for point in training.curve)
    assert shown == training.curve


def test_masks_of_other_shapes_are_others() -> None:
    wide, tall = torch.ones(2, 3, dtype=torch.bool), torch.ones(3, 2, dtype=torch.bool)
    assert masks_fingerprint({"layer": wide}) == masks_fingerprint({"layer": wide.clone()})
    assert masks_fingerprint({"layer": wide}) != masks_fingerprint({"layer": tall})


class Killed(Exception):
    pass


def test_a_resumed_training_is_the_one_that_was_not_killed(tmp_path: Path) -> None:
    schedule = replace(BATCH_NORMS, held_out=0, steps=8, every=5)

    def trained(folder: Path, last: float = 8) -> dict[str, Tensor]:
        def show(point: Point) -> None:
            if point["step"] > last:
                raise Killed

        model, masks, pictures = with_batch_norms()
        schedule.finetune(Job(model, masks, None, pictures, lambda: model, 4, 0, folder, show=show))
        return dict(model.module.state_dict())

    with pytest.raises(Killed):
        trained(tmp_path / "killed", last=6)
    assert (tmp_path / "killed" / "checkpoint-5").is_dir()
    torch.testing.assert_close(
        trained(tmp_path / "killed"), trained(tmp_path / "whole"), rtol=1e-5, atol=1e-6
    )
