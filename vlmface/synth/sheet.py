"""Contact sheets of rendered faces, scenes, or clips as strips of frames."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from vlmface.errors import UserError
from vlmface.schema import AULabel, FaceSample
from vlmface.synth.sharded_dataset import RenderOptions
from vlmface.utils import contact_sheet

STRIP = 8  # frames of a clip that are shown, side by side


def write_sheet(
    path: str | Path, name: str, split: str, options: RenderOptions, *, workers: int | None = None
) -> Path:
    """Draw the first rows of a split of a rendered set on one picture.

    Args:
        path: of the picture, PNG or JPEG by its ending.
        name: of the set: synth, synth_v2, synth_scenes or synth_clips.
        split: of the set.
        options: which rows; `n` is 1 to 1024.
        workers: processes that render, by default as many as there are cores.

    Raises:
        UserError: one of them is out of range.
    """
    import pyarrow.parquet as pq

    contact_sheet.picture_format(path)  # before anything is rendered
    if options.n is None or not 0 < options.n <= 1024:
        raise UserError(f"a sheet shows 1 to 1024 rows, not {options.n}")
    rendered, further = _set(name)
    rows: list[dict] = []
    for shard in rendered.render_split(
        split, options.n, seed=options.seed, size=options.size, workers=workers, **further
    ):
        rows += pq.read_table(shard).to_pylist()
    samples = [FaceSample.from_row(row) for row in rows[: options.n]]
    tiles = [tile for sample in samples for tile in _tiles(sample)]
    contact_sheet.write(path, contact_sheet.draw(tiles, STRIP if name == "synth_clips" else None))
    return Path(path)


def _set(name: str) -> tuple[Any, dict[str, int]]:
    from vlmface.synth import clips, dataset, scenes
    from vlmface.synth.v2.dataset import FACES_V2

    rendered_sets = (dataset.FACES, FACES_V2, scenes.SCENES, clips.CLIPS)
    sets = {rendered.name: rendered for rendered in rendered_sets}
    if name not in sets:
        raise UserError(f"{name!r} is not rendered: use one of {', '.join(sets)}")
    return sets[name], {"frames": clips.FRAMES} if name == "synth_clips" else {}


def _tiles(sample: FaceSample) -> list[contact_sheet.Tile]:
    if sample.frames is None:
        title, lines = sample.emotion or "no emotion", [contact_sheet.units(sample)]
        if sample.context:
            title = sample.context[0]
            lines.insert(0, f"{sample.meta['face_state']}, {sample.meta['object']}")
        return [contact_sheet.Tile(_picture(sample.image), title, tuple(lines))]
    tiles = []
    for k in range(0, len(sample.frames), -(-len(sample.frames) // STRIP)):
        strengths = {
            int(au): much for au, much in sample.meta["frame_aus"][k].items() if much >= 0.5
        }
        visible = FaceSample(
            sample.id,
            sample.dataset,
            aus=[AULabel(au, strengths[au], True) for au in sorted(strengths)],
        )
        title = f"frame {k}" if k else str(sample.emotion)
        tiles.append(
            contact_sheet.Tile(_picture(sample.frames[k]), title, (contact_sheet.units(visible),))
        )
    return tiles


def _picture(stored: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(stored["bytes"]))
