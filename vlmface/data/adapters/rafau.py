"""RAF-AU: blended expressions in the wild, fully FACS-coded (Yan et al., ACCV 2020).

    RAFAU_label.txt            `0001.jpg 1+4+25`; `null` where the coders wrote no AU
    aligned/0001_aligned.jpg   or original/0001.jpg

A code may have a prefix: L and R for one side of the face, T and B for the top or bottom lip alone,
AD for an action descriptor. The images are those of RAF-ML, under the same names, and some are also
in RAF-DB. The owners define no split.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlmface import facs
from vlmface.data.folds import random_split
from vlmface.data.rows import Rows, action_units, json_meta, require_path
from vlmface.data.text_files import read_lines
from vlmface.errors import UserError

TITLE = "RAF-AU"
HOME = "http://www.whdeng.cn/RAF/model3.html"
LICENCE = "non-commercial research, no redistribution"
SPLITS = ("train", "test")  # ours: see random_split
CODE = re.compile(r"(L|R|T|B|AD)?(\d{1,2})", re.IGNORECASE)


@dataclass(frozen=True)
class Options:
    """Options of RAF-AU.

    Args:
        images: "aligned" or "original".
        aus: the AUs that count as annotated in every image, by default all that the list mentions.
        null: what that word means: "absent" (no AU was seen) or "unannotated".
        one_sided: L12 or R12 count as AU12; if not, such an AU is not annotated in that image.
        test_list: a file that names the test images; by default a fifth is drawn.
    """

    images: str = "aligned"
    aus: Sequence[int] | None = None
    null: str = "absent"
    one_sided: bool = True
    test_list: str | None = None


def read(root: Path, split: str, options: Options) -> Rows:
    """The codes as they were written are in `meta`."""
    images, null = options.images, options.null
    if images not in ("aligned", "original"):
        raise UserError(f"images={images!r}: RAF-AU has 'aligned' and 'original'")
    if null not in ("absent", "unannotated"):
        raise UserError(f"null={null!r}: use 'absent' or 'unannotated'")
    stems, codes, malformed = _list(
        require_path(root / "RAFAU_label.txt", "RAF-AU's list of codes")
    )
    mentioned = sorted({au for row in codes for _, au in row or ()})
    numbers = tuple(mentioned if options.aus is None else options.aus)
    column_of = {au: column for column, au in enumerate(numbers)}
    present = np.zeros((len(stems), len(numbers)), bool)
    annotated = np.ones(present.shape, bool)
    for row, parsed in enumerate(codes):
        if not parsed and null == "unannotated":
            annotated[row] = False
        both = {au for side, au in parsed if side not in ("L", "R")}
        for _, au in parsed:
            if au in column_of:
                present[row, column_of[au]] = options.one_sided or au in both
                annotated[row, column_of[au]] = present[row, column_of[au]]
    folder = require_path(root / images, f"RAF-AU's {images} images")
    suffix = "_aligned.jpg" if images == "aligned" else ".jpg"
    written = ["+".join(f"{side}{au}" for side, au in row) or "null" for row in codes]
    rows = Rows(
        {
            "id": [f"rafau-{stem}" for stem in stems],
            "image": [str(folder / f"{stem}{suffix}") for stem in stems],
            "aus": action_units(numbers, present, None, annotated),
            "meta": json_meta(len(stems), codes=written),
        },
        {"malformed line": malformed} if malformed else {},
    )
    return rows.take(random_split(stems, split, options.test_list))


def _list(path: Path) -> tuple[list[str], list[list[tuple[str, int]]], list[str]]:
    """Stems, their codes as (prefix, AU), and the lines that are neither."""
    stems, codes, malformed = [], [], []
    for number, line in enumerate(read_lines(path), 1):
        name, text, *_ = [*line.split(None, 1), "", ""]  # some lines end with a space
        matches = [CODE.fullmatch(code) for code in text.strip().split("+")]
        parsed = [((m[1] or "").upper(), int(m[2])) for m in matches if m]
        if text.strip() == "null" or (
            len(parsed) == len(matches) and all(au in facs.AUS for _, au in parsed)
        ):
            stems.append(Path(name).stem)
            codes.append(parsed)
        elif line.strip():
            malformed.append(f"{path.name}:{number}: {line[:60]}")
    return stems, codes, malformed
