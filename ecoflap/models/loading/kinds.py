"""Which option of ``model`` loads which kind of checkpoint, by what its config.json says of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from ecoflap.errors import UserError, nearest

log = logging.getLogger(__name__)

# Kinds with an option of their own, and the mappings of transformers from kinds to classes for all others.
OWN = {"clip": ["clip"], "blip-2": ["blip2"], "blip": ["blip_vqa", "blip_caption", "blip_retrieval"]}
OWN_CLASSES = {
    "CLIPModel": "clip",
    "Blip2ForConditionalGeneration": "blip2",
    "Blip2ForImageTextRetrieval": "blip2_itm",
    "BlipForQuestionAnswering": "blip_vqa",
    "BlipForConditionalGeneration": "blip_caption",
    "BlipForImageTextRetrieval": "blip_retrieval",
}
MAPPINGS = {
    "causal_lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "vlm": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "image_classifier": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
}


def options_for_type(kind: str) -> list[str]:
    """The options of ``model`` that load a kind of checkpoint."""
    from transformers.models.auto import modeling_auto

    if kind in OWN:
        return OWN[kind]
    return [option for option, mapping in MAPPINGS.items() if kind in getattr(modeling_auto, mapping, {})]


def option_for_model(module: Any) -> str | None:
    """The choice of ``model`` for a model in memory, by its class or a base class; None if there is none."""
    kind = getattr(getattr(module, "config", None), "model_type", None)
    return _option_for_class([base.__name__ for base in type(module).__mro__], kind)


def option_for_config(settings: Mapping[str, Any]) -> str | None:
    """The choice of ``model`` for a checkpoint, by its config.json; None if there is none.

    The class that wrote it tells, as many a ``model_type`` has several. A config.json that names no class is
    of the first option for its type, but of a vision-language model if it describes a vision tower.
    """
    kind, classes = settings.get("model_type"), settings.get("architectures")
    if classes:
        return _option_for_class(classes[:1], kind)
    options = options_for_type(str(kind))
    return "vlm" if "vlm" in options and "vision_config" in settings else next(iter(options), None)


def class_or_type(settings: Mapping[str, Any]) -> str:
    """The class that wrote a checkpoint, or its ``model_type`` where config.json names none, for messages."""
    return str(next(iter(settings.get("architectures") or [settings.get("model_type")])))


def _option_for_class(names: Sequence[str], kind: str | None) -> str | None:
    """The choice of ``model`` for a class, by its name and those of its base classes; None if there is none.

    A class that transformers lists for language models and for vision-language models, such as that of Gemma
    3, reads pictures.
    """
    from transformers.models.auto import modeling_auto

    own = next((OWN_CLASSES[name] for name in names if name in OWN_CLASSES), None)
    if own is not None:
        return own
    fitting = []
    for option, mapping in MAPPINGS.items():
        classes = getattr(modeling_auto, mapping, {}).get(kind, ())
        if {classes} & set(names) if isinstance(classes, str) else set(classes) & set(names):
            fitting.append(option)
    return "vlm" if {"causal_lm", "vlm"} <= set(fitting) else next(iter(fitting), None)


def check_kind(path: str, settings: Mapping[str, Any], config_class: Any, model_class: Any) -> None:
    """Refuse a checkpoint of a kind that the chosen option of ``model`` doesn't load.

    Args:
        path: hub id or folder, for the message.
        settings: its config.json.
        config_class: the class of transformers that the option reads a config with.
        model_class: likewise that of its model: an ``AutoModelFor...`` or one class.

    Raises:
        UserError: if the option doesn't load such a kind, or transformers doesn't know it.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = settings.get("model_type")
    if not isinstance(kind, str):
        raise UserError(
            f"the config.json of model.path={path} has no model_type, so its kind of model is unknown; copy"
            " it anew"
        )
    wanted = getattr(config_class, "model_type", "")
    if kind == wanted:
        return
    if kind not in CONFIG_MAPPING:
        code = ", and code that comes with a checkpoint is not run" if "auto_map" in settings else ""
        raise UserError(
            f"the config.json of model.path={path} says model_type={kind}, which transformers"
            f" {version('transformers')} does not know{code} (nearest: {nearest(kind, CONFIG_MAPPING)});"
            " correct it, or install a newer transformers"
        )
    if wanted or CONFIG_MAPPING[kind] not in getattr(model_class, "_model_mapping", (CONFIG_MAPPING[kind],)):
        options = options_for_type(kind)
        advice = (
            f"use model={' or model='.join(options)}" if options else "no option of model loads such a model"
        )
        loads = f"a {wanted}" if wanted else f"what {model_class.__name__} does"
        raise UserError(f"model.path={path} is a {kind}, and this option of model loads {loads}; {advice}")


def warn_of_vision(path: str, settings: Mapping[str, Any], module: Any) -> None:
    """Warn if the language model alone of a checkpoint is loaded that also holds a vision tower.

    Args:
        path: hub id or folder, for the message.
        settings: its config.json.
        module: what the chosen option of ``model`` makes of it.
    """
    alone, config = type(module).__name__, getattr(module, "config", None)
    sees = "vision_config" in settings and alone not in (settings.get("architectures") or ())
    if sees and not hasattr(config, "vision_config"):
        log.warning(
            "model.path=%s is a %s, and this option of model loads its language model alone, as %s: its"
            " vision tower is neither pruned nor saved; model=vlm loads all of it",
            path,
            class_or_type(settings),
            alone,
        )
