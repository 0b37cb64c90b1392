"""Bad texts and rows of tokens: missing, damaged, too few, of another kind, or not for this model."""

from __future__ import annotations

from tests.refusals.case import DENSE, LLAMA, ONLY, Case
from tests.refusals.folders import (
    compressed,
    language_models,
    text,
    tokens,
)

GPT2 = ("model=causal_lm", "model.path={tmp}/gpt2")
TEXT = (*LLAMA, *ONLY, "calibration=wikitext2")
TOKENS = (*LLAMA, *ONLY, "calibration=token_file", "calibration.path={tmp}/tokens.safetensors")
READS_TEXT = (*LLAMA, *DENSE, "task=wikitext2")
READS_TOKENS = (*LLAMA, *DENSE, "task=token_perplexity", "task.path={tmp}/tokens.safetensors")
JSON_TEXT = b'{"text": "cat dog tree"}\n' * 300

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

CASES: list[Case] = [*TEXTS, *ROWS]
