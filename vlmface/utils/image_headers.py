"""Reject images that cost far more to read than their pixels, by their headers.

A few kilobytes can claim gigabytes of tags, thousands of scans or a million chunks, on each of
which an image library spends time and memory before any limit on pixels applies. `check` walks the
structure of a file without decoding it. The limits are far above what cameras and editors write.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Callable, Iterable
from itertools import islice
from mmap import mmap
from typing import NoReturn

from vlmface.errors import UserError

MAX_SEGMENTS = 1_000  # of a JPEG, and boxes of a JPEG 2000 or AVIF file
MAX_SCANS = 50  # of a JPEG: 10 are usual in a progressive one
MAX_FILL_BYTES = 4_096  # that a JPEG may have between its segments
MAX_EXIF_BYTES = 1_000_000
MAX_RESOURCES = 1_000  # of Photoshop, in a JPEG
MAX_CHUNKS = 20_000  # of a PNG without its pixels, and of a WebP file
MAX_PIXEL_CHUNKS = 100_000  # of a PNG
MAX_TEXTS = 100  # of a PNG
MAX_PACKED_TEXTS = 16  # each of which unpacks to at most 1 MiB
MAX_BLOCKS = 4_096  # of a GIF before its first picture
MAX_TAGS = 2_000  # of a TIFF directory
MAX_STRIPS = 65_536  # and tiles of a TIFF
MAX_SLOW = 2_000_000  # pixels and bytes of formats that Pillow decodes in Python
# Of TIFF: none, CCITT, LZW, JPEG, deflate (two codes), PackBits. Others, such as LZMA, may take
# gigabytes for their dictionaries.
_TIFF_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946)
_TIFF_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
}
_WIDTH, _HEIGHT, _COMPRESSION, _ORIENTATION = 256, 257, 259, 274
_STRIPS, _TILE_WIDTH, _TILE_HEIGHT, _TILES = (273, 279), 322, 323, (324, 325)
_SUBDIRECTORIES = (34665, 34853, 40965)  # EXIF, GPS, interoperability
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_TIFF_START = re.compile(rb"II\*\0|MM\0\*")

Data = bytes | mmap


def check(data: Data, name: str) -> bytes | None:
    """Check the structure of an encoded picture.

    Args:
        data: The file's content.
        name: What messages call the file.

    Returns:
        The EXIF block of a PNG, which may follow the pixels; None for everything else.

    Raises:
        UserError: Reading the file would take far more time or memory than its pixels do.
    """
    walk = _WALKS.get(_kind(data[:16]))
    try:
        return walk(data, name) if walk else None
    except (IndexError, OverflowError, struct.error):
        return None  # cut off: the decoder's message is better


def _kind(head: bytes) -> str:
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\0*", b"MM*\0")):
        return "TIFF"
    if head.startswith(b"BM"):
        return "BMP"
    if head[4:8] == b"ftyp":
        return "AVIF"
    if head.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")):
        return "JPEG2000"
    return "PPM" if re.match(rb"P[0-6yf]", head) else ""


def _refuse(name: str, cause: str) -> NoReturn:
    raise UserError(
        f"{name} would cost far more to read than its pixels do: {cause}. Open it in an image "
        "editor and save it again as JPEG or PNG, without metadata"
    )


def _limit(name: str, description: str, count: int, limit: int) -> None:
    if count > limit:
        _refuse(name, f"it has more than {limit:,} {description}")


# --- JPEG -----------------------------------------------------------------------------------------


def _jpeg(data: Data, name: str) -> None:
    position, segments, filled, resources = 2, 0, 0, 0
    exif = b""
    components = 0
    while True:
        start = data.find(b"\xff", position)
        filled += (start if start >= 0 else len(data)) - position
        _limit(name, "bytes between its segments", filled, MAX_FILL_BYTES)
        if start < 0:
            return
        marker = data[start + 1]
        if marker in (0x00, 0xFF):
            filled += 1
            position = start + (2 if marker == 0 else 1)
            continue
        segments += 1
        _limit(name, "segments", segments, MAX_SEGMENTS)
        if 0xD0 <= marker <= 0xD9 or 0xF0 <= marker <= 0xFD or marker == 0xC8:
            position = start + 2  # without a length
            continue
        if marker < 0xC0:
            return  # the decoder's to refuse
        size = max(2, int.from_bytes(data[start + 2 : start + 4], "big"))
        position = start + 2 + size
        if marker in (0xC0, 0xC1, 0xC2):
            components, progressive = data[start + 9], marker == 0xC2
        elif marker in (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xDE):
            _refuse(name, f"its coding, SOF{marker - 0xC0}, is one that cameras do not use")
        elif marker == 0xDA:
            break
        elif marker in (0xE1, 0xE2):
            exif += _jpeg_metadata(data[start + 4 : position], name)
            _limit(name, "bytes of EXIF", len(exif), MAX_EXIF_BYTES)
        elif marker == 0xED:
            resources += data[start + 4 : position].count(b"8BIM")
            _limit(name, "Photoshop resources", resources, MAX_RESOURCES)
    _check_exif(exif, name)
    if components and (progressive or data[start + 4] < components):
        _check_scans(data, position, name)


def _jpeg_metadata(segment: bytes, name: str) -> bytes:
    """Check a segment; returns the EXIF in it."""
    if segment.startswith(b"Exif\0\0"):
        return segment[6:]
    if segment.startswith(b"MPF\0"):
        _check_exif(segment[4:], name)
    return b""


def _check_scans(data: Data, position: int, name: str) -> None:
    """The scans after the first one. All are decoded before a picture of several scans is shown."""
    scans, segments = 1, 0
    while match := _JPEG_MARKER.search(data, position):
        position, marker = match.end(), data[match.end() - 1]
        if marker == 0x01:  # without a length
            continue
        if marker < 0xC0 or marker in (0xD8, 0xD9):  # the decoder stops here
            return
        scans += marker == 0xDA
        segments += 1
        _limit(name, "scans", scans, MAX_SCANS)
        _limit(name, "segments", segments, MAX_SEGMENTS)
        position += int.from_bytes(data[position : position + 2], "big")


# --- EXIF and TIFF --------------------------------------------------------------------------------


class _Directory:
    """The tags of a TIFF directory: {tag: (type, count, where its value is stored)}. `size`: bytes
    of all values that lie in the file, those that several tags share counted several times."""

    def __init__(self, data: Data, name: str) -> None:
        self.data, self.name = data, name
        self.order = "<" if data[0] == 0x49 else ">"
        self.big = 0x2B in (data[2], data[3])
        self.tags: dict[int, tuple[int, int, int]] = {}
        self.size = self.count = 0

    def first(self) -> int:
        where = 8 if self.big else 4
        return self._number(where, 8 if self.big else 4)

    def read(self, start: int) -> None:
        """Add the tags of the directory that starts there, as far as they are in the file: Pillow
        continues with those before damaged ones. Raises UserError."""
        with contextlib.suppress(OverflowError, struct.error):
            self._read(start)

    def _read(self, start: int) -> None:
        width = 8 if self.big else 4
        count = self._number(start, 8 if self.big else 2)
        start += 8 if self.big else 2
        self.count += count
        _limit(self.name, "tags", self.count, MAX_TAGS)
        for at in range(start, start + count * (4 + 2 * width), 4 + 2 * width):
            tag, kind = struct.unpack_from(f"{self.order}HH", self.data, at)
            values = self._number(at + 4, width)
            where, size = at + 4 + width, values * _TIFF_SIZES.get(kind, 0)
            if size > width:
                where = self._number(where, width)
                self.size += min(size, max(0, len(self.data) - where))
            self.tags[tag] = kind, values, where

    def value(self, tag: int, default: int = 0) -> int:
        """The first number of a tag; the default if the file has none."""
        kind, _, where = self.tags.get(tag, (1, 0, len(self.data)))
        try:
            return self._number(where, _TIFF_SIZES.get(kind, 1))
        except (OverflowError, struct.error):
            return default

    def values(self, tag: int) -> Iterable[int]:
        """All numbers of a tag that lie in the file."""
        kind, count, where = self.tags.get(tag, (4, 0, 0))
        code = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind, "B")
        count = min(count, max(0, len(self.data) - where) // struct.calcsize(f"<{code}"))
        if not count:
            return ()
        return struct.unpack_from(f"{self.order}{count}{code}", self.data, where)

    def _number(self, where: int, width: int) -> int:
        code = {1: "B", 2: "H", 4: "I", 8: "Q"}[width]
        return int(struct.unpack_from(self.order + code, self.data, where)[0])


def orientation_of(exif: bytes) -> int | None:
    """The orientation (1 to 8) in an EXIF block, None without a valid one."""
    directory = _Directory(exif, "EXIF")
    try:
        directory.read(directory.first())
        orientation = directory.value(_ORIENTATION)
    except (IndexError, struct.error, KeyError, UserError):
        return None
    return orientation if 1 <= orientation <= 8 else None


def _check_exif(exif: bytes, name: str) -> None:
    if len(exif) < 8:
        return
    directory = _Directory(exif, name)
    directory.read(directory.first())
    _limit(name, "bytes in its EXIF tags", directory.size, MAX_EXIF_BYTES)


def _tiff(data: Data, name: str) -> None:
    directory = _Directory(data, name)
    directory.read(directory.first())
    for tag in _SUBDIRECTORIES:
        if start := directory.value(tag):
            inner = _Directory(data, name)
            inner.read(start)
            directory.size += inner.size
    if directory.size > max(len(data), MAX_EXIF_BYTES):
        _refuse(name, f"its tags claim {directory.size:,} bytes, the file has {len(data):,}")
    compression = directory.value(_COMPRESSION, 1)
    if compression not in _TIFF_COMPRESSIONS:
        _refuse(name, f"its TIFF compression, {compression}, is not one of those read here")
    strips = max(
        (directory.tags[tag][1] for tag in (*_STRIPS, *_TILES) if tag in directory.tags), default=0
    )
    _limit(name, "strips or tiles", strips, MAX_STRIPS)
    pixels = directory.value(_WIDTH) * directory.value(_HEIGHT)
    tile = directory.value(_TILE_WIDTH) * directory.value(_TILE_HEIGHT)
    if tile > 4 * pixels + 2**20:
        _refuse(name, f"a tile has {tile:,} pixels, the picture {pixels:,}")
    if compression == 7:
        scans = islice(re.finditer(rb"\xff\xda", data), strips + MAX_SCANS + 1)
        _limit(name, "scans", sum(1 for _ in scans) - strips, MAX_SCANS)
    elif compression != 1:
        stored = max(sum(directory.values(tag)) for tag in (_STRIPS[1], _TILES[1]))
        if stored > 2 * len(data):
            _refuse(name, f"its strips claim {stored:,} bytes, the file has {len(data):,}")


# --- PNG, GIF, WebP -------------------------------------------------------------------------------


def _png(data: Data, name: str) -> bytes | None:
    position, pixels, others, texts, packed = 8, 0, 0, 0, 0
    exif = None
    while position + 8 <= len(data):
        (size,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        if kind == b"IDAT":
            pixels += 1
            _limit(name, "chunks of pixels", pixels, MAX_PIXEL_CHUNKS)
        else:
            others += 1
            _limit(name, "chunks", others, MAX_CHUNKS)
            texts += kind in (b"tEXt", b"zTXt", b"iTXt")
            _limit(name, "texts", texts, MAX_TEXTS)
            packed += kind in (b"zTXt", b"iTXt", b"iCCP")
            _limit(name, "packed texts and profiles", packed, MAX_PACKED_TEXTS)
            if kind == b"eXIf":
                exif = data[position + 8 : position + 8 + size]
            elif kind == b"IEND":
                break
        position += 12 + size
    return exif


def _gif(data: Data, name: str) -> None:
    """Walks as Pillow does, which reads on after an extension whose first block is empty."""
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    blocks = 0

    def block() -> bytes:
        nonlocal position, blocks
        size = data[position]
        start, position, blocks = position + 1, position + 1 + size, blocks + 1
        _limit(name, "blocks before its first picture", blocks, MAX_BLOCKS)
        return data[start:position]

    while (kind := data[position]) not in (0x2C, 0x3B):  # a picture, the end
        position += 1
        blocks += 1
        _limit(name, "blocks before its first picture", blocks, MAX_BLOCKS)
        if kind != 0x21:
            continue
        label = data[position]
        position += 1
        first = block()
        if label == 0xFE and not first:
            continue
        if label == 0xFF and first.startswith(b"NETSCAPE2.0"):
            block()
        while block():
            pass


def _webp(data: Data, name: str) -> None:
    position, chunks = 12, 0
    while position + 8 <= len(data):
        (size,) = struct.unpack_from("<I", data, position + 4)
        position += 8 + size + size % 2
        chunks += 1
        _limit(name, "chunks", chunks, MAX_CHUNKS)


# --- boxes: AVIF, JPEG 2000 -----------------------------------------------------------------------


def _boxes(data: Data, name: str, start: int, end: int) -> dict[bytes, tuple[int, int]]:
    """{type: (start, end) of the content of the first such box}."""
    boxes: dict[bytes, tuple[int, int]] = {}
    count = 0
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start + 8)
            head = 16
        size = size or end - start
        if size < head:
            break
        boxes.setdefault(kind, (start + head, min(end, start + size)))
        start += size
        count += 1
        _limit(name, "boxes", count, MAX_SEGMENTS)
    return boxes


def _avif(data: Data, name: str) -> None:
    _boxes(data, name, 0, len(data))
    for number, match in enumerate(_TIFF_START.finditer(data)):
        _limit(name, "EXIF blocks", number, MAX_TEXTS)
        # Pillow reads all tags as it opens an AVIF file.
        _check_exif(data[match.start() : match.start() + 2 * MAX_EXIF_BYTES], name)


def _jpeg2000(data: Data, name: str) -> None:
    start = 0
    if data[0] != 0xFF:
        boxes = _boxes(data, name, 0, len(data))
        _boxes(data, name, *boxes.get(b"jp2h", (0, 0)))
        start, _ = boxes.get(b"jp2c", (len(data), 0))
    position, markers = start + 2, 0
    while data[position + 1] not in (0x90, 0xD9):  # a tile, the end
        position += 2 + struct.unpack_from(">H", data, position + 2)[0]
        markers += 1
        _limit(name, "markers", markers, MAX_SEGMENTS)


# --- formats that Pillow decodes in Python --------------------------------------------------------


def _bmp(data: Data, name: str) -> None:
    header, width, height, _, compression = struct.unpack_from("<IiiII", data, 14)
    if header >= 40 and compression in (1, 2):
        _limit_slow(name, "a bitmap with run lengths", abs(width * height), len(data))


def _ppm(data: Data, name: str) -> None:
    head = _PPM_HEADER.match(data[:4096])
    if head is None:
        _refuse(name, "it has no PPM header in its first 4,096 bytes")
    kind, width, height, most = head.groups(b"0")
    pixels = int(width) * int(height)
    if kind in b"P1P2P3":
        _limit_slow(name, "a PPM file of text", pixels, len(data))
        comments = sum(1 for _ in re.finditer(b"#", data))
        _limit(name, "comments", comments, MAX_TEXTS)
    elif kind in (b"P5", b"P6") and int(most) not in (255, 65535):
        _limit_slow(name, f"a PPM file with {int(most)} as its largest value", pixels, 0)
    elif kind == b"P6" and int(most) != 255:
        _limit_slow(name, "a PPM file of 16 bits", pixels, 0)


_PPM_HEADER = re.compile(
    rb"(P[1-6fy]\w*)\s(?:\s|#[^\r\n]*[\r\n])*(\d{1,9})\s(?:\s|#[^\r\n]*[\r\n])*(\d{1,9})\s"
    rb"(?:(?:\s|#[^\r\n]*[\r\n])*(\d{1,9}))?"
)


def _limit_slow(name: str, description: str, pixels: int, size: int) -> None:
    if max(pixels, size) > MAX_SLOW:
        _refuse(name, f"{description} is slow to decode, and this one has {pixels:,} pixels")


_WALKS: dict[str, Callable[[Data, str], bytes | None]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "GIF": _gif,
    "WEBP": _webp,
    "TIFF": _tiff,
    "AVIF": _avif,
    "JPEG2000": _jpeg2000,
    "BMP": _bmp,
    "PPM": _ppm,
}
