"""A body becomes an `Asked`: read within a size and a time, kept in memory, checked."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from vlmface.serving.gateway.http_errors import Refusal
from vlmface.serving.gateway.schemas import Faces, Form, Sent
from vlmface.serving.gateway.settings import Settings

FORM, JSON = "multipart/form-data", "application/json"
MOST_PARTS = 40  # of a form
LONGEST_HEAD = 2_000  # bytes of the headers of a part
LONGEST_FIELD = 1_000  # bytes of a part that is no file
MOST_VALUES = 200  # objects, arrays and commas in JSON, besides those of boxes
_LINK = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*):")
_DATA_URI = re.compile(r"\s*data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Asked:
    """`image`: the bytes of a file. `tasks` None: all. `boxes` None: `faces` says which faces, None
    for those that the model was trained to be asked about."""

    image: bytes
    tasks: Sequence[str] | None
    faces: Faces | None
    boxes: Sequence[Sequence[float]] | None = None


async def read(request: Request, settings: Settings) -> Asked:
    """Raises Refusal."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind not in (FORM.encode(), JSON.encode()):
        raise Refusal("media_type", f"the body's type is not known: send {FORM} or {JSON}")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refusal("media_type", "the body is compressed: send it as it is")
    body = await _body(request, settings)
    if kind == JSON.encode():
        return _from_json(body, settings)
    return _from_form(body, options.get(b"boundary", b""))


async def _body(request: Request, settings: Settings) -> bytes:
    """What arrives counts, whatever Content-Length says."""
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for piece in request.stream():
                body += piece
                if len(body) > settings.max_bytes:
                    raise Refusal(
                        "too_large",
                        f"the body has more than {settings.max_mb:g} MB: shrink the "
                        "picture, or crop the face",
                    )
    except TimeoutError:
        raise Refusal(
            "slow", f"the body did not arrive within {settings.body_timeout_s:g} s", close=True
        ) from None
    except ClientDisconnect:
        raise Refusal("gone", "the client hung up") from None
    return bytes(body)


# --- JSON -----------------------------------------------------------------------------------------


def _from_json(body: bytes, settings: Settings) -> Asked:
    # A picture in base64 has none of these marks: what has many of them is nested or long without
    # need, and would be far larger in memory than it is here.
    if sum(body.count(mark) for mark in b"[{,") > MOST_VALUES + 6 * settings.max_faces:
        raise Refusal("malformed", "the JSON has too many values, or is nested too deeply")
    try:
        found = json.loads(body.decode("utf-8"), object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise Refusal("malformed", f"the body is not valid JSON: {error}") from None
    except UnicodeDecodeError:
        raise Refusal("malformed", "the JSON is not in UTF-8") from None
    except (ValueError, RecursionError):
        raise Refusal("malformed", "the JSON has a number that is too long") from None
    sent = _checked(Sent, found)
    if sent.boxes is not None and sent.faces not in (None, "none"):
        raise Refusal("box", f"faces is {sent.faces}, but there are boxes: leave out one of them")
    return Asked(_file(sent.image), sent.tasks, sent.faces, sent.boxes)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Refusal("malformed", "the JSON has a field twice")
    return found


def _file(text: str) -> bytes:
    """The bytes of a picture's file that was sent in base64."""
    link = _LINK.match(text, 0, 100)
    start = _DATA_URI.match(text, 0, 200)
    if link and not start:
        what = "data: URI of no picture in base64" if link[1].lower() == "data" else "link"
        raise Refusal(
            "link",
            f"image is a {what}, and nothing is fetched from anywhere: pictures are sent, "
            "not linked. Send the file's bytes in base64",
        )
    content = text[start.end() :] if start else text
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(
            "picture", "image is not in base64: send the file's bytes, not its name"
        ) from None


# --- forms ----------------------------------------------------------------------------------------


class Part(NamedTuple):
    name: str
    is_file: bool
    content: bytes


def _from_form(body: bytes, boundary: bytes) -> Asked:
    parts = _parts(body, boundary)
    images = [part for part in parts if part.name == "image"]
    if len(images) != 1 or not images[0].is_file:
        what = f"image is there {len(images)} times" if len(images) != 1 else "image is text"
        raise Refusal("malformed", f"{what}: send one file, as `curl -F image=@face.jpg` does")
    fields: dict[str, Any] = {}
    for part in parts:
        if part.name == "tasks":
            fields.setdefault("tasks", []).extend(re.findall(r"[^\s,]+", _text(part)))
        elif part.name in fields:
            raise Refusal("malformed", f"{shown(part.name)} is there twice")
        elif part.name != "image":
            fields[part.name] = _text(part)
    form = _checked(Form, fields)
    return Asked(images[0].content, form.tasks, form.faces)


def _parts(body: bytes, boundary: bytes) -> list[Part]:
    """The parts of a form (RFC 7578). Own code, as the usual parser keeps large files on a disk,
    and takes its time over headers."""
    if not 1 <= len(boundary) <= 70:
        raise Refusal("malformed", "Content-Type has no boundary of 1 to 70 characters")
    _, *pieces = (b"\r\n" + body).split(b"\r\n--" + boundary, MOST_PARTS)
    found: list[Part] = []
    for piece in pieces:
        if piece.startswith(b"--"):
            return found
        head, blank, content = piece.partition(b"\r\n\r\n")
        if not blank or len(head) > LONGEST_HEAD:
            break
        found.append(_part(head, content))
    raise Refusal("malformed", f"the form is damaged, cut off, or has over {MOST_PARTS} parts")


def _part(head: bytes, content: bytes) -> Part:
    headers = dict(
        (name.strip().lower(), value.strip())
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n"))
    )
    kind, options = parse_options_header(headers.get(b"content-disposition"))
    if kind != b"form-data" or b"name" not in options:
        raise Refusal("malformed", "a part of the form has no name")
    name = options[b"name"].decode("utf-8", "replace")
    return Part(name, b"filename" in options, content)


def _text(part: Part) -> str:
    if part.is_file or len(part.content) > LONGEST_FIELD:
        what = "a file" if part.is_file else "too long"
        raise Refusal("malformed", f"{shown(part.name)} is {what}: only image is a file")
    try:
        return part.content.decode("utf-8")
    except UnicodeDecodeError:
        raise Refusal("malformed", f"{shown(part.name)} is not in UTF-8") from None


# --- both -----------------------------------------------------------------------------------------


def _checked(model: type[Model], found: Any) -> Model:
    try:
        return model.model_validate(found)
    except ValidationError as error:
        first: Mapping[str, Any] = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(shown(str(key)) for key in first["loc"]) or "the body"
        raise Refusal("malformed", f"{where}: {first['msg']}") from None


def shown(text: str, most: int = 40) -> str:
    """A client's own word, fit to be shown to it."""
    start = text[:most].encode("ascii", "backslashreplace").decode()
    return start + "..." if len(text) > most else start
