"""Contact sheets: pictures with their labels written under them."""

from __future__ import annotations

import bisect
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vlmface.errors import UserError
from vlmface.schema import FaceSample
from vlmface.utils import files

TILE = 160  # pixels a side
TITLE, LINE = 22, 16  # pixels of the caption: its title, each further line
_MAX_CHARACTERS = 200  # of a caption that are measured
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


@dataclass(frozen=True)
class Tile:
    """A picture of any shape and its caption: a title and the lines under it."""

    image: Image.Image
    title: str
    lines: tuple[str, ...] = ()


def draw(tiles: Sequence[Tile | None], columns: int | None = None) -> Image.Image:
    """The tiles row by row on one picture; None leaves a place empty. `columns`: how many side by
    side, by default about as many as make the sheet square."""
    columns = columns or min(len(tiles), max(4, round((len(tiles) * 1.4) ** 0.5)))
    caption = TITLE + 6 + LINE * max((len(tile.lines) for tile in tiles if tile), default=0)
    height = -(-len(tiles) // columns) * (TILE + caption)
    sheet = Image.new("RGB", (columns * TILE, height), "white")
    pen = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(15), ImageFont.load_default(11)
    for k, tile in enumerate(tiles):
        if tile is None:
            continue
        x, y = k % columns * TILE, k // columns * (TILE + caption)
        scale = TILE / max(tile.image.size)
        width, height = (max(1, round(side * scale)) for side in tile.image.size)
        picture = tile.image.resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(picture, (x + (TILE - width) // 2, y + (TILE - height) // 2))
        pen.text((x + 4, y + TILE + 2), _fit(tile.title, large), fill="black", font=large)
        for i, line in enumerate(tile.lines):
            position = (x + 4, y + TILE + TITLE + LINE * i)
            pen.text(position, _fit(line, small), fill="#444444", font=small)
    return sheet


def picture_format(path: str | Path) -> str:
    """What Pillow calls the format that the name's ending asks for. Raises UserError."""
    if (suffix := Path(path).suffix.lower()) not in FORMATS:
        raise UserError(f"the sheet must be a .png or .jpg file, found {str(path)!r}")
    return FORMATS[suffix]


def write(path: str | Path, sheet: Image.Image) -> None:
    """Write the picture, whole or not at all, as PNG or JPEG by the name's ending."""
    buffer = io.BytesIO()
    sheet.save(buffer, picture_format(path), quality=90)
    files.atomic_write(path, buffer.getvalue())


def units(sample: FaceSample) -> str:
    """The AUs that are present with their FACS grades, "AU 6C 12D", or "no AU"."""
    present = " ".join(
        f"{label.au}{'' if label.intensity is None else '?ABCDE'[round(label.intensity)]}"
        for label in sample.aus or []
        if label.present
    )
    return f"AU {present}" if present else "no AU"


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text on one line, with as much left out of it as is needed to fit under a tile: ids
    differ at their ends."""
    text = " ".join(text.split())

    def shortened(length: int) -> str:
        first = length // 3
        return text if length == len(text) else f"{text[:first]}…{text[first - length :]}"

    def is_wide(length: int) -> bool:
        return font.getlength(shortened(length)) > TILE - 8

    # Every character is measured and at least about one pixel wide: more than these cannot fit.
    most = min(len(text), _MAX_CHARACTERS)
    length = bisect.bisect_left(range(1, most + 1), True, key=is_wide)
    return shortened(length) if length else ""
