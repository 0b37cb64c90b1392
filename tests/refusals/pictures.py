"""Bad pictures, captions, classes and questions: missing, damaged, too few, or not for this model."""

from __future__ import annotations

from ecoflap.data.vqa.reading import VQAV2
from tests.refusals.case import DATA, DENSE, LLAMA, ONLY, TASK_DATA, Case
from tests.refusals.folders import (
    all_of,
    captions,
    classes,
    edited,
    file,
    language_models,
    pairs,
    questions,
    replaced,
    without,
)

VAL_QUESTIONS, VAL_ANSWERS = VQAV2.questions.format(split="val"), VQAV2.annotations.format(split="val")

PICTURES: list[Case] = [
    Case((*ONLY, "calibration=coco"), ("calibration=coco needs the data set's folder", "dataset_coco.json")),
    Case((*ONLY, "calibration=coco", DATA), ("dataset_coco.json is not in",), file("other.json", {})),
    Case(
        (*ONLY, "calibration=coco", DATA),
        ("can't be read as JSON",),
        file("dataset_coco.json", '{"images": ['),
    ),
    Case(
        (*ONLY, "calibration=coco", DATA),
        ("not in the layout", "KeyError: 'images'"),
        file("dataset_coco.json", {}),
    ),
    Case(
        (*ONLY, "calibration=coco", DATA),
        ("not in the layout", "KeyError: 'sentences'"),
        captions("coco", edited("dataset_coco.json", lambda value: value["images"][3].pop("sentences"))),
    ),
    Case(
        (*ONLY, "calibration=coco", DATA),
        ("holds a NUL",),
        captions("coco", replaced("dataset_coco.json", "A picture", "A\\u0000picture")),
    ),
    Case(
        (*ONLY, "calibration=coco", DATA, "calibration.split=unseen"),
        ("split=unseen", "test, train"),
        captions("coco"),
    ),
    Case((*ONLY, "calibration=coco", DATA, "calibration.split=test"), ("models are measured on these",)),
    Case((*ONLY, "calibration=coco", DATA, "calibration.layout=cocoa"), ("calibration.layout=cocoa", "coco")),
    Case(
        (*ONLY, "calibration=coco", DATA, "calibration.layout=folder"),
        ("not in the layout", "KeyError: 'text'"),
        captions("folder", replaced("train/metadata.jsonl", '"text"', '"caption"')),
    ),
    Case((*ONLY, "calibration=cc3m", DATA), ("has no captions",), file("cc3m.json", [])),
    Case(
        (*ONLY, "calibration=cc3m", DATA),
        ("is not in any of",),
        file("cc3m.json", [{"image": "a", "caption": "b"}]),
    ),
    Case(
        (*ONLY, "calibration=cc3m", DATA),
        ("no caption has a word",),
        captions("cc3m", edited("cc3m.json", lambda value: [row.update(caption="!") for row in value])),
    ),
    Case(
        ("model=t5_mini", *ONLY, "calibration=cc3m", DATA),
        ("shows pictures", "reads only text"),
        captions("cc3m"),
    ),
    Case((*ONLY, "calibration=vqav2", DATA), ("is not in calibration.path",), questions("val")),
    Case(
        (*ONLY, "calibration=vqav2", DATA),
        ("not as published", "KeyError: 'question'"),
        questions(
            "train",
            edited(
                VQAV2.questions.format(split="train"), lambda value: value["questions"][0].pop("question")
            ),
        ),
    ),
    Case(
        (*ONLY, "calibration=vqav2", DATA),
        ("hold no questions",),
        questions(
            "train", edited(VQAV2.questions.format(split="train"), lambda value: value["questions"].clear())
        ),
    ),
    Case((*ONLY, "calibration=vqav2", "calibration.split=val"), ("calibration.split=val", "choose train")),
    Case((*ONLY, "calibration=nlvr2", DATA), ("train.json is not in",), pairs("dev")),
    Case((*ONLY, "calibration=nlvr2", DATA), ("holds no sentences",), file("train.json", "\n")),
    Case((*ONLY, "calibration=nlvr2", DATA), ("train.json, line 1", "KeyError"), file("train.json", "{}\n")),
    Case((*ONLY, "calibration=nlvr2", DATA), ("needs a model that classifies",), pairs("train")),
    Case(
        (*ONLY, "calibration=image_folder", DATA), ("folder of pictures per class",), file("train/a.png", "")
    ),
    Case(
        (*ONLY, "calibration=image_folder", DATA), ("is not in calibration.path",), file("test/a/a.png", "")
    ),
    Case(
        (
            "model=clip_mini",
            *ONLY,
            "calibration=image_folder",
            DATA,
            "calibration.classes={tmp}/data/names.txt",
        ),
        ("has 3 names, and the pictures have 2 classes",),
        all_of(classes("train", "cat", "dog"), file("names.txt", "a\nb\nc\n")),
    ),
    Case(
        (*LLAMA, *ONLY, "calibration=easy_vqa"), ("calibration=easy_vqa", "reads only text"), language_models
    ),
    Case(
        (*LLAMA, *ONLY, "calibration=easy_pictures"),
        ("calibration=easy_pictures", "only text"),
        language_models,
    ),
]

TASKS: list[Case] = [
    Case(("task.limit=9674",), ("task.limit=9674", "there are 9673 questions")),
    Case(("model=clip_mini", "task=easy_classification", "task.limit=5000"), ("task.limit=5000", "pictures")),
    Case((*LLAMA, *DENSE, "task=easy_vqa"), ("task=easy_vqa", "wikitext2"), language_models),
    Case(("model=clip_mini", *DENSE, "task=easy_captions"), ("needs a model that describes",)),
    Case((*DENSE, "task=easy_retrieval"), ("needs a model that embeds",)),
    Case((*DENSE, "task=easy_classification"), ("needs a model that embeds",)),
    Case((*DENSE, "task=vqav2", TASK_DATA), ("is not in task.path",), questions("train")),
    Case(
        (*DENSE, "task=vqav2", TASK_DATA),
        ("not as published", "KeyError: 'image_id'"),
        questions("val", edited(VAL_QUESTIONS, lambda value: value["questions"][0].pop("image_id"))),
    ),
    Case(
        (*DENSE, "task=vqav2", TASK_DATA),
        ("the data hold no questions",),
        questions("val", edited(VAL_QUESTIONS, lambda value: value["questions"].clear())),
    ),
    Case(
        (*DENSE, "task=vqav2", TASK_DATA),
        ("12 questions have no answers, such as 0",),
        questions(
            "val", edited(VAL_ANSWERS, lambda value: [one.update(answers=[]) for one in value["annotations"]])
        ),
    ),
    Case(
        (*DENSE, "task=vqav2", TASK_DATA),
        ("can't be read as JSON",),
        questions("val", lambda data: (data / VAL_ANSWERS).write_text('{"annotations": [')),
    ),
    Case(
        (*DENSE, "task=vqav2", TASK_DATA),
        ("holds a NUL",),
        questions("val", replaced(VAL_QUESTIONS, "?", "\\u0000?")),
    ),
    Case(
        (*DENSE, "task=vqav2", TASK_DATA),
        ("pictures are missing",),
        questions("val", without("val2014/*.jpg")),
    ),
    Case(
        (*DENSE, "task=vqav2", TASK_DATA, "task.limit=13"),
        ("task.limit=13", "there are 12"),
        questions("val"),
    ),
    Case(
        (*DENSE, "task=vqav2", TASK_DATA, "task.answer_list=a.json"),
        ("there is no", "a.json"),
        questions("val"),
    ),
    Case(
        (*DENSE, "task=vqav2", TASK_DATA, "task.split=test-dev", "task.answer_list=answer_list.json"),
        ("must be a JSON list of answers",),
        questions("test-dev", lambda data: (data / "answer_list.json").write_text('{"yes": 1}')),
    ),
    Case(
        (*DENSE, "task=vqav2", TASK_DATA, "task.split=test-dev", "task.answer_list=answer_list.json"),
        ("can't choose of a list", "blip_vqa"),
        questions("test-dev"),
    ),
    Case(
        (*DENSE, "task=gqa", TASK_DATA),
        ("not as published",),
        file("testdev_balanced_questions.json", {"1": {}}),
    ),
    Case((*DENSE, "task=nlvr2", TASK_DATA), ("test1.json is not in",), pairs("dev")),
    Case(
        (*DENSE, "task=nlvr2", TASK_DATA, "task.splits=[dev]"),
        ("pictures are missing",),
        pairs("dev", without("dev/*0.png")),
    ),
    Case(
        (*DENSE, "task=nlvr2", TASK_DATA, "task.splits=[dev]"),
        ("needs a model that classifies",),
        pairs("dev"),
    ),
    Case(
        ("model=clip_mini", *DENSE, "task=image_folder", TASK_DATA),
        ("is not in task.path",),
        file("train/a/a.png", ""),
    ),
    Case(
        ("model=clip_mini", *DENSE, "task=image_folder", TASK_DATA, "task.limit=3"),
        ("task.limit=3", "there are 2 pictures"),
        classes("test", "cat", "dog"),
    ),
    Case(
        ("model=vit_mini", *DENSE, "task=image_folder", TASK_DATA),
        ("the model has no class 'cat'",),
        classes("test", "cat", "dog"),
    ),
    Case(
        (*DENSE, "task=image_folder", TASK_DATA),
        ("needs a model that embeds",),
        classes("test", "cat", "dog"),
    ),
    Case(("model=clip_mini", *DENSE, "task=dtd", TASK_DATA), ("is not in task.path",), file("a.json", {})),
    Case(
        ("model=clip_mini", *DENSE, "task=flickr30k", TASK_DATA),
        ("not in the layout",),
        file("dataset_flickr30k.json", {}),
    ),
    Case((*DENSE, "task=mmlu", TASK_DATA), ("has no dev/*_dev.csv",)),
    Case(
        ("model=t5_mini", *DENSE, "task=mmlu", TASK_DATA), ("hold no questions",), file("dev/a_dev.csv", "")
    ),
    Case(
        ("model=t5_mini", *DENSE, "task=mmlu", TASK_DATA),
        ("row 1", "expected question"),
        file("dev/a_dev.csv", "a,b\n"),
    ),
    Case(
        ("model=t5_mini", *DENSE, "task=mmlu", TASK_DATA, "task.shots=0"),
        ("a_test.csv, line 1", "NUL byte"),
        file("test/a_test.csv", "What\0?,1,2,3,4,A\n"),
    ),
    Case(
        (*DENSE, "task=mmlu", TASK_DATA, "task.shots=0"),
        ("needs a model that chooses",),
        file("test/a_test.csv", "What?,1,2,3,4,A\n"),
    ),
    Case(("model=t5_mini", *ONLY, "calibration=mmlu", DATA), ("has no val/*_val.csv",)),
]

CASES: list[Case] = [*PICTURES, *TASKS]
