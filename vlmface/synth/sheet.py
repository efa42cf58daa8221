"""A contact sheet: faces with their labels written under them."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vlmface import files
from vlmface.errors import UserError
from vlmface.schema import FaceSample

TILE, CAPTION = 160, 44


def write_sheet(
    path: str | Path, *, n: int, split: str, seed: int, size: int, workers: int | None = None
) -> Path:
    """Draw the first `n` faces of a split on one picture (PNG or JPEG by the name's ending)."""
    from vlmface.synth import dataset

    path = Path(path)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"the sheet must be a .png or .jpg file, found {str(path)!r}")
    if not 0 < n <= 1024:
        raise UserError(f"a sheet shows 1 to 1024 faces, not {n}")
    import pyarrow.parquet as pq

    rows: list[dict] = []
    for shard in dataset.render_split(split, n, seed=seed, size=size, workers=workers):
        rows += pq.read_table(shard).to_pylist()
    columns = min(n, max(4, round((n * 1.4) ** 0.5)))
    lines = -(-n // columns)
    sheet = Image.new("RGB", (columns * TILE, lines * (TILE + CAPTION)), "white")
    draw, font, small = (
        ImageDraw.Draw(sheet),
        ImageFont.load_default(15),
        ImageFont.load_default(11),
    )
    for k, row in enumerate(rows[:n]):
        sample = FaceSample.from_row(row)
        face = Image.open(io.BytesIO(sample.image["bytes"])).resize(
            (TILE, TILE), Image.Resampling.LANCZOS
        )
        x, y = k % columns * TILE, k // columns * (TILE + CAPTION)
        sheet.paste(face, (x, y))
        draw.text((x + 4, y + TILE + 2), str(sample.emotion), fill="black", font=font)
        units = " ".join(
            f"{label.au}{'?ABCDE'[round(label.intensity or 0)]}"
            for label in sample.aus or []
            if label.present
        )
        draw.text(
            (x + 4, y + TILE + 22), f"AU {units}" if units else "no AU", fill="#444444", font=small
        )
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG" if path.suffix.lower() == ".png" else "JPEG", quality=90)
    files.atomic_write(path, buffer.getvalue())
    return path
