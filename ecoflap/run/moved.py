"""Classes that have moved: results and configs with the dotted names of earlier releases still load."""

from __future__ import annotations

MOVED = {
    "ecoflap.calibrate.captions": "ecoflap.data.captions.calibration",
    "ecoflap.calibrate.classification": "ecoflap.data.classification.calibration",
    "ecoflap.calibrate.easy_pictures": "ecoflap.data.easy_vqa.pictures",
    "ecoflap.calibrate.easy_vqa": "ecoflap.data.easy_vqa.calibration",
    "ecoflap.calibrate.mmlu": "ecoflap.data.mmlu.calibration",
    "ecoflap.calibrate.pictures": "ecoflap_saliency.calibration",
    "ecoflap.calibrate.prefix": "ecoflap.data.text.prefix",
    "ecoflap.calibrate.sentences": "ecoflap_sentences.calibration",
    "ecoflap.calibrate.speech": "ecoflap_speech.calibration",
    "ecoflap.calibrate.text": "ecoflap.data.text.calibration",
    "ecoflap.calibrate.vqa": "ecoflap.data.vqa.calibration",
    "ecoflap.calibrate.vqa.Nlvr2": "ecoflap.data.nlvr2.calibration.Nlvr2",
    "ecoflap.evaluate.captioning": "ecoflap.data.captions.task",
    "ecoflap.evaluate.classification": "ecoflap.data.classification.task",
    "ecoflap.evaluate.easy_pictures": "ecoflap.data.easy_vqa.picture_tasks",
    "ecoflap.evaluate.easy_vqa": "ecoflap.data.easy_vqa.task",
    "ecoflap.evaluate.mmlu": "ecoflap.data.mmlu.task",
    "ecoflap.evaluate.nlvr2": "ecoflap.data.nlvr2.task",
    "ecoflap.evaluate.perplexity": "ecoflap.data.text.perplexity",
    "ecoflap.evaluate.retrieval": "ecoflap.data.captions.retrieval",
    "ecoflap.evaluate.saliency": "ecoflap_saliency.task",
    "ecoflap.evaluate.sentence_retrieval": "ecoflap_sentences.task",
    "ecoflap.evaluate.speech": "ecoflap_speech.task",
    "ecoflap.evaluate.vqa": "ecoflap.data.vqa.task",
    "ecoflap.models.blip": "ecoflap.models.families.blip.text",
    "ecoflap.models.blip2": "ecoflap.models.families.blip2.generation",
    "ecoflap.models.blip2_itm": "ecoflap.models.families.blip2.matching",
    "ecoflap.models.blip_retrieval": "ecoflap.models.families.blip.retrieval",
    "ecoflap.models.causal_lm": "ecoflap.models.families.language.causal_lm",
    "ecoflap.models.clip": "ecoflap.models.families.clip.clip",
    "ecoflap.models.image_classifier": "ecoflap.models.families.vision.image_classifier",
    "ecoflap.models.lavis_blip2": "ecoflap.models.families.lavis.blip2",
    "ecoflap.models.lavis_nlvr": "ecoflap.models.families.lavis.nlvr",
    "ecoflap.models.minilm": "ecoflap_sentences.model",
    "ecoflap.models.open_clip_model": "ecoflap.models.families.clip.open_clip",
    "ecoflap.models.seq2seq": "ecoflap.models.families.language.seq2seq",
    "ecoflap.models.smollm2": "ecoflap.models.families.language.smollm2",
    "ecoflap.models.torchvision_model": "ecoflap.models.families.vision.torchvision",
    "ecoflap.models.vit_saliency": "ecoflap_saliency.model",
    "ecoflap.models.vlm": "ecoflap.models.families.vlm.vlm",
    "ecoflap.models.whisper": "ecoflap_speech.whisper",
    "ecoflap.prune.pruners.Magnitude": "ecoflap.prune.magnitude.Magnitude",
    "ecoflap.prune.pruners.SparseGPT": "ecoflap.prune.sparsegpt.SparseGPT",
    "ecoflap.prune.pruners.Wanda": "ecoflap.prune.wanda.Wanda",
    "ecoflap.prune.whole_model.GlobalGradient": "ecoflap.prune.global_gradient.GlobalGradient",
    "ecoflap.prune.whole_model.GlobalMagnitude": "ecoflap.prune.global_magnitude.GlobalMagnitude",
    "ecoflap.tracking": "ecoflap.console.tracking",
}
"""{module or class in an earlier release: its dotted name now}."""


def current_place(target: str) -> str:
    """The present dotted name of a class; unchanged if the class has not moved."""
    module, _, name = target.rpartition(".")
    return MOVED.get(target) or f"{MOVED.get(module, module)}.{name}"
