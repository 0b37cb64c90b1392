"""Bad data: missing, damaged, too few, of another kind, or not for this model."""

from __future__ import annotations

from ecoflap.data.vqa.reading import VQAV2
from tests.refusals.case import Case
from tests.refusals.folders import (
    all_of,
    allocation,
    captions,
    classes,
    compressed,
    edited,
    file,
    language_models,
    pairs,
    questions,
    replaced,
    text,
    tokens,
    without,
)

LLAMA = ("model=causal_lm", "model.path={tmp}/llama")
GPT2 = ("model=causal_lm", "model.path={tmp}/gpt2")
ONLY = ("score=none", "steps=[calibrate]")  # no task
DENSE = ("score=none", "pruner=magnitude", "steps=[allocate,prune,evaluate]")  # no calibration set
TEXT = (*LLAMA, *ONLY, "calibration=wikitext2")
TOKENS = (*LLAMA, *ONLY, "calibration=token_file", "calibration.path={tmp}/tokens.safetensors")
READS_TEXT = (*LLAMA, *DENSE, "task=wikitext2")
READS_TOKENS = (*LLAMA, *DENSE, "task=token_perplexity", "task.path={tmp}/tokens.safetensors")
DATA = "calibration.path={tmp}/data"
TASK_DATA = "task.path={tmp}/data"
JSON_TEXT = b'{"text": "cat dog tree"}\n' * 300
VAL_QUESTIONS, VAL_ANSWERS = VQAV2.questions.format(split="val"), VQAV2.annotations.format(split="val")

TEXTS: list[Case] = [
    Case(
        (*TEXT, "calibration.path={tmp}/text.txt"),
        ("calibration.path={tmp}/text.txt", "no such file"),
        language_models,
    ),
    Case((*TEXT, "calibration.path={tmp}"), ("calibration.path={tmp}", "no such file"), language_models),
    Case(
        (*TEXT,),
        ("Salesforce/wikitext", "could not be read from the hub", "calibration.path=FILE"),
        language_models,
    ),
    Case((*TEXT, "calibration.path={tmp}/text.txt"), ("there is no text in it",), text("text.txt", "")),
    Case((*TEXT, "calibration.path={tmp}/text.txt"), ("there is no text in it",), text("text.txt", "\n \n")),
    Case(
        (*TEXT, "calibration.path={tmp}/text.txt"),
        ("sequence_length=512", "7 bytes"),
        text("text.txt", "cat dog"),
    ),
    Case(
        (*TEXT, "calibration.path={tmp}/text.txt"),
        ("sequence_length=512", "300 tokens of the text"),
        text("text.txt", "cat dog tree " * 100),
    ),
    Case(
        (*TEXT, "calibration.path={tmp}/text.txt"),
        ("{tmp}/text.txt, line 2", "NUL byte"),
        text("text.txt", "cat dog\ncat\0dog\n" + "cat dog\n" * 999),
    ),
    Case(
        (*TEXT, "calibration.path={tmp}/text.txt"),
        ("{tmp}/text.txt is not text in UTF-8", "convert it"),
        text("text.txt", "café ".encode("latin-1") * 999),
    ),
    Case(
        (*TEXT, "calibration.path={tmp}/text.txt"),
        ("{tmp}/text.txt is not text in UTF-8",),
        text("text.txt", ("cat dog " * 999).encode("utf-16")),
    ),
    Case(
        (*TEXT, "calibration.path={tmp}/text.jsonl"),
        ("line 1", "expected a JSON object whose 'text' is a text", "it has caption"),
        text("text.jsonl", '{"caption": "cat dog"}\n'),
    ),
    Case(
        (*TEXT, "calibration.path={tmp}/text.jsonl", "calibration.column=caption"),
        ("line 1", "calibration.column", "it has text"),
        text("text.jsonl", JSON_TEXT),
    ),
    Case(
        (*TEXT, "calibration.path={tmp}/text.jsonl"),
        ("line 1", "it is no JSON"),
        text("text.jsonl", "cat dog\n"),
    ),
    Case(
        (*TEXT, "calibration.path={tmp}/text.jsonl"),
        ("line 1", "it is a list"),
        text("text.jsonl", '["cat"]\n'),
    ),
    Case((*TEXT, "calibration.path={tmp}/text.jsonl"), ("there is no text in it",), text("text.jsonl", "")),
    Case(
        (*TEXT, "calibration.path={tmp}/text.jsonl"),
        ("line 301", "holds a NUL"),
        text("text.jsonl", JSON_TEXT + b'{"text": "cat\\u0000dog"}\n'),
    ),
    Case(
        (*TEXT, "calibration.path={tmp}/text.jsonl"),
        ("line 301", "holds half of a character, \\ud83d; take it out"),
        text("text.jsonl", JSON_TEXT + b'{"text": "cat\\ud83d"}\n'),
    ),
    Case(
        (*TEXT, "calibration.path={tmp}/text.jsonl.gz"),
        ("{tmp}/text.jsonl.gz can't be read", "download it again"),
        compressed(bytes(range(97, 123)) * 999, 50),
    ),
    Case(
        (*TEXT, "calibration.path={tmp}/text.jsonl.gz"), ("can't be read",), text("text.jsonl.gz", JSON_TEXT)
    ),
    Case(
        (*LLAMA, *ONLY, "calibration=c4", "calibration.path={tmp}/text.jsonl"),
        ("calibration.sequence_length=2048", "12 bytes of the longest text"),
        text("text.jsonl", JSON_TEXT),
    ),
    Case(
        (
            *LLAMA,
            *ONLY,
            "calibration=c4",
            "calibration.path={tmp}/text.jsonl",
            "calibration.sequence_length=5",
        ),
        ("none of the 5 documents has more tokens",),
        text("text.jsonl", '{"text": "cat dog tree"}\n' * 5),
    ),
    Case(
        (
            *GPT2,
            *ONLY,
            "calibration=wikitext2",
            "calibration.path={tmp}/text.txt",
            "calibration.sequence_length=17",
        ),
        ("calibration.sequence_length=17", "positions for 16 tokens"),
        text("text.txt", "cat dog " * 99),
    ),
    Case(
        (*TEXT, "calibration.path={tmp}/text.txt", "calibration.sequence_length=83"),
        ("calibration.sequence_length=83", "was made for 64 tokens"),
        text("text.txt", "cat dog " * 99),
        warns=True,
    ),
    Case(
        ("model=blip2_mini", *ONLY, "calibration=wikitext2", "calibration.path={tmp}/text.txt"),
        ("calibration=wikitext2", "answers questions about images", "choose another calibration"),
        text("text.txt", "cat dog " * 999),
    ),
    Case(
        ("model=t5_mini", *ONLY, "calibration=wikitext2_prefix", "calibration.path={tmp}/text.txt"),
        ("no line or document of 8 words",),
        text("text.txt", "cat dog\n" * 99),
    ),
    Case(
        (*LLAMA, *ONLY, "calibration=wikitext2_prefix", "calibration.path={tmp}/nowhere.txt"),
        ("calibration.path={tmp}/nowhere.txt", "no such file"),
        language_models,
    ),
    Case(
        (*READS_TEXT, "task.path={tmp}/test.txt"),
        ("task.path={tmp}/test.txt", "no such file", "in that folder: text.txt"),
        text("text.txt", ""),
    ),
    Case(
        READS_TEXT,
        ("Salesforce/wikitext", "could not be read from the hub", "task.path=FILE"),
        language_models,
    ),
    Case((*READS_TEXT, "task.path={tmp}/text.txt"), ("there is no text in it",), text("text.txt", "")),
    Case(
        (*READS_TEXT, "task.path={tmp}/text.txt"),
        ("sequence_length=2048", "7 bytes"),
        text("text.txt", "cat dog"),
    ),
    Case(
        (*READS_TEXT, "task.path={tmp}/text.txt"),
        ("task.sequence_length=2048", "1998 tokens"),
        text("text.txt", "cat dog " * 999),
    ),
    Case(
        (*READS_TEXT, "task.path={tmp}/text.txt"),
        ("line 1", "NUL byte"),
        text("text.txt", "cat\0dog " * 9999),
    ),
    Case(
        (*GPT2, *DENSE, "task=wikitext2", "task.path={tmp}/text.txt", "task.sequence_length=17"),
        ("task.sequence_length=17", "positions for 16 tokens"),
        text("text.txt", "cat dog " * 99),
    ),
    Case(
        (*READS_TEXT, "task.path={tmp}/text.txt", "task.sequence_length=84"),
        ("task.sequence_length=84", "was made for 64 tokens"),
        text("text.txt", "cat dog " * 99),
        warns=True,
    ),
    Case(
        ("model=blip2_mini", *DENSE, "task=wikitext2", "task.path={tmp}/text.txt"),
        ("task=wikitext2", "answers questions about images", "choose another task"),
        text("text.txt", "cat dog " * 9999),
    ),
]

ROWS: list[Case] = [
    Case((*TOKENS, "calibration.key=input_ids"), ("calibration.key=input_ids", "good"), tokens),
    Case((*TOKENS, "calibration.key=floats"), ("calibration.key=floats", "torch.float32 [2, 20]"), tokens),
    Case((*TOKENS, "calibration.key=flat"), ("calibration.key=flat", "[40]"), tokens),
    Case((*TOKENS, "calibration.key=none"), ("calibration.key=none", "[0, 20]"), tokens),
    Case((*TOKENS, "calibration.key=single"), ("calibration.key=single", "rows of one token"), tokens),
    Case((*TOKENS, "calibration.key=foreign"), ("ids from 100 to 107", "a vocabulary of 8"), tokens),
    Case((*TOKENS, "calibration.key=negative"), ("calibration.key=negative", "ids from -1"), tokens),
    Case(
        (
            *LLAMA,
            *ONLY,
            "calibration=token_file",
            "calibration.path={tmp}/words.safetensors",
            "calibration.key=good",
        ),
        ("calibration.path={tmp}/words.safetensors", "is not a safetensors file"),
        tokens,
    ),
    Case(
        (
            *LLAMA,
            *ONLY,
            "calibration=token_file",
            "calibration.path={tmp}/nowhere.safetensors",
            "calibration.key=good",
        ),
        ("calibration.path={tmp}/nowhere.safetensors", "no such file"),
        tokens,
    ),
    Case(
        (
            *GPT2,
            *ONLY,
            "calibration=token_file",
            "calibration.path={tmp}/tokens.safetensors",
            "calibration.key=good",
        ),
        ("calibration.key=good has rows of 20 tokens", "positions for 16 tokens"),
        tokens,
    ),
    Case(READS_TOKENS, ("task.key is required", "task.key=VALUE"), tokens),
    Case((*READS_TOKENS, "task.key=floats"), ("task.key=floats", "torch.float32", "integer"), tokens),
    Case((*READS_TOKENS, "task.key=test"), ("task.key=test", "good"), tokens),
    Case((*READS_TOKENS, "task.key=foreign"), ("task.key=foreign", "a vocabulary of 8"), tokens),
    Case((*READS_TOKENS, "task.key=single"), ("task.key=single", "rows of one token"), tokens),
    Case(
        (*GPT2, *DENSE, "task=token_perplexity", "task.path={tmp}/tokens.safetensors", "task.key=good"),
        ("task.key=good has rows of 20 tokens", "positions for 16 tokens"),
        tokens,
    ),
]

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
        (*ONLY, "calibration=coco", DATA, "calibration.split=dev"),
        ("split=dev", "test, train"),
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

MODELS: list[Case] = [
    Case((*LLAMA, *ONLY, "calibration=easy_vqa", "towers=[vision]"), ("vision", "language"), language_models),
    Case(("skip_layers=[layer.99]",), ("layer.99", "matches none")),
    Case(("model=causal_lm", "model.path={tmp}/nowhere", *ONLY, "calibration=easy_vqa"), ("no such folder",)),
    Case(
        ("model=blip_vqa_mini", *DENSE, "task.max_new_tokens=9999"),
        ("task.max_new_tokens=9999", "positions for"),
    ),
]

FILE = (
    *LLAMA,
    "allocation=file",
    "allocation.path={tmp}/allocation.json",
    "pruner=magnitude",
    "steps=[allocate,prune]",
    "sparsity=0.5",
)
LAYER = "model.layers.0.mlp.up_proj.weight"
ALLOCATIONS: list[Case] = [
    Case(FILE, ("allocation.path={tmp}/allocation.json", "no such file"), language_models),
    Case(
        (*FILE, "skip_layers=[q_proj]"),
        ("model.layers.0.self_attn.q_proj.weight", "not a layer to prune here", "skip_layers"),
        allocation(lambda value: None),
    ),
    Case(
        FILE,
        ("model.layers.2.mlp.up_proj.weight", "not a layer to prune here"),
        allocation(
            lambda value: [
                value[part].update({"model.layers.2.mlp.up_proj.weight": 8}) for part in ("keep", "sizes")
            ]
        ),
    ),
    Case(
        FILE,
        (f"has no entry for {LAYER}",),
        allocation(lambda value: [value[p].pop(LAYER) for p in ("keep", "sizes")]),
    ),
    Case(
        FILE,
        (f"{LAYER} keeps 256 of 511, but has 512",),
        allocation(lambda value: value["sizes"].update({LAYER: 511})),
    ),
    Case(
        ("allocation=file", "allocation.path={tmp}/allocation.json", "sparsity=0.5"),
        ("has no entry for", "made for other layers"),
        allocation(lambda value: None),
    ),
]

IDLE = ("calibration.samples=4", "model=blip2_mini")
UNUSED: list[Case] = [
    Case(
        (*IDLE, "steps=[calibrate,score]", "pruner.mask=2:4"),
        ("pruner.mask=2:4 changes nothing", "steps=[calibrate,score] has no allocate or prune"),
        warns=True,
    ),
    Case((*IDLE, "finetune.epochs=3"), ("finetune.epochs=3 changes nothing", "has no finetune"), warns=True),
    Case((*IDLE, "finetune=lora"), ("finetune=lora changes nothing", "has no finetune"), warns=True),
    Case(
        (*IDLE, "steps=[calibrate,score,allocate,prune]", "task.limit=5"),
        ("task.limit=5 changes nothing", "has no evaluate"),
        warns=True,
    ),
    Case(
        (*IDLE, "score=none", "score.samples=8"),
        ("score.samples=8 changes nothing", "score=none"),
        warns=True,
    ),
    Case(
        (*IDLE, "pruner=magnitude", "score=none", "allocation=water_filling", "propagate=dense"),
        ("propagate=dense changes nothing: pruner=magnitude reads no inputs of layers",),
        warns=True,
    ),
    Case(
        (*IDLE, "pruner=global_magnitude", "batch_size=2"),
        ("batch_size=2 changes nothing: pruner=global_magnitude reads no inputs of layers",),
        warns=True,
    ),
    Case(
        (*IDLE, "pruner.swaps=5"),
        ("pruner.swaps=5 changes nothing: pruner.refine=none swaps no weights",),
        warns=True,
    ),
    Case(
        (*IDLE, "score=none", "allocation=water_filling", "allocation.cap=0.9"),
        ("allocation.cap=0.9 changes nothing: score=none gives all layers the same sparsity",),
        warns=True,
    ),
    Case(
        (*DENSE, "calibration.samples=9"),
        ("calibration.samples=9 changes nothing", "has no calibrate"),
        warns=True,
    ),
    Case(
        (*FILE, "score.samples=8"),
        ("score.samples=8", "allocation=file takes no scores"),
        allocation(lambda value: None),
        warns=True,
    ),
    Case(
        ("score=zeroth_order", "calibration.samples=32", "score.samples=128"),
        ("score.samples=128 is more than the 32 of calibration.samples",),
        warns=True,
    ),
]

CASES: list[Case] = [*TEXTS, *ROWS, *PICTURES, *TASKS, *MODELS, *ALLOCATIONS, *UNUSED]
