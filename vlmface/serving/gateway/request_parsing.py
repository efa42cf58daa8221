"""Parse a request's body into an `AnalyzeRequest`: with limits on size and time, in memory only."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from vlmface.serving.gateway.http_errors import RequestError
from vlmface.serving.gateway.schemas import Faces, FormBody, JsonBody
from vlmface.serving.gateway.settings import Settings

FORM_TYPE, JSON_TYPE = "multipart/form-data", "application/json"
MAX_PARTS = 40  # of a form
MAX_PART_HEADER_BYTES = 2_000
MAX_FIELD_BYTES = 1_000  # of a part that is not a file
MAX_JSON_VALUES = 200  # objects, arrays and commas in JSON, in addition to those of boxes
_LINK = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*):")
_DATA_URI = re.compile(r"\s*data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class AnalyzeRequest:
    """A parsed request.

    Attributes:
        image: The bytes of an image file.
        tasks: None: all tasks.
        faces: Which faces are detected; None: the model's default. No effect with `boxes`.
        boxes: The faces, in pixels.
    """

    image: bytes
    tasks: Sequence[str] | None
    faces: Faces | None
    boxes: Sequence[Sequence[float]] | None = None


async def parse_request(request: Request, settings: Settings) -> AnalyzeRequest:
    """Read and parse the body of a request. Raises RequestError."""
    content_type, options = parse_options_header(request.headers.get("content-type", ""))
    if content_type not in (FORM_TYPE.encode(), JSON_TYPE.encode()):
        raise RequestError(
            "media_type", f"this Content-Type is not supported: send {FORM_TYPE} or {JSON_TYPE}"
        )
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestError("media_type", "the body is compressed: send it uncompressed")
    body = await _read_body(request, settings)
    if content_type == JSON_TYPE.encode():
        return _parse_json(body, settings)
    return _parse_form(body, options.get(b"boundary", b""))


async def _read_body(request: Request, settings: Settings) -> bytes:
    """The limit applies to the bytes that arrive, whatever Content-Length claims."""
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for piece in request.stream():
                body += piece
                if len(body) > settings.max_bytes:
                    raise RequestError(
                        "too_large",
                        f"the body has more than {settings.max_mb:g} MB: shrink the picture, or "
                        "crop the face",
                    )
    except TimeoutError:
        raise RequestError(
            "slow", f"the body did not arrive within {settings.body_timeout_s:g} s", close=True
        ) from None
    except ClientDisconnect:
        raise RequestError("gone", "the client has disconnected") from None
    return bytes(body)


# --- JSON -----------------------------------------------------------------------------------------


def _parse_json(body: bytes, settings: Settings) -> AnalyzeRequest:
    # A base64 picture contains none of these characters: a body with many of them is nested or long
    # without need, and would be far larger in memory than it is here.
    if sum(body.count(mark) for mark in b"[{,") > MAX_JSON_VALUES + 6 * settings.max_faces:
        raise RequestError("malformed", "the JSON has too many values, or is nested too deeply")
    try:
        content = json.loads(body.decode("utf-8"), object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise RequestError("malformed", f"the body is not valid JSON: {error}") from None
    except UnicodeDecodeError:
        raise RequestError("malformed", "the JSON is not in UTF-8") from None
    except (ValueError, RecursionError):
        raise RequestError("malformed", "the JSON has a number that is too long") from None
    parsed = _validate(JsonBody, content)
    if parsed.boxes is not None and parsed.faces not in (None, "none"):
        raise RequestError(
            "box", f"faces is {parsed.faces}, but there are boxes: leave out one of them"
        )
    return AnalyzeRequest(_decode_image(parsed.image), parsed.tasks, parsed.faces, parsed.boxes)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise RequestError("malformed", "the JSON has a field twice")
    return fields


def _decode_image(text: str) -> bytes:
    """The bytes of an image file in base64, bare or as a data URI."""
    link = _LINK.match(text, 0, 100)
    start = _DATA_URI.match(text, 0, 200)
    if link and not start:
        kind = "data: URI without a base64 picture" if link[1].lower() == "data" else "link"
        raise RequestError(
            "link",
            f"image is a {kind}, and the gateway does not fetch URLs: send the file's bytes in "
            "base64",
        )
    content = text[start.end() :] if start else text
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(
            "picture", "image is not in base64: send the file's bytes, not its name"
        ) from None


# --- forms ----------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A part of a multipart form."""

    name: str
    is_file: bool
    content: bytes


def _parse_form(body: bytes, boundary: bytes) -> AnalyzeRequest:
    parts = _split_parts(body, boundary)
    images = [part for part in parts if part.name == "image"]
    if len(images) != 1 or not images[0].is_file:
        cause = f"there are {len(images)} images" if len(images) != 1 else "image is text"
        raise RequestError(
            "malformed", f"{cause}: send one file, as `curl -F image=@face.jpg` does"
        )
    fields: dict[str, Any] = {}
    for part in parts:
        if part.name == "tasks":
            fields.setdefault("tasks", []).extend(re.findall(r"[^\s,]+", _decode_text(part)))
        elif part.name in fields:
            raise RequestError("malformed", f"{excerpt(part.name)} was sent twice")
        elif part.name != "image":
            fields[part.name] = _decode_text(part)
    form = _validate(FormBody, fields)
    return AnalyzeRequest(images[0].content, form.tasks, form.faces)


def _split_parts(body: bytes, boundary: bytes) -> list[Part]:
    """The parts of a form (RFC 7578), in memory. Not `Request.form`, which writes large files to
    disk."""
    if not 1 <= len(boundary) <= 70:
        raise RequestError("malformed", "Content-Type has no boundary of 1 to 70 characters")
    collector = _PartCollector()
    try:
        parser = MultipartParser(
            boundary, cast(Any, collector.callbacks()), max_header_size=MAX_PART_HEADER_BYTES
        )
        parser.write(body)
        parser.finalize()
    except MultipartParseError:
        collector.is_complete = False
    if not collector.is_complete:
        raise RequestError(
            "malformed", f"the form is damaged, cut off, or has over {MAX_PARTS} parts"
        )
    return [_parse_part(headers, bytes(content)) for headers, content in collector.parts]


class _PartCollector:
    """What the parser's callbacks collect.

    Attributes:
        parts: (headers, content) of each part.
        is_complete: Whether the form ended with its last boundary.
    """

    def __init__(self) -> None:
        self.parts: list[tuple[dict[bytes, bytes], bytearray]] = []
        self.is_complete = False
        self._name, self._value = bytearray(), bytearray()

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin_part,
            "on_part_data": self._add_data,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise MultipartParseError("too many parts")
        self.parts.append(({}, bytearray()))

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1][1].extend(data[start:end])

    def _end_header(self) -> None:
        self.parts[-1][0][bytes(self._name).strip().lower()] = bytes(self._value).strip()
        self._name, self._value = bytearray(), bytearray()

    def _end(self) -> None:
        self.is_complete = True


def _parse_part(headers: Mapping[bytes, bytes], content: bytes) -> Part:
    disposition, options = parse_options_header(headers.get(b"content-disposition"))
    if disposition != b"form-data" or b"name" not in options:
        raise RequestError("malformed", "a part of the form has no name")
    name = options[b"name"].decode("utf-8", "replace")
    return Part(name, b"filename" in options, content)


def _decode_text(part: Part) -> str:
    if part.is_file or len(part.content) > MAX_FIELD_BYTES:
        cause = "a file" if part.is_file else "too long"
        raise RequestError("malformed", f"{excerpt(part.name)} is {cause}: only image is a file")
    try:
        return part.content.decode("utf-8")
    except UnicodeDecodeError:
        raise RequestError("malformed", f"{excerpt(part.name)} is not in UTF-8") from None


# --- both -----------------------------------------------------------------------------------------


def _validate(model: type[Model], content: Any) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first: Mapping[str, Any] = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(excerpt(str(key)) for key in first["loc"]) or "the body"
        raise RequestError("malformed", f"{where}: {first['msg']}") from None


def excerpt(text: str, max_length: int = 40) -> str:
    """The start of a client's text as ASCII, for an error message."""
    start = text[:max_length].encode("ascii", "backslashreplace").decode()
    return start + "..." if len(text) > max_length else start
