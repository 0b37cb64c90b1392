"""The same few chats about pictures in every kind of file that calibration reads."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from tests.api.conftest import picture

ASKED = ("what shape is there ?", "is there a circle ?")
SAID = ("circle", "no")


def png(number: int) -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG")
    return buffer.getvalue()


def llava_chats(count: int = 6) -> list[dict[str, Any]]:
    """Rows as LLaVA-Instruct and ShareGPT4V have them."""
    return [
        {
            "id": f"{number:03}",
            "image": f"{number}.png",
            "conversations": [
                {"from": "human", "value": f"<image>\n{ASKED[number % 2]}"},
                {"from": "gpt", "value": SAID[number % 2]},
            ],
        }
        for number in range(count)
    ]


def openai_chats(count: int = 6) -> list[dict[str, Any]]:
    """The same as messages with parts."""
    return [
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": f"{number}.png"},
                        {"type": "text", "text": ASKED[number % 2]},
                    ],
                },
                {"role": "assistant", "content": SAID[number % 2]},
            ]
        }
        for number in range(count)
    ]


def columns(count: int = 6) -> list[dict[str, Any]]:
    """The same as a question with its answer."""
    return [
        {"image": f"{number}.png", "question": ASKED[number % 2], "answer": SAID[number % 2]}
        for number in range(count)
    ]


def write_pictures(folder: Path, count: int = 6) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(png(number))


def write_lines(file: Path, rows: list[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_parquet(file: Path, rows: list[dict[str, Any]], group: int = 2) -> Path:
    """Rows as ``datasets`` writes them: pictures as {"bytes", "path"}."""
    import pyarrow as pa
    from pyarrow import parquet

    stored = [
        {
            name: {"bytes": png(int(value.split(".")[0])), "path": value} if name == "image" else value
            for name, value in row.items()
        }
        for row in rows
    ]
    parquet.write_table(pa.Table.from_pylist(stored), file, row_group_size=group)
    return file


def write_shard(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w") as shard:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return file
