"""Evaluate the model in memory on any task of EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from ecoflap.data.example import refuse_nan
from ecoflap.errors import NumericalError, UserError
from ecoflap.evaluate.harness_scores import (
    by_filter,
    counts,
    directions,
    errors,
    flatten,
    logged,
    measured,
    note,
    reported,
)
from ecoflap.evaluate.harness_tasks import alone, check_options, code_below, relevant
from ecoflap.evaluate.lm_eval_tasks import examples, fingerprint, read_task, task_manager
from ecoflap.evaluate.options import LmEvalOptions
from ecoflap.evaluate.prediction_log import IN_MEMORY, PredictionLog
from ecoflap.models.core.batched_generation import Inputs, generate_texts
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.families.vlm.processor_inputs import writes_after_prompt
from ecoflap.storage.results.metrics import HIGHER_IS_BETTER, LM_EVAL


@dataclass(frozen=True)
class LmEval(LmEvalOptions):
    """Tasks or groups of the harness, or of the user's YAML files."""

    def __post_init__(self) -> None:
        check_options(self, "the harness, such as [hellaswag,piqa]")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise UserError(f"task.num_fewshot={self.num_fewshot} must be at least 0")

    def check_data(self, group: str) -> None:
        """Refuse tasks that can't be read.

        Raises:
            UserError: if the harness is not installed, or a task or its data are missing.
        """
        manager = task_manager(self.include_path)
        for name in self.harness_tasks:
            read_task(manager, name)

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that does not read and write text.

        Raises:
            UserError: if the model does not read and write text.
        """
        if not reads_text(model):
            raise UserError(
                f"task={self.name} asks models that read and write text, and {model.name} doesn't; choose"
                " another task"
            )

    def load(self, model: PrunableModel) -> LmEvalEvaluation:
        """Find the tasks and read their data.

        Raises:
            UserError: if the harness is not installed, a task or its data are missing, or the model does not
                have the modalities that a task needs, or needs one that a task does not have.
        """
        manager = task_manager(self.include_path)
        self.check_model(model)
        tasks = {name: read_task(manager, name) for name in self.harness_tasks}
        with_pictures = {name for name, members in tasks.items() if has_pictures(members)}
        if with_pictures and not reads_pictures(model):
            raise UserError(
                f"task.harness_tasks: {', '.join(sorted(with_pictures))} has pictures, and {model.name} can't"
                " be asked about them"
            )
        if (bare := tasks.keys() - with_pictures) and needs_picture(model):
            raise UserError(
                f"task.harness_tasks: {', '.join(sorted(bare))} has no pictures, and {model.name} reads no"
                " text without one; choose another task"
            )
        inputs = f"{fingerprint(tasks, self.num_fewshot)} {code_below(self.include_path)}"
        every = {name: member for members in tasks.values() for name, member in members.items()}
        taken = examples(every, self.limit)
        return LmEvalEvaluation(self, manager, with_pictures, inputs, taken, directions(every))


def has_pictures(members: Mapping[str, Any]) -> bool:
    """Whether any of these tasks of the harness has images."""
    return any(getattr(member, "MULTIMODAL", False) for member in members.values())


def reads_text(model: PrunableModel) -> bool:
    """Whether the model continues texts, with or without images in them."""
    from transformers import PreTrainedTokenizerBase

    is_tokenizer = isinstance(model.processor, PreTrainedTokenizerBase)
    return (is_tokenizer or reads_pictures(model)) and getattr(model.module, "can_generate", bool)()


def reads_pictures(model: PrunableModel) -> bool:
    """Whether the model has a placeholder token for images, which the harness uses to ask about one."""
    config: Any = getattr(model.module, "config", None)
    tokens = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    return hasattr(model.processor, "image_processor") and any(token is not None for token in tokens)


def needs_picture(model: PrunableModel) -> bool:
    """Whether pictures are the first of the model's inputs, as in BLIP-2, where the harness passes a text."""
    return next(iter(signature(model.module.forward).parameters), "") == "pixel_values"


@dataclass
class LmEvalEvaluation:
    """The tasks with their data; call it with a model.

    Attributes:
        task: its options.
        manager: the harness's index of tasks.
        with_pictures: names of the tasks that have images.
        inputs: hashes of all inputs and of the code beside one's own tasks.
        examples: which examples are asked, as an option of the harness.
        higher_is_better: {task/metric: whether a higher value is better}, of those that tell.
    """

    task: LmEval
    manager: Any
    with_pictures: set[str]
    inputs: str
    examples: dict[str, Any]
    higher_is_better: dict[str, bool]

    def identity(self) -> dict[str, Any]:
        """Everything that the metrics depend on beside the model, and their directions."""
        spread = {"examples": "evenly spaced"} if "samples" in self.examples else {}
        harness = {"metric": LM_EVAL, "version": version("lm_eval"), "inputs": self.inputs}
        return {**harness, **relevant(self.task), **spread, HIGHER_IS_BETTER: self.higher_is_better}

    def __call__(self, model: PrunableModel, prediction_log: PredictionLog = IN_MEMORY) -> dict[str, float]:
        """Metrics by task/metric, on the harness's scales, and the number of examples by task/samples.

        If each of several tasks has an accuracy, their mean comes first.
        """
        names = self.task.harness_tasks
        every, by_task = measured(names, partial(self._measure, model), prediction_log)
        accuracies = [every[f"{name}/acc"] for name in names if f"{name}/acc" in every]
        mean = {"mean/acc": sum(accuracies) / len(names)} if len(accuracies) == len(names) > 1 else {}
        note(prediction_log, mean | every, by_task)
        return mean | every | errors(by_task)

    def _measure(self, model: PrunableModel, name: str) -> dict[str, Any]:
        """Evaluate one task or group.

        Returns:
            ``metrics``, without standard errors and with the number of examples; ``scores`` of each example;
            and ``samples``, the model's answers.

        Raises:
            NumericalError: if the likelihood of an answer is NaN, or a logit that one is written from.
        """
        from lm_eval import simple_evaluate

        with alone():
            found = simple_evaluate(
                harness_model(model, name in self.with_pictures, self.task.batch_size),
                tasks=[name],
                num_fewshot=self.task.num_fewshot,
                **self.examples,
                task_manager=self.manager,
                bootstrap_iters=0,
                log_samples=True,
            )
        samples = logged(found["samples"], "doc_id", "filter", "target", "filtered_resps")
        if any(has_nan(sample["filtered_resps"]) for of_it in samples.values() for sample in of_it):
            raise NumericalError(
                f"task.harness_tasks: {name}: the model gives likelihoods that are NaN; use"
                " model.dtype=float32 or bfloat16, or prune less"
            )
        values = flatten(found["results"])
        scored = {task: by_filter(of_it, reported(values, task)) for task, of_it in found["samples"].items()}
        return {"metrics": values | counts(samples), "scores": scored, "samples": samples}


def has_nan(answers: Any) -> bool:
    """Whether a likelihood among the answers to an example, which the harness nests in lists, is NaN."""
    if isinstance(answers, list):
        return any(map(has_nan, answers))
    return isinstance(answers, float) and math.isnan(answers)


def harness_model(model: PrunableModel, pictures: bool, batch_size: int) -> Any:
    """The model in a class of the harness: the multimodal one for tasks with images, else that for text."""
    from lm_eval.models.hf_vlms import HFMultimodalLM
    from lm_eval.models.huggingface import HFLM

    class Text(HFLM):
        """Writes nothing from logits that are NaN, and nothing that depends on the other texts of a batch."""

        def _model_generate(
            self, context: Tensor, max_length: int, attention_mask: Tensor, **options: Any
        ) -> Tensor:
            is_causal = self.backend == "causal"
            new_tokens = max_length - context.shape[1]

            def generate(inputs: Inputs) -> Tensor:
                ids = inputs["input_ids"]
                before = ids.shape[1] if is_causal else 1  # the prompt, or the token that starts a decoder
                written: Tensor = HFLM._model_generate(
                    self,
                    ids,
                    before + new_tokens,
                    attention_mask=inputs["attention_mask"],
                    logits_processor=[refuse_nan],
                    **options,
                )
                return written[:, before:] if is_causal else written

            pad = self.tokenizer.pad_token_id
            written = generate_texts(self.model, generate, context, attention_mask, pad)
            return torch.cat([context, written], dim=1) if is_causal else written

    class Multimodal(HFMultimodalLM, Text):
        """Uses the processor in memory; the harness would load it from the path of the model."""

        def _create_tokenizer(self, pretrained: Any, tokenizer: Any, **_: Any) -> None:
            self.processor, self.tokenizer = tokenizer, tokenizer.tokenizer

        def _model_multimodal_call(self, *inputs: Any, **masks: Any) -> Any:
            return super()._model_multimodal_call(*inputs, **masks).float()

        def _model_multimodal_generate(self, *inputs: Any, **options: Any) -> Any:
            return super()._model_multimodal_generate(*inputs, logits_processor=[refuse_nan], **options)

    # The harness warns of every model that is in memory already.
    logging.getLogger("lm_eval.models.huggingface").setLevel(logging.ERROR)
    original = model.processor if pictures else getattr(model.processor, "tokenizer", model.processor)
    # A copy, because the harness adds a padding token if there is none, which would be saved.
    processor = copy.deepcopy(original)
    harness_class = Multimodal if pictures else Text
    # In half precision the harness would sum likelihoods in it; before 0.4.9 it can't be told otherwise.
    known = "softmax_dtype" in signature(HFLM.__init__).parameters
    options: dict[str, Any] = {"softmax_dtype": torch.float32} if known else {}
    if not pictures:  # by its kind alone, the harness takes a Florence-2 for a decoder
        options["backend"] = "causal" if writes_after_prompt(model.module) else "seq2seq"
    with untied(model.module):
        return harness_class(pretrained=model.module, tokenizer=processor, batch_size=batch_size, **options)


@contextmanager
def untied(module: Any) -> Iterator[None]:
    """Keep the harness from tying weights again, which would overwrite an untied output layer."""
    module.tie_weights = lambda *_, **__: None
    try:
        yield
    finally:
        del module.tie_weights
