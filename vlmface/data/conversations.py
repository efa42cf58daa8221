"""Conversations about pictures, in the forms in which instruction data are written.

    {"conversations": [{"from": "human", "value": "<image>..."}, {"from": "gpt", ...}]}    ShareGPT,
                                                                                           LLaVA
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}         OpenAI
    {"conversation": [{"human": "...", "assistant": "..."}], "system": "..."}              ms-swift
    {"query": "...", "response": "...", "history": [["...", "..."]], "system": "..."}      ms-swift
    {"instruction": "...", "input": "...", "output": "...", "history": ...}                Alpaca

Pictures are listed as `image` or `images`, or named in the text as <img>path</img> (Qwen-VL), or
parts of a message's content ({"type": "image_url", ...}). `<image>` in a text is the place of the
next picture. If there is no such place, the pictures come before the first question.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vlmface.data.records import Record, short_repr
from vlmface.errors import UserError

IMAGE = "<image>"  # the place of a picture in a text
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "developer": "system",
}
_QUESTIONS = ("query", "instruction")
_EXPECTED = (
    '[{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}, ...], or the roles user '
    "and assistant"
)
_QWEN_IMAGE = re.compile(r"<img>(.*?)</img>", re.DOTALL)


@dataclass(frozen=True)
class Conversation:
    """A conversation.

    Attributes:
        messages: [{"role", "content"}]: perhaps the system's, then user and assistant in turn. A
            text has IMAGE where a picture is shown.
        images: the paths of the pictures in order, as they are written.
    """

    messages: list[dict[str, str]]
    images: list[str]

    def pairs(self) -> list[tuple[str, str]]:
        """(question, answer) of each pair of turns, without the places of pictures."""
        turns = [m["content"] for m in self.messages if m["role"] != "system"]
        questions = [text.replace(IMAGE, "").strip() for text in turns[::2]]
        return list(zip(questions, turns[1::2], strict=True))


def is_in_meta(meta: str | None) -> bool:
    """Whether the column `meta` of a row holds a conversation, its key `messages`."""
    return meta is not None and '"messages": [' in meta and "messages" in json.loads(meta)


def read_conversation(record: Record) -> Conversation:
    """The conversation of a record.

    Raises:
        UserError: it has none, its speakers do not take turns, it has sound or video, or the places
            of pictures are not as many as the pictures.
    """
    for name in ("video", "videos", "audio", "audios"):
        if record.fields.get(name):
            record.refuse(name, "pictures only")
    messages: list[dict[str, str]] = []
    named_in_texts: list[str] = []
    for role, content in _turns(record):
        text, images = _text(record, content)
        text = _QWEN_IMAGE.sub(IMAGE, text)
        named_in_texts += images
        messages.append({"role": role, "content": text.strip()})
    _check_turns(record, messages)
    in_fields = _listed_images(record)
    if in_fields and named_in_texts and in_fields != named_in_texts:
        record.refuse("images", f"the pictures named in the texts, {short_repr(named_in_texts)}")
    images = in_fields or named_in_texts
    places = sum(message["content"].count(IMAGE) for message in messages)
    if images and not places:
        first = next(message for message in messages if message["role"] == "user")
        first["content"] = f"{IMAGE * len(images)}\n{first['content']}".strip()
    elif places != len(images):
        raise UserError(
            f"{record.where}: the texts have {places} times {IMAGE}, but there are {len(images)} "
            "pictures: list each picture once, and give each its place"
        )
    return Conversation(messages, images)


def _turns(record: Record) -> Iterator[tuple[str, Any]]:
    """(role, content) of each turn."""
    fields = record.fields
    name = next((n for n in ("conversations", "messages", "conversation") if n in fields), None)
    question = next((n for n in _QUESTIONS if record.has(n)), None)
    if record.has("system") and name != "messages":
        yield "system", fields["system"]
    if name is None and question is not None:
        yield from _single_turn(record, question)
        return
    name = name or "conversations"
    turns = fields.get(name)
    if not isinstance(turns, list) or not turns or not all(isinstance(t, dict) for t in turns):
        record.refuse(name, _EXPECTED)
    for turn in turns:
        if name == "conversation":
            yield "user", turn.get("human")
            yield "assistant", turn.get("assistant")
            continue
        role = ROLES.get(str(turn.get("from", turn.get("role"))).casefold())
        if role is None:
            record.refuse(name, _EXPECTED)
        yield role, turn["value"] if "value" in turn else turn.get("content")


def _single_turn(record: Record, question: str) -> Iterator[tuple[str, Any]]:
    """The turns of a question and its answer, with those of their history before them."""
    history = record.fields.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in history
    ):
        record.refuse("history", '[["question", "answer"], ...]')
    for question_text, answer_text in history:
        yield "user", question_text
        yield "assistant", answer_text
    text = record.fields[question]
    if question == "instruction" and record.optional("input"):
        text = f"{text}\n{record.fields['input']}"
    yield "user", text
    answer = "response" if question == "query" else "output"
    yield "assistant", record.text(answer)


def _text(record: Record, content: Any) -> tuple[str, list[str]]:
    """(text, pictures named in it) of a turn's content."""
    if isinstance(content, str):
        if "\0" in content:
            raise UserError(f"{record.where}: a text holds a character 0: correct the record")
        return content, [path.strip() for path in _QWEN_IMAGE.findall(content)]
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise UserError(
            f"{record.where}: a turn has the content {short_repr(content)}, expected a text, or "
            'parts such as [{"type": "image", "image": "..."}, {"type": "text", "text": "..."}]'
        )
    texts: list[str] = []
    images: list[str] = []
    for part in content:
        if isinstance(part.get("text"), str):
            texts.append(part["text"])
            continue
        value = part.get("image", part.get("image_url", part.get("path")))
        value = value.get("url") if isinstance(value, dict) else value
        if "image" not in str(part.get("type")):
            raise UserError(
                f"{record.where}: a turn has a part {short_repr(part)}, expected text or an image"
            )
        texts.append(IMAGE)
        if isinstance(value, str):
            images.append(value)
    return "\n".join(texts), images


def _listed_images(record: Record) -> list[str]:
    """The pictures in the fields image and images, of which only one may be filled, or both with
    the same."""
    paths_by_field = {}
    for name in ("image", "images"):
        value = record.fields.get(name)
        if isinstance(value, list):
            value = [item.get("path") if isinstance(item, dict) else item for item in value]
        elif isinstance(value, dict):
            value = value.get("path")
        paths_by_field[name] = record.but(**{name: value}).images(name)
    if all(paths_by_field.values()) and paths_by_field["image"] != paths_by_field["images"]:
        record.refuse("images", f"the same as 'image', {short_repr(paths_by_field['image'])}")
    return paths_by_field["image"] or paths_by_field["images"]


def _check_turns(record: Record, messages: list[dict[str, str]]) -> None:
    """Raise UserError unless, after the system's text, user and assistant take turns."""
    if messages and messages[0]["role"] == "system" and not messages[0]["content"]:
        del messages[0]
    start = int(bool(messages) and messages[0]["role"] == "system")
    roles = [message["role"] for message in messages[start:]]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise UserError(
            f"{record.where}: the speakers are {', '.join(roles) or 'none'}: expected user and "
            "assistant in turn, the assistant last, and at most one system text before them"
        )
    for message in messages:
        if message["role"] == "assistant" and IMAGE in message["content"]:
            raise UserError(f"{record.where}: an answer holds {IMAGE}: only users show pictures")
        if message["role"] == "assistant" and not message["content"]:
            raise UserError(f"{record.where}: an answer is empty: leave the turn out")
