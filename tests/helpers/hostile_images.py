"""Small files that would cost much to read as pictures."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

from helpers.hostile_requests import chunk, encoded, png
from helpers.samples import picture

BIG = (6000, 4000)  # 24 megapixels


def tags(count: int, size: int, *, kind: int = 1, entries: bytes = b"") -> bytes:
    """A TIFF block whose tags all claim the same `size` bytes."""
    claimed = b"".join(struct.pack("<HHII", 40_000 + i, kind, size, 8) for i in range(count))
    total = count + len(entries) // 12
    return (
        b"II*\0"
        + struct.pack("<I", 8 + size)
        + bytes(size)
        + struct.pack("<H", total)
        + entries
        + claimed
        + bytes(4)
    )


def tiff(*more: tuple[int, int, int, int], width: int = 64, height: int = 64) -> bytes:
    """An uncompressed grey TIFF; `more` are tags (tag, type, count, value) added or replaced."""
    kept = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, 1, 8),
        259: (3, 1, 1),
        262: (3, 1, 1),
        273: (4, 1, 8),
        277: (3, 1, 1),
        278: (4, 1, height),
        279: (4, 1, width * height),
    }
    kept |= {tag: rest for tag, *rest in more}  # type: ignore[misc]
    directory = b"".join(struct.pack("<HHII", tag, *rest) for tag, rest in sorted(kept.items()))
    body = bytes(4096)
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(body))
        + body
        + struct.pack("<H", len(kept))
        + directory
        + bytes(4)
    )


def directories(count: int) -> bytes:
    """A TIFF of so many pages, each of which points at the next."""
    one = tiff()[8 + 4096 :]
    start = 8 + 4096
    pages = b"".join(
        one[:-4] + struct.pack("<I", 0 if i == count - 1 else start + (i + 1) * len(one))
        for i in range(count)
    )
    return b"II*\0" + struct.pack("<I", start) + bytes(4096) + pages


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def jpeg(*segments: bytes) -> bytes:
    """A small JPEG with segments before its own."""
    plain = encoded(picture(1, (64, 48)), "JPEG")
    return plain[:2] + b"".join(segments) + plain[2:]


def scans(count: int, size: tuple[int, int], components: int = 1) -> bytes:
    """A progressive JPEG whose scans are all empty: two bytes of each end a band of blocks."""
    width, height = size
    blocks = -(-width // 8) * -(-height // 8)
    out = b"\xff\xd8" + segment(0xDB, b"\0" + bytes([1] * 64))
    planes = b"".join(bytes([i + 1, 0x11, 0]) for i in range(components))
    out += segment(0xC2, struct.pack(">BHHB", 8, height, width, components) + planes)
    table = bytes([1, *[0] * 15])
    out += segment(0xC4, b"\x00" + table + b"\0") + segment(0xC4, b"\x10" + table + b"\xe0")
    for i in range(components):
        out += segment(0xDA, bytes([1, i + 1, 0, 0, 0, 0])) + bytes(-(-blocks // 8))
    bits = "011111111111110" * (blocks // 32_766 + 1)
    bits += "1" * (-len(bits) % 8)
    run = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return out + (segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + run) * count + b"\xff\xd9"


def empty_scans(count: int, size: tuple[int, int], first: int = 0) -> bytes:
    """A progressive JPEG of three colours whose scans have no data at all."""
    width, height = size
    out = b"\xff\xd8" + segment(0xDB, b"\0" + bytes([1] * 64))
    planes = bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
    out += segment(0xC2, struct.pack(">BHHB", 8, height, width, 3) + planes)
    table = bytes([1, *[0] * 15])
    out += segment(0xC4, b"\x00" + table + b"\0") + segment(0xC4, b"\x10" + table + b"\0")
    out += segment(0xDA, bytes([3, 1, 0, 2, 0, 3, 0, 0, 0, first]))
    return (
        out
        + b"".join(segment(0xDA, bytes([1, 1 + i % 3, 0, 1, 63, first])) for i in range(count))
        + b"\xff\xd9"
    )


def gif(*blocks: bytes, frames: int = 1) -> bytes:
    screen = struct.pack("<6sHHBBB", b"GIF89a", 64, 64, 0x80, 0, 0) + bytes(6)
    frame = struct.pack("<BHHHHB", 0x2C, 0, 0, 64, 64, 0) + b"\2\2\x44\1\0"
    return screen + b"".join(blocks) + frame * frames + b"\x3b"


def webp_chunks(count: int) -> bytes:
    plain = encoded(picture(1, (64, 48)), "WEBP", lossless=True)
    body = (
        b"WEBP"
        + struct.pack("<4sII", b"VP8X", 10, 0x08)
        + struct.pack("<I", 63)[:3]
        + (struct.pack("<I", 47)[:3])
        + plain[12:]
        + struct.pack("<4sI", b"JUNK", 0) * count
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def boxes(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def bmp_rle(width: int, height: int, content: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(content), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + head + bytes(range(256)) * 4 + content


def _text(kind: bytes, count: int) -> list[bytes]:
    packed = zlib.compress(b"a" * 1_000_000, 9)
    middle = b"k\0\0" if kind == b"zTXt" else b"k\0\1\0\0\0"
    return [chunk(kind, middle + packed)] * count


def _profile(exif: bytes) -> bytes:
    """EXIF as ImageMagick hides it in a PNG."""
    return chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  8\n" + exif.hex().encode())


def _saved(mode: str, kind: str, **how: Any) -> bytes:
    return encoded(Image.new(mode, BIG), kind, **how)


def _inner_tags() -> bytes:
    """A TIFF with few tags, whose EXIF directory has the costly ones."""
    body = bytes(100_000)
    start = len(tiff((34665, 4, 1, 0))) + len(body)
    inner = b"".join(struct.pack("<HHII", 40_000 + i, 1, len(body), 8) for i in range(1_500))
    return tiff((34665, 4, 1, start)) + body + struct.pack("<H", 1_500) + inner + bytes(4)


def _overlapping(strips: int, size: int) -> bytes:
    """A TIFF whose strips are all the same bytes."""
    start = 8 + 4096 + 2 + 10 * 12 + 4
    arrays = struct.pack("<I", start + 8 * strips) * strips + struct.pack("<I", size) * strips
    file = tiff(
        (259, 3, 1, 8),
        (278, 4, 1, 1),
        (273, 4, strips, start),
        (279, 4, strips, start + 4 * strips),
        width=4_000,
        height=strips,
    )
    return file + bytes(start - len(file)) + arrays + bytes(size)


def _exif_in_parts() -> bytes:
    """No part is a costly block, but Pillow joins them."""
    block = tags(1_500, 90_000)
    return jpeg(
        segment(0xE1, b"Exif\0\0" + block[:60_000]), segment(0xE1, b"Exif\0\0" + block[60_000:])
    )


def _jpeg2000_boxes() -> bytes:
    plain = encoded(picture(1, (64, 48)), "JPEG2000")
    return plain[:12] + boxes(b"free", b"") * 300_000 + plain[12:]


def _jpeg2000_markers() -> bytes:
    plain = encoded(picture(1, (64, 48)), "JPEG2000", no_jp2=True)
    size = 4 + struct.unpack(">H", plain[4:6])[0]  # of the marker that holds the picture's size
    return plain[:size] + segment(0x65, b"") * 300_000 + plain[size:]


# Refused by their headers, whoever opens them.
REFUSED: dict[str, Callable[[], bytes]] = {
    "jpeg_scans": lambda: scans(2_000, (4800, 4800)),
    "jpeg_scans_without_data": lambda: empty_scans(5_000, BIG),
    "jpeg_scans_hidden": lambda: scans(2_000, (4800, 4800)).replace(
        b"\xff\xda\0\x08\x01\x01\0\x01", b"\xff\x01\xff\xda\0\x08\x01\x01\0\x01"
    ),
    "jpeg_segments": lambda: jpeg(*[segment(0xE5, b"")] * 500_000),
    "jpeg_fill": lambda: jpeg(b"\xff" * 3_000_000),
    "jpeg_junk": lambda: jpeg(segment(0xE5, b"") + bytes(3_000_000)),
    "jpeg_exif": lambda: jpeg(segment(0xE1, b"Exif\0\0" + tags(1_500, 40_000))),
    "jpeg_exif_in_parts": _exif_in_parts,
    "jpeg_exif_long": lambda: jpeg(*[segment(0xE1, b"Exif\0\0" + bytes(60_000))] * 50),
    "jpeg_frames": lambda: jpeg(segment(0xE2, b"MPF\0" + tags(1_500, 40_000))),
    "jpeg_resources": lambda: jpeg(
        *[segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5_000)] * 20
    ),
    "jpeg_arithmetic": lambda: scans(1, BIG).replace(b"\xff\xc2", b"\xff\xca", 1),
    "jpeg_resources_apart": lambda: jpeg(
        *[segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 500)] * 200
    ),
    "png_chunks": lambda: png(64, 64, chunk(b"vpAg", b"") * 300_000),
    "png_frames": lambda: png(64, 64, chunk(b"fcTL", bytes(26)) * 30_000),
    "png_empty_pixels": lambda: png(64, 64, chunk(b"IDAT", b"") * 300_000),
    "png_texts": lambda: png(64, 64, *_text(b"zTXt", 60)),
    "png_texts_unicode": lambda: png(64, 64, *_text(b"iTXt", 60)),
    "gif_comment": lambda: gif(b"\x21\xfe" + (b"\xff" + b"a" * 255) * 30_000 + b"\0"),
    "gif_comments": lambda: gif(b"\x21\xfe\1a\0" * 300_000),
    "gif_extensions": lambda: gif(b"\x21\xf9\0" + b"\1a" * 300_000 + b"\0"),
    "gif_junk": lambda: gif(b"\1" * 1_000_000),
    "webp_chunks": lambda: webp_chunks(300_000),
    "avif_exif": lambda: encoded(picture(1, (64, 48)), "AVIF", exif=tags(1_500, 60_000)),
    "avif_exif_blocks": lambda: encoded(picture(1, (64, 48)), "AVIF") + b"II*\0" * 500_000,
    "avif_boxes": lambda: encoded(picture(1, (64, 48)), "AVIF") + boxes(b"free", b"") * 300_000,
    "jpeg2000_boxes": _jpeg2000_boxes,
    "jpeg2000_markers": _jpeg2000_markers,
    "tiff_tags": lambda: tags(200, 5_000_000, entries=tiff()[8 + 4096 + 2 : -4]),
    "tiff_many_tags": lambda: tags(20_000, 100_000),
    "tiff_inner_tags": _inner_tags,
    "tiff_tags_and_a_damage": lambda: (
        tags(200, 5_000_000, entries=tiff()[8 + 4096 + 2 : -4])[: -4 - 12]
        + struct.pack("<HHII", 34665, 4, 9, 4_000_000_000)
        + bytes(4)
    ),
    "tiff_strips": lambda: tiff((273, 4, 900_000, 8), (279, 4, 900_000, 8)) + bytes(3_700_000),
    "tiff_tile": lambda: tiff(
        (322, 4, 1, 60_000), (323, 4, 1, 60_000), (324, 4, 1, 8), (325, 4, 1, 64)
    ),
    "tiff_strips_over_each_other": lambda: _overlapping(5_000, 500_000),
    "tiff_scans": lambda: tiff((259, 3, 1, 7)) + b"\xff\xda" * 300_000,
    "tiff_lzma": lambda: tiff((259, 3, 1, 34_925)),
    "bmp_runs": lambda: bmp_rle(*BIG, b"\1\1\0\0" * 4_000),
    "ppm_text": lambda: b"P3 2000 2000 255\n" + b"1 " * 1_500_000,
    "ppm_comments": lambda: b"P2 1000 1000 255\n" + b"#\n" * 300_000 + b"1 " * 1000,
    "ppm_header": lambda: b"P6 #" + b"a" * 3_000_000 + b"\n64 64 255\n" + bytes(64 * 64 * 3),
    "ppm_levels": lambda: b"P6 6000 4000 100\n" + bytes(1000),
}


# Within all limits of headers: done, or ended by the limits on memory and time.
DEAR: dict[str, Callable[[], bytes]] = {
    "jpeg_24mp": lambda: scans(5, BIG),
    "jpeg_50_scans": lambda: scans(49, BIG),
    "jpeg_50_scans_without_data": lambda: empty_scans(48, BIG),
    "jpeg_four_colours": lambda: scans(5, BIG, 4),
    "png_24mp": lambda: _saved("RGBA", "PNG"),
    "png_16_bit": lambda: encoded(Image.new("I;16", BIG), "PNG"),
    "png_exif": lambda: png(64, 64, chunk(b"eXIf", tags(200, 5_000_000))),
    "png_exif_turned": lambda: png(
        64,
        64,
        chunk(b"eXIf", tags(1, 1_000_000, kind=4, entries=struct.pack("<HHII", 0x112, 3, 1, 6))),
    ),
    "png_profile": lambda: png(64, 64, _profile(tags(1_500, 400_000))),
    "png_texts_few": lambda: png(64, 64, *_text(b"zTXt", 16)),
    "gif_24mp": lambda: _saved("P", "GIF"),
    "gif_frames": lambda: gif(frames=100_000),
    "webp_24mp": lambda: _saved("RGB", "WEBP", lossless=True),
    "webp_24mp_alpha": lambda: _saved("RGBA", "WEBP", lossless=True),
    "avif_24mp": lambda: _saved("RGB", "AVIF", speed=10),
    "jpeg2000_24mp": lambda: _saved("RGB", "JPEG2000"),
    "jpeg2000_8mp": lambda: encoded(Image.new("RGB", (3200, 2500)), "JPEG2000"),
    "tiff_24mp": lambda: _saved("RGBA", "TIFF", compression="tiff_deflate"),
    "tiff_lzw": lambda: _saved("CMYK", "TIFF", compression="tiff_lzw"),
    "tiff_float": lambda: _saved("F", "TIFF", compression="tiff_deflate"),
    "tiff_integer": lambda: _saved("I", "TIFF", compression="tiff_deflate"),
    "tiff_pages": lambda: directories(60_000),
    "bmp_24mp": lambda: _saved("1", "BMP"),
    "ppm_16_bit": lambda: b"P5 4000 4000 65535\n" + bytes(32_000_000),
}
