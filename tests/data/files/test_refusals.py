"""What is wrong with a file is said with its name, its line or row, and what to change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

import ecoflap
from ecoflap.data.example import Example
from ecoflap.data.files.calibration import Chat, Parquet, RowsCalibration, WebDataset
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from tests.api.conftest import clip, llama, llava
from tests.data.files import rows as given

if not hasattr(transformers, "LlavaForConditionalGeneration"):
    pytest.skip(f"transformers {transformers.__version__} has no LLaVA", allow_module_level=True)


def turns(*said: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in said]}


ANSWER = ("assistant", "circle")
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "count"}}]}
SAID = {"role": "assistant", "content": "circle"}
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "missing picture": (
        {**given.llava_chats(1)[0], "image": "gone.png"},
        r"there is no picture .*gone\.png; .*calibration\.images=FOLDER",
    ),
    "address": ({**given.columns(1)[0], "image": "https://a.b/c.png"}, r"the address https.*download"),
    "no answer": (turns(("user", "what ?")), r"no turn of the assistant \(its roles: user\)"),
    "empty answer": (turns(("user", "what ?"), ("assistant", " ")), "last answer has no text"),
    "role": (turns(("user", "what ?"), ("asistant", "circle")), "turn 2: its role is asistant; did you mean"),
    "keys": ({"messages": [{"speaker": "a", "text": "b"}]}, "turn 1 has speaker, text; a turn has from and"),
    "content": (turns(("user", 3), ANSWER), "turn 1: its content is a int"),
    "part": (turns(("user", [{"type": "video"}]), ANSWER), "turn 1: a part has the type video"),
    "no list": ({"messages": "what ?"}, "messages is a str; give a list of turns"),
    "one turn": ({"messages": SAID}, "messages is a dict; give a list of turns"),
    "too few": (turns(("user", "<image> what ?"), ANSWER), r"1 places for pictures .* 0 pictures"),
    "too many": (
        {**turns(("user", "<image> what ?"), ANSWER), "images": ["0.png", "1.png"]},
        r"1 places for pictures .* 2 pictures",
    ),
    "columns": ({"prompt": "what ?", "picture": "0.png"}, r"has prompt, picture, and none of .*text_column"),
    "null": ({"text": None, "id": 3}, r"the value of text is null; give a value, take the row out, or name"),
    "tool call": (
        {"messages": [{"role": "user", "content": "what ?"}, CALL, {"role": "tool", "content": "3"}]},
        "turn 2, of the role assistant, has no content, as turns that call tools; .* write the call as its",
    ),
    "tool call beside an empty content": (
        {"messages": [{"role": "user", "content": "what ?"}, {**CALL, "content": ""}, SAID]},
        r"turn 2, of the role assistant, calls a tool \(tool_calls\); .* write the call as its content",
    ),
    "function call beside a text": (
        {"messages": [{"role": "user", "content": "what ?"}, {**SAID, "function_call": {"name": "count"}}]},
        r"turn 2, of the role assistant, calls a tool \(function_call\); .* write the call as its content",
    ),
    "tools": (
        {**turns(("user", "what ?"), ANSWER), "tools": [{"name": "count"}]},
        r"defines tools \(tools\), which are",
    ),
    "functions": (
        {**turns(("user", "what ?"), ANSWER), "functions": [{"name": "count"}]},
        r"defines tools \(functions\), which are",
    ),
    "tools as JSON": ({**turns(("user", "what ?"), ANSWER), "tools": '[{"name": "count"}]'}, "defines tools"),
    "options of the template": (
        {**turns(("user", "what ?"), ANSWER), "chat_template_kwargs": {"enable_thinking": False}},
        "has chat_template_kwargs, which are not read; take the column out",
    ),
    "reasoning": (
        {"messages": [{"role": "user", "content": "what ?"}, {**SAID, "reasoning_content": "it is round"}]},
        r"turn 2, of the role assistant, has reasoning_content, which is not read; write the reasoning into",
    ),
    "reasoning before the last answer": (
        {"messages": [{**SAID, "thinking": "it is round"}, {"role": "user", "content": "what ?"}, SAID]},
        r"turn 1, of the role assistant, has thinking, which is not read",
    ),
    "weight": (
        {"messages": [{"role": "user", "content": "what ?"}, {**SAID, "weight": 0}]},
        "turn 2, of the role assistant, has the weight 0, and the loss would be that of this answer",
    ),
    "tool call without content": ({"messages": [{"role": "assistant", "tool_calls": []}]}, "has no content"),
    "null of LLaVA": ({"conversations": [{"from": "gpt", "value": None}]}, "turn 1, of the role gpt, has no"),
    "two pictures": ({"images": ["0.png", "1.png"], "caption": "a"}, "has 2 pictures"),
    "list": ({"image": "0.png", "answer": ["a", "b"]}, r"target of .* is a list; give a str, such as 'a'"),
    "half an emoji": (
        turns(("user", "what ?"), ("assistant", "a \ud83d")),
        r"half of a character, \\ud83d; take",
    ),
    "data url": ({"image": "data:image/png;base64,%%", "caption": "a"}, "damaged data URL"),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows(folder: Path, case: str) -> None:
    row, words = ROWS[case]
    file = given.write_lines(folder / "a.jsonl", [row])
    with pytest.raises(UserError, match=words) as caught:
        Chat(str(file)).check_data("calibration")
    assert f"{file}, line 1" in str(caught.value)


def test_calls_and_tools_that_arrow_fills_in_are_none(folder: Path) -> None:
    nothing = {"tool_calls": None, "function_call": {"name": None, "arguments": None}, "thinking": ""}
    said = [{"role": "user", "content": "what ?", **nothing}, {**SAID, **nothing, "tool_calls": []}]
    for tools in (None, [], "", "[]"):
        file = given.write_lines(folder / "a.jsonl", [{"messages": said, "tools": tools}])
        Chat(str(file)).check_data("calibration")


def test_the_answer_that_is_learned_has_a_weight(folder: Path) -> None:
    ask = {"role": "user", "content": "what ?"}
    first = [ask, {**SAID, "weight": 0}, ask, {**SAID, "weight": 1}]
    file = str(given.write_lines(folder / "a.jsonl", [{"messages": first}]))
    Chat(file).check_data("calibration")
    with pytest.raises(UserError, match="turn 2, of the role assistant, has the weight 0"):
        Chat(file, turns="first").check_data("calibration")
    last = [ask, SAID, ask, {**SAID, "weight": 0, "content": ""}]
    file = str(given.write_lines(folder / "b.jsonl", [{"messages": last}]))
    Chat(file, turns="first").check_data("calibration")
    blank = [ask, {**SAID, "content": " "}, ask, SAID]
    with pytest.raises(UserError, match="its first answer has no text"):
        Chat(str(given.write_lines(folder / "c.jsonl", [{"messages": blank}])), turns="first").check_data("")


@pytest.mark.parametrize("row", [{"question": "what ?"}, {"text": "what ?", "answer": None}])
def test_a_question_without_an_answer_is_no_caption(folder: Path, row: dict[str, Any]) -> None:
    one = llava()
    file = given.write_lines(folder / "a.jsonl", [{"image": "0.png", **row}])
    model = ecoflap.load(one.module, one.processor)
    with pytest.raises(UserError, match=r"line 1 says nothing that .* should write"):
        ecoflap.calibrate(model, "chat", path=str(file))
    captioned = given.write_lines(folder / "b.jsonl", [{"image": "0.png", "text": "a circle"}])
    assert len(ecoflap.calibrate(model, "chat", path=str(captioned))) == 1


def test_an_answer_of_spaces_is_none(folder: Path) -> None:
    """As in a chat: its tokens, if it has any, say nothing."""
    rows = [{"question": "what ?", "answer": answer} for answer in ("the cat", " \n")]
    file = str(given.write_lines(folder / "a.jsonl", rows))
    one = llama()
    with pytest.raises(UserError, match=r"line 2 says nothing that .* should write"):
        Chat(file).load(ecoflap.load(one.module, one.processor), 0)


def test_a_question_alone_is_no_text(folder: Path) -> None:
    """The answer may be in a column of another name, as OpenOrca's is, and must not be left out."""
    file = str(given.write_lines(folder / "a.jsonl", [{"question": "the cat", "response": "a dog"}] * 2))
    with pytest.raises(
        UserError, match=r"line 1 says nothing .* has question, response, .*target_column=NAME"
    ):
        Chat(file).check_data("calibration")
    one = llama()
    model = ecoflap.load(one.module, one.processor)
    named = Chat(file, target_column="response", samples=1).load(model, 0)
    assert one.processor.decode(named.samples[0]["input_ids"]).split()[-2:] == ["a", "dog"]
    questions = Chat(file, text_column="question", samples=1, sequence_length=2).load(model, 0)
    assert one.processor.decode(questions.samples[0]["input_ids"]) == "the cat"
    texts = given.write_lines(folder / "b.jsonl", [{"text": "the cat"}, {"question": "the cat"}])
    with pytest.raises(UserError, match="line 2 says nothing that a model should write: it has question"):
        Chat(str(texts), sequence_length=2).check_rows(model, 0)


def test_a_text_beside_a_question_is_ambiguous(folder: Path) -> None:
    row = {"text": "the cat sat", "question": "the cat ?", "answer": "a dog"}
    file = str(given.write_lines(folder / "a.jsonl", [row]))
    with pytest.raises(
        UserError, match=r"line 1 has a question and another text, .* calibration\.text_column"
    ):
        Chat(file).check_data("calibration")
    Chat(file, text_column="question").check_data("calibration")
    same = given.write_lines(folder / "b.jsonl", [row | {"text": row["question"]}])
    Chat(str(same)).check_data("calibration")


HALF = "a \ud83d"


@pytest.mark.parametrize(
    "data",
    [
        ["the cat", HALF],
        [{"text": "the cat"}, {"text": HALF}],
        {"text": ["the cat", HALF]},
        [turns(("user", "what ?"), ("assistant", said)) for said in ("a cat", HALF)],
        [turns(("user", [{"type": "text", "text": said}]), ANSWER) for said in ("a cat", HALF)],
    ],
)
def test_half_a_character_in_memory(data: Any) -> None:
    one = llama()
    with pytest.raises(
        UserError, match=r"row 1 of the data has .* half of a character, \\ud83d; take it out"
    ):
        ecoflap.calibrate(ecoflap.load(one.module, one.processor), data)


def write(name: str, content: bytes) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return made


LATIN = '{"text": "café"}'.encode("latin-1")
FILES: dict[str, tuple[type[RowsCalibration], Callable[[Path], Any], str]] = {
    "no path": (Chat, lambda folder: None, r"calibration=chat needs calibration\.path=FILE"),
    "nowhere": (Chat, lambda folder: folder / "b.jsonl", "there is no such file or folder"),
    "other kind": (Parquet, write("a.jsonl", b"{}"), r"reads \*\.parquet; .* chat reads JSON"),
    "empty folder": (WebDataset, lambda folder: folder, r"holds no \*\.tar, but 0\.png"),
    "empty": (Chat, write("a.jsonl", b""), "has no rows"),
    "empty list": (Chat, write("a.json", b"[]"), "has no rows"),
    "no JSON": (Chat, write("a.jsonl", b"\n{'a': 1}\n"), "line 2: this is no JSON"),
    "latin-1": (Chat, write("a.jsonl", LATIN), r"a\.jsonl, line 1 is not text in UTF-8; convert it to UTF-8"),
    "latin-1 list": (Chat, write("a.json", b"[" + LATIN + b"]"), "is not text in UTF-8; convert it to UTF-8"),
    "broken list": (Chat, write("a.json", b'[{"a": 1'), "can't be read as JSON"),
    "half an emoji": (
        Chat,
        write("a.json", b'[{"text": "\\ud83d\\ude00 \\\\ud83d"},\n{"text": "\\uDE00"}]'),
        r"entry 2: a text in it holds half of a character, \\ude00",
    ),
    "half an emoji in a shard": (
        WebDataset,
        lambda folder: given.write_shard(folder / "a.tar", {"0.json": b'{"caption": "\\ud83d"}'}),
        r"sample 0: .*half of a character, \\ud83d",
    ),
    "one object": (Chat, write("a.json", b'{\n"train": [],\n"test": []}'), "one object with train, test"),
    "list of lists": (Chat, write("a.json", b"[[1]]"), "entry 1 is a list; a row is an object"),
    "broken gzip": (Chat, write("a.jsonl.gz", b"x"), "can't be unpacked"),
    "no parquet": (Parquet, write("a.parquet", b"x" * 20), "can't be read as Parquet"),
    "no tar": (WebDataset, write("a.tar", b"x" * 600), "can't be read as tar"),
    "empty tar": (WebDataset, lambda folder: given.write_shard(folder / "a.tar", {}), "has no rows"),
    "numbers": (
        WebDataset,
        lambda folder: given.write_shard(folder / "a.tar", {"0.npy": b""}),
        r"sample 0 has \.npy",
    ),
    "pickle": (
        WebDataset,
        lambda folder: given.write_shard(folder / "a.tar", {"0.pkl": b"", "0.pth": b""}),
        r"sample 0 has \.pkl, \.pth; a sample is a picture",
    ),
    "broken JSON": (
        WebDataset,
        lambda folder: given.write_shard(folder / "a.tar", {"0.json": b"{"}),
        "sample 0: its JSON or text can't be read",
    ),
    "broken picture": (
        WebDataset,
        lambda folder: given.write_shard(folder / "a.tar", {"0.png": b"x", "0.txt": b"a"}),
        "image of .*sample 0 can't be read",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_files(folder: Path, case: str) -> None:
    kind, make, words = FILES[case]
    path = make(folder)
    with pytest.raises(UserError, match=words) as caught:
        kind(None if path is None else str(path)).check_data("calibration")
    assert path is None or str(path) in str(caught.value)


def test_a_column_that_an_option_names_is_nothing_else(folder: Path) -> None:
    """A caption in a column named text is no question that the model would only have to repeat."""
    image = str(folder / "0.png")
    for row, options, wanted in (
        ({"text": "no"}, {"target_column": "text"}, Example("", "no", image, bare=True)),
        ({"answer": "what ?", "caption": "no"}, {"text_column": "answer"}, Example("what ?", "no", image)),
        (
            {**turns(("user", "why ?"), ANSWER), "prompt": "what ?", "reply": "no"},
            {"text_column": "prompt", "target_column": "reply"},
            Example("what ?", "no", image),
        ),
    ):
        file = given.write_lines(folder / "a.jsonl", [{"image": "0.png", **row}])
        chat = Chat(str(file), **options)
        assert chat.first(chat.rows()) == wanted


def test_columns_that_options_name(folder: Path) -> None:
    rows = [{"picture": "0.png", "prompt": "what ?", "response": "circle"}]
    file = str(given.write_lines(folder / "a.jsonl", rows))
    named = {"image_column": "picture", "text_column": "prompt", "target_column": "response"}
    usual = [{"image": "0.png", "text": "what ?", "target": "circle"}]
    other = str(given.write_lines(folder / "b.jsonl", usual))
    one, another = Chat(file, **named), Chat(other)
    assert one.first(one.rows()) == another.first(another.rows())
    with pytest.raises(UserError, match=r"calibration\.text_column=promt: .*line 1 has prompt"):
        Chat(file, text_column="promt").check_data("calibration")
    empty = str(given.write_lines(folder / "c.jsonl", [{"prompt": None}]))
    with pytest.raises(UserError, match="line 1: the value of prompt is null"):
        Chat(empty, text_column="prompt").check_data("calibration")


def loaded(model: PrunableModel, folder: Path, row: dict[str, Any], **options: Any) -> None:
    calibration = Chat(str(given.write_lines(folder / "a.jsonl", [row])), **options)
    calibration.check_data("calibration")
    calibration.load(model, 0)


def test_models_that_cannot_read_the_rows(folder: Path) -> None:
    language, vision, pairs = (ecoflap.load(one.module, one.processor) for one in (llama(), llava(), clip()))
    with pytest.raises(UserError, match=r"its rows show pictures, and .* reads only text"):
        loaded(language, folder, given.llava_chats(1)[0])
    with pytest.raises(UserError, match=r"its rows are texts, and .* reads pictures"):
        loaded(vision, folder, {"text": "the cat"})
    with pytest.raises(UserError, match=r"line 1 says nothing that .* should write"):
        loaded(vision, folder, {"image": "0.png"})
    for model in (vision, pairs):
        with pytest.raises(UserError, match=r"line 1 has a label, and .* reads captions or answers; give a"):
            loaded(model, folder, {"image": "0.png", "label": 0})
    several = turns(("user", "<image> what ?"), ANSWER, ("user", "is it red ?"), ANSWER)
    with pytest.raises(UserError, match=r"several turns or pictures.*calibration\.turns=first"):
        loaded(pairs, folder, {**several, "image": "0.png"})
    loaded(pairs, folder, {**several, "image": "0.png"}, turns="first")
    one = llava()
    prompted = ecoflap.load(one.module, one.processor, prompt="USER: <image> {} ASSISTANT:")
    with pytest.raises(UserError, match=r"model\.prompt is for a question.*turns=first"):
        loaded(prompted, folder, {**several, "image": "0.png"})
    pictures = {**turns(("user", "<image> <image> what ?"), ANSWER), "images": ["0.png", "1.png"]}
    for model in (pairs, prompted):
        with pytest.raises(UserError, match=r"take such rows out") as caught:
            loaded(model, folder, pictures, turns="first")
        assert "turns=first" not in str(caught.value)
    with pytest.raises(UserError, match=r"calibration\.turns=last is not known"):
        Chat("a", turns="last")


def test_a_template_that_refuses_system_turns() -> None:
    one = llama()
    one.processor.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    )
    model = ecoflap.load(one.module, one.processor)
    chat = turns(("system", "the house"), ("user", "the cat"), ANSWER)
    with pytest.raises(UserError, match=r"refuses a conversation of system, user \(no system turn\)"):
        ecoflap.calibrate(model, [chat])
    with pytest.raises(UserError, match="row 0 of the data has no turn of the assistant"):
        ecoflap.calibrate(model, [turns(("user", "the cat"))])
    assert json.dumps(chat)
