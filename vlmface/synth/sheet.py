"""The contact sheet of the rendered faces."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from vlmface import sheet
from vlmface.errors import UserError
from vlmface.schema import FaceSample


def write_sheet(
    path: str | Path, *, n: int, split: str, seed: int, size: int, workers: int | None = None
) -> Path:
    """Draw the first `n` faces of a split on one picture (PNG or JPEG by the name's ending)."""
    import pyarrow.parquet as pq

    from vlmface.synth import dataset

    sheet.picture_format(path)  # before anything is rendered
    if not 0 < n <= 1024:
        raise UserError(f"a sheet shows 1 to 1024 faces, not {n}")
    rows: list[dict] = []
    for shard in dataset.render_split(split, n, seed=seed, size=size, workers=workers):
        rows += pq.read_table(shard).to_pylist()
    tiles = []
    for sample in map(FaceSample.from_row, rows[:n]):
        face = Image.open(io.BytesIO(sample.image["bytes"]))
        tiles.append(sheet.Tile(face, str(sample.emotion), (sheet.units(sample),)))
    sheet.write(path, sheet.draw(tiles))
    return Path(path)
