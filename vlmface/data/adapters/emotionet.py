"""EmotioNet: web faces with AUs coded by hand or by machine (Benitez-Quiroz et al., CVPR 2016).

    EmotioNet_FACS_aws_2020_24600.csv   `URL,URL orig,'AU 1','AU 2',...`; 0, 1, 999 = unknown
    images/N_0000000001_00001.jpg       downloaded from URL; in any folder below, by its name

Quotes and spaces in the header and the URLs vary between copies. The list comes as xlsx: save its
sheet as csv. Many URLs are dead, so that most copies lack images: load with missing="drop". The
owners define no split of this list.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlmface.data.folds import random_split
from vlmface.data.rows import Rows, action_units, read_csv, require_path
from vlmface.data.text_files import match_name
from vlmface.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

TITLE = "EmotioNet"
HOME = "https://cbcsl.ece.ohio-state.edu/EmotionNetChallenge/"
LICENCE = "non-commercial research, agreement with the owners"
SPLITS = ("train", "test")  # ours: see random_split
AUS = (1, 2, 4, 5, 6, 9, 12, 17, 20, 25, 26, 43)
UNIT = re.compile(r"AU ?0?(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Options:
    """Options of EmotioNet.

    Args:
        labels: the list's name (default: the only csv file in the root).
        images: the folder below which the images are.
        aus: the AUs to read, by default the challenge's twelve.
        unknown: the code of an AU that was not annotated.
        test_list: a file that names the test images; by default a fifth is drawn.
    """

    labels: str | None = None
    images: str = "images"
    aus: Sequence[int] = AUS
    unknown: int = 999
    test_list: str | None = None


def read(root: Path, split: str, options: Options) -> Rows:
    """The images of the list that were downloaded."""
    aus, unknown = options.aus, options.unknown
    path = _list(root, options.labels)
    table = read_csv(path)
    header = [name.strip(" '\"") for name in table.column_names]
    units = {int(m[1]): i for i, name in enumerate(header) if (m := UNIT.fullmatch(name))}
    lacking = [f"AU {au}" for au in aus if au not in units]
    url = match_name("URL", header, path)
    if lacking or url is None:
        raise UserError(
            f"{path} has no column {(lacking or ['URL'])[0]!r}: its header is "
            f"{', '.join(header[:8])}..."
        )
    urls = [str(cell or "").strip(" '\"") for cell in table.column(header.index(url)).to_pylist()]
    has_url = np.array([bool(url) for url in urls], bool)
    stems = [Path(url).stem for url in urls if url]
    codes = np.stack([_codes(table.column(units[au]), au) for au in aus], 1)[has_url]
    annotated = ~np.isnan(codes) & (codes != unknown)
    if (wrong := annotated & ~np.isin(codes, (0, 1))).any():
        row, column = np.argwhere(wrong)[0]
        raise UserError(
            f"{stems[row]} has the code {codes[row, column]:g} for AU{aus[column]}, expected 0, 1 "
            f"or {unknown} for unknown (see unknown)"
        )
    folder = require_path(root / options.images, "the downloaded images (see images)")
    images_by_stem = {
        Path(name).stem: os.path.join(directory, name)
        for directory, _, names in os.walk(folder)
        for name in names
    }
    nameless = [f"line {row + 2}" for row in np.flatnonzero(~has_url)]
    rows = Rows(
        {
            "id": [f"emotionet-{stem}" for stem in stems],
            "image": [images_by_stem.get(stem, str(folder / f"{stem}.jpg")) for stem in stems],
            "aus": action_units(aus, codes == 1, None, annotated),
        },
        {"line without a URL": nameless} if nameless else {},
    )
    return rows.take(random_split(stems, split, options.test_list))


def _list(root: Path, labels: str | None) -> Path:
    if labels is not None:
        return require_path(root / labels, "EmotioNet's list as csv")
    lists = sorted(root.glob("*.csv"))
    if len(lists) != 1:
        raise UserError(
            f"{root} should hold one csv file, EmotioNet's list, found: "
            f"{', '.join(path.name for path in lists) or 'none'}; name it with labels=, and save "
            "an xlsx list as csv"
        )
    return lists[0]


def _codes(column: pa.ChunkedArray, au: int) -> np.ndarray:
    """The codes as floats; NaN where the list has none."""
    try:
        return column.to_numpy().astype(float)
    except ValueError as error:
        raise UserError(
            f"the column of AU{au} in EmotioNet's list is not a number: {error}"
        ) from None
