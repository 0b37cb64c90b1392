"""The options of all parts, as configs from which the files of ``conf`` take their defaults.

A new part of this package has a dataclass in the ``options.py`` beside it, a line in ``PARTS`` and a file in
``conf``. The file names its part in its defaults list, such as ``/options/task/Mmlu@_here_``, and holds what
differs. The group ``options`` is not a choice of a run.
"""

from __future__ import annotations

import importlib
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from typing import Any

from ecoflap.allocate import options as allocate
from ecoflap.console import options as console
from ecoflap.data.captions import options as captions
from ecoflap.data.classification import options as classification
from ecoflap.data.easy_vqa import options as easy_vqa
from ecoflap.data.files import options as files
from ecoflap.data.mmlu import options as mmlu
from ecoflap.data.nlvr2 import options as nlvr2
from ecoflap.data.text import options as text
from ecoflap.data.vqa import options as vqa
from ecoflap.evaluate import options as evaluate
from ecoflap.finetune import options as finetune
from ecoflap.models.families.blip import options as blip
from ecoflap.models.families.blip2 import options as blip2
from ecoflap.models.families.clip import options as clip
from ecoflap.models.families.language import options as language
from ecoflap.models.families.lavis import options as lavis
from ecoflap.models.families.vision import options as vision
from ecoflap.models.families.vlm import options as vlm
from ecoflap.prune import options as prune
from ecoflap.run.lazy_store import store
from ecoflap.score import options as score

HIDDEN = "options"
"""The config group of all options; not a choice of a run."""
PARTS: dict[str, dict[str, type]] = {
    "calibration": {
        "ecoflap.data.captions.calibration.Captions": captions.CaptionsOptions,
        "ecoflap.data.classification.calibration.Classification": classification.CalibrationOptions,
        "ecoflap.data.easy_vqa.calibration.EasyVqa": easy_vqa.EasyVqaCalibrationOptions,
        "ecoflap.data.easy_vqa.pictures.EasyPictures": easy_vqa.EasyPicturesOptions,
        "ecoflap.data.files.calibration.Chat": files.ChatOptions,
        "ecoflap.data.files.calibration.Parquet": files.ParquetOptions,
        "ecoflap.data.files.calibration.WebDataset": files.WebDatasetOptions,
        "ecoflap.data.mmlu.calibration.Mmlu": mmlu.MmluCalibrationOptions,
        "ecoflap.data.nlvr2.calibration.Nlvr2": nlvr2.Nlvr2CalibrationOptions,
        "ecoflap.data.text.calibration.Text": text.TextOptions,
        "ecoflap.data.text.calibration.Documents": text.DocumentsOptions,
        "ecoflap.data.text.calibration.TokenFile": text.TokenFileOptions,
        "ecoflap.data.text.prefix.PrefixText": text.PrefixTextOptions,
        "ecoflap.data.text.prefix.PrefixDocuments": text.PrefixDocumentsOptions,
        "ecoflap.data.vqa.calibration.VqaV2": vqa.VqaV2CalibrationOptions,
    },
    "task": {
        "ecoflap.data.captions.retrieval.Retrieval": captions.RetrievalOptions,
        "ecoflap.data.captions.task.Captioning": captions.CaptioningOptions,
        "ecoflap.data.classification.task.Classification": classification.TaskOptions,
        "ecoflap.data.easy_vqa.task.EasyVqa": easy_vqa.EasyVqaTaskOptions,
        "ecoflap.data.easy_vqa.picture_tasks.EasyClassification": easy_vqa.EasyClassificationOptions,
        "ecoflap.data.easy_vqa.picture_tasks.EasyCaptions": easy_vqa.EasyCaptionsOptions,
        "ecoflap.data.easy_vqa.picture_tasks.EasyRetrieval": easy_vqa.EasyRetrievalOptions,
        "ecoflap.data.mmlu.task.Mmlu": mmlu.MmluTaskOptions,
        "ecoflap.data.nlvr2.task.Nlvr2": nlvr2.Nlvr2TaskOptions,
        "ecoflap.data.text.perplexity.TextPerplexity": text.TextPerplexityOptions,
        "ecoflap.data.text.perplexity.TokenPerplexity": text.TokenPerplexityOptions,
        "ecoflap.data.vqa.task.VqaV2": vqa.VqaV2TaskOptions,
        "ecoflap.data.vqa.task.OkVqa": vqa.OkVqaOptions,
        "ecoflap.data.vqa.task.Gqa": vqa.GqaOptions,
        "ecoflap.evaluate.lm_eval_harness.LmEval": evaluate.LmEvalOptions,
        "ecoflap.evaluate.lmms_eval_harness.LmmsEval": evaluate.LmmsEvalOptions,
    },
    "model": {
        "ecoflap.models.families.blip.text.BlipVqa": blip.BlipVqaOptions,
        "ecoflap.models.families.blip.text.BlipCaption": blip.BlipCaptionOptions,
        "ecoflap.models.families.blip.retrieval.BlipRetrieval": blip.BlipRetrievalOptions,
        "ecoflap.models.families.blip2.generation.Blip2": blip2.Blip2Options,
        "ecoflap.models.families.blip2.matching.Blip2Itm": blip2.Blip2ItmOptions,
        "ecoflap.models.families.clip.clip.Clip": clip.ClipOptions,
        "ecoflap.models.families.clip.open_clip.OpenClip": clip.OpenClipOptions,
        "ecoflap.models.families.language.causal_lm.CausalLM": language.CausalLMOptions,
        "ecoflap.models.families.language.seq2seq.Seq2Seq": language.Seq2SeqOptions,
        "ecoflap.models.families.language.smollm2.SmolLM2": language.SmolLM2Options,
        "ecoflap.models.families.lavis.blip2.LavisBlip2": lavis.LavisBlip2Options,
        "ecoflap.models.families.lavis.nlvr.LavisNlvr": lavis.LavisNlvrOptions,
        "ecoflap.models.families.vision.image_classifier.ImageClassifier": vision.ImageClassifierOptions,
        "ecoflap.models.families.vision.torchvision.Torchvision": vision.TorchvisionOptions,
        "ecoflap.models.families.vlm.llava_smollm2.LlavaSmolLM2": vlm.LlavaSmolLM2Options,
        "ecoflap.models.families.vlm.vlm.VisionLanguage": vlm.VisionLanguageOptions,
    },
    "finetune": {
        "ecoflap.finetune.full.Full": finetune.FullOptions,
        "ecoflap.finetune.lora.Lora": finetune.LoraOptions,
        "ecoflap.finetune.reconstruct.Reconstruct": finetune.ReconstructOptions,
    },
    "score": {
        "ecoflap.score.zeroth_order.ZerothOrder": score.ZerothOrderOptions,
        "ecoflap.score.first_order.FirstOrder": score.FirstOrderOptions,
        "ecoflap.score.local.Local": score.LocalOptions,
    },
    "allocation": {
        "ecoflap.allocate.water_filling.WaterFilling": allocate.WaterFillingOptions,
        "ecoflap.allocate.from_file.FromFile": allocate.FromFileOptions,
        "ecoflap.allocate.owl.OWL": allocate.OWLOptions,
        "ecoflap.allocate.dlp.DLP": allocate.DLPOptions,
        "ecoflap.allocate.lsa.LSA": allocate.LSAOptions,
        "ecoflap.allocate.atp.ATP": allocate.ATPOptions,
        "ecoflap.allocate.alpha_pruning.AlphaPruning": allocate.AlphaPruningOptions,
        "ecoflap.allocate.er.ER": allocate.EROptions,
        "ecoflap.allocate.tamp.TAMP": allocate.TAMPOptions,
        "ecoflap.allocate.multiflow.Multiflow": allocate.MultiflowOptions,
        "ecoflap.allocate.neuronal.Neuronal": allocate.NeuronalOptions,
        "ecoflap.allocate.evopress.EvoPress": allocate.EvoPressOptions,
        "ecoflap.allocate.in_context.InContext": allocate.InContextOptions,
    },
    "pruner": {
        "ecoflap.prune.magnitude.Magnitude": prune.MagnitudeOptions,
        "ecoflap.prune.wanda.Wanda": prune.WandaOptions,
        "ecoflap.prune.ria.RIA": prune.RIAOptions,
        "ecoflap.prune.sparsegpt.SparseGPT": prune.SparseGPTOptions,
        "ecoflap.prune.admm.ADMM": prune.ADMMOptions,
        "ecoflap.prune.global_magnitude.GlobalMagnitude": prune.GlobalMagnitudeOptions,
        "ecoflap.prune.global_gradient.GlobalGradient": prune.GlobalGradientOptions,
        "ecoflap.prune.upop.UPop": prune.UPopOptions,
        "ecoflap.prune.reap.REAP": prune.REAPOptions,
    },
    "tracking": {
        "ecoflap.console.tracking.Wandb": console.WandbOptions,
    },
}
"""{group: {class of a part: its options}}."""


def register() -> None:
    """Store the defaults of every part, each as ``/options/GROUP/CLASS``."""
    for group, parts in PARTS.items():
        for target, options in parts.items():
            store(f"{HIDDEN}/{group}", target.rpartition(".")[2], partial(node, target, options))


def node(target: str, options: type) -> dict[str, Any]:
    """The config of a part with all of its defaults."""
    return {"_target_": target, **defaults(options)}


def defaults(options: type) -> dict[str, Any]:
    """The default of every option; ``???`` where it has none."""
    found = {}
    for entry in fields(options):
        if entry.init:
            made = entry.default_factory() if entry.default_factory is not MISSING else entry.default
            found[entry.name] = "???" if made is MISSING else made
    return found


def options_of(target: str) -> type | None:
    """The dataclass with the options of a class, by the class's dotted path; None if there is none.

    A class of this package is not imported, only its options.
    """
    for parts in PARTS.values():
        if target in parts:
            return parts[target]
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None
    return found if isinstance(found, type) and is_dataclass(found) else None
