"""The one reader of text files: lists, tables and JSON of all data sets.

Spreadsheets, Windows tools and scripts write byte order marks, UTF-16, three kinds of line ends,
tabs or several spaces between fields, and headers in other letter case. What is unambiguous is
read; anything else is one message. No other module decodes a data set's text.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import re
import unicodedata
import zlib
from collections.abc import Iterable
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import BinaryIO

from vlmface.errors import UserError

DELIMITERS = (",", ";", "\t", "|")
# The marks of UTF-32 come first: that of UTF-16 is their beginning.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)
_LFS = b"version https://git-lfs"
_OTHER_KINDS = {
    b"\x1f\x8b": "compressed with gzip: unpack it with `gunzip`",
    b"BZh": "compressed with bzip2: unpack it with `bunzip2`",
    b"\xfd7zXZ": "compressed with xz: unpack it with `unxz`",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it with `unzstd`",
    b"PK\3\4": "a zip archive or a spreadsheet (xlsx): unpack it, or save the sheet as csv",
    b"\xd0\xcf\x11\xe0": "a spreadsheet (xls): save the sheet as csv",
    b"PAR1": "a Parquet file: give its name the ending .parquet",
}
_LINE_END = re.compile(r"\r\n|\r|\n")
_USUAL_ENCODINGS = ("cp1252", "cp1251", "shift_jis", "gb18030", "euc_kr")
_SHOWN = 40  # bytes on each side of one that is not UTF-8, shown in those
_BLOCK = 1 << 22  # bytes that are checked at once
MAX_UNPACKED = 4 << 30  # bytes of a file in a gzip file


def read_text(path: Path, encoding: str | None = None) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark. A file whose name
    ends in .gz is unpacked.

    Args:
        path: of the file.
        encoding: of a file without a byte order mark, instead of UTF-8.

    Raises:
        UserError: with the file, the byte, what was tried and the fix, for another encoding, a file
            that cannot be read, and one that is compressed otherwise or not text.
    """
    with _opened(path) as file:
        raw = _unpacked(file, path) if path.suffix.lower() == ".gz" else file.read()
    return _decode(raw, path, encoding)


def _unpacked(file: BinaryIO, path: Path) -> bytes:
    try:
        with gzip.open(file) as content:
            raw = content.read(MAX_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} is not a whole gzip file ({error}): take a fresh copy of it"
        ) from error
    if len(raw) > MAX_UNPACKED:
        raise UserError(
            f"{path} unpacks to more than {MAX_UNPACKED >> 30} GiB: unpack it with `gunzip` and "
            "split it, if it is a table"
        )
    return raw


def read_lines(path: Path) -> list[str]:
    """The lines of `read_text`, without their ends: "\\n", "\\r\\n" or "\\r" and no other, because
    texts may hold other separators (U+2028, U+0085) as they are."""
    return split_lines(read_text(path))


def split_lines(text: str) -> list[str]:
    """The lines of a text, as `read_lines`."""
    lines = _LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


def open_utf8(path: Path, whole: bool = True) -> Path | BytesIO:
    """What Arrow can read as UTF-8: the file itself if it is plain UTF-8, which is checked block by
    block (of the first block alone if not `whole`), else its text encoded again. Raises UserError
    as `read_text`."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with _opened(path) as file:
            block = file.read(_BLOCK)
            plain = not any(block.startswith(mark) for mark, _ in _MARKS)
            while block and plain:
                plain = b"\0" not in block
                if not block.isascii() or decoder.getstate()[0]:
                    decoder.decode(block)
                    plain = plain and codecs.BOM_UTF8 not in block
                block = file.read(_BLOCK) if whole else b""
            decoder.decode(b"", final=plain and whole)
    except UnicodeDecodeError:
        plain = False
    return path if plain else BytesIO(read_text(path).encode())


def split_header(line: str, default: str = ",") -> tuple[list[str], str]:
    """(column names without spaces around them, the delimiter) of a table's first line: the
    delimiter of DELIMITERS that occurs most often in it, `default` if none does."""
    order = (default, *(mark for mark in DELIMITERS if mark != default))
    delimiter = max(order, key=line.count)
    names = next(csv.reader([line], delimiter=delimiter), [])
    return [name.strip() for name in names], delimiter


def match_name(target: str, names: Iterable[str], where: object) -> str | None:
    """The one of `names` that is `target`: letter by letter, else up to letter case, spaces around
    it and invisible characters; None if there is none. Raises UserError if several are."""
    names = list(names)
    if target in names:
        return target
    near = [name for name in names if _plain(name) == _plain(target)]
    if len(near) > 1:
        raise UserError(
            f"{where} has the columns {' and '.join(map(repr, near))}, either of which may be "
            f"{target!r}: rename one of them, or name the column letter by letter"
        )
    return near[0] if near else None


def _plain(name: str) -> str:
    text = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in text if unicodedata.category(c) != "Cf").strip()


def _opened(path: Path) -> BinaryIO:
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file: give a text file")
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _decode(raw: bytes, path: Path, encoding_name: str | None = None) -> str:
    if raw.startswith(_LFS):
        raise UserError(f"{path} is a Git LFS pointer, not the data: run `git lfs pull` there")
    mark, encoding = next(
        ((m, e) for m, e in _MARKS if raw.startswith(m)), (b"", _known_encoding(encoding_name))
    )
    if not mark and encoding_name is None and (at := raw.find(b"\0")) >= 0:
        raise _not_text(raw, path) or _with_nul(raw, at, path)
    try:
        text = raw[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise _not_text(raw, path) or _undecodable(error, mark, path) from error
    # Files that were joined keep the marks of their parts.
    return re.sub("^\ufeff+", "", text, flags=re.MULTILINE) if "\ufeff" in text else text


def _known_encoding(name: str | None) -> str:
    try:
        TextIOWrapper(BytesIO(), encoding=name or "utf-8")  # base64 is a codec, but not of texts
        return codecs.lookup(name or "utf-8").name
    except LookupError as error:
        raise UserError(
            f"encoding={name!r} is unknown: use cp1252, latin-1, gb18030, ..."
        ) from error


def _not_text(raw: bytes, path: Path) -> UserError | None:
    kind = next((kind for mark, kind in _OTHER_KINDS.items() if raw.startswith(mark)), None)
    return UserError(f"{path} is {kind}") if kind else None


def _undecodable(error: UnicodeDecodeError, mark: bytes, path: Path) -> UserError:
    raw, start = error.object, error.start
    line = raw[:start].decode(error.encoding, "ignore").count("\n") + 1
    name = error.encoding.upper()
    why = f"its byte order mark states {name}" if mark else f"no byte order mark, {name} was tried"
    where = (
        f"{path}, line {line}: byte {raw[start : start + 1]!r} is not {name} (offset "
        f"{start + len(mark)}; {why}): save the file as UTF-8"
    )
    if guesses := {} if mark else _decoded_lines(raw, start):
        listed = ", ".join(f"{encoding}: {text!r}" for encoding, text in guesses.items())
        return UserError(
            f"{where}, for example in Excel as 'CSV UTF-8' or with `iconv -f ENCODING -t UTF-8 "
            f"{path.name}`, or name the encoding of a table, --encoding of `vlmface data init`. "
            f"That line reads in {listed}"
        )
    return UserError(f"{where}, or take a fresh copy")


def _decoded_lines(raw: bytes, start: int) -> dict[str, str]:
    """{encoding: the text around a byte} of the usual encodings that a whole file may have."""
    decoded = {}
    begin = max(raw.rfind(b"\n", 0, start), start - _SHOWN) + 1
    for encoding in _USUAL_ENCODINGS:
        try:
            raw.decode(encoding)
            text = raw[begin : start + _SHOWN].decode(encoding, "ignore")
        except UnicodeDecodeError:
            continue
        text = _LINE_END.split(text)[0]
        if text.isprintable():
            decoded[encoding] = text
    return decoded


def _with_nul(raw: bytes, at: int, path: Path) -> UserError:
    head = raw[:4096]
    zeros = [head[first::2].count(0) for first in (0, 1)]
    if max(zeros) * 8 < len(head):
        return UserError(
            f"{path}: byte 0 at offset {at} does not occur in text (UTF-8 was tried): take a fresh "
            "copy of the file"
        )
    name = "UTF-16BE" if zeros[0] > zeros[1] else "UTF-16LE"
    return UserError(
        f"{path}: byte 0 at offset {at}: this is {name} without a byte order mark (UTF-8 was "
        f"tried): save the file as UTF-8, for example with `iconv -f {name} -t UTF-8 {path.name}`"
    )
