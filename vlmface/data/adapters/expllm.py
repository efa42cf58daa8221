"""ExpLLM's Exp-CoT: RAF-DB and AffectNet faces with a description in three parts (Lan et al., TMM).

    rafdb_emo_au_train_mini_description.json    a list of {file_name, emo, au, description}
    rafdb_emo_au_val_mini_description.json      RAF-DB's test faces; its readme writes "valid"
    Affectnet_kaggle_{train,valid}-sample-affectnet_mini_description.json

in `data_list/anno_json` of the repository. `au` holds 24 numbers from 0 to 1 that a model
predicted (so says the readme there). They follow the redefined AUs of FEAFA (Yan et al. 2019), NOT
the numbers of FACS: see UNITS. The descriptions were written by a language model from these values
and the label.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vlmface import label_spaces
from vlmface.data.adapters import rafdb
from vlmface.data.records import Record, check_choice, folder_of_images, records
from vlmface.data.rows import Rows, action_units, json_meta, require_path
from vlmface.errors import UserError

TITLE = "ExpLLM Exp-CoT"
HOME = "https://github.com/starhiking/ExpLLM-TMM"
LICENCE = "none stated; RAF-DB's and AffectNet's own for the images"
SPLITS = ("train", "test")
PUBLISHED = rafdb.PUBLISHED
FILES = {
    ("rafdb", "train"): ("rafdb_emo_au_train_mini_description.json",),
    ("rafdb", "test"): (
        "rafdb_emo_au_val_mini_description.json",
        "rafdb_emo_au_valid_mini_description.json",
    ),
    ("affectnet", "train"): ("Affectnet_kaggle_train-sample-affectnet_mini_description.json",),
    ("affectnet", "test"): ("Affectnet_kaggle_valid-sample-affectnet_mini_description.json",),
}
CODINGS = {"rafdb": "rafdb", "affectnet": "affectnet_sample"}

# FACS AU <- the positions in `au` that it is the largest of. The order is inferred: each position's
# values go with its words in the published descriptions, and the whole is FEAFA's list.
UNITS: dict[int, tuple[int, ...]] = {
    43: (0, 1),  # left and right eye close, by degrees: half-shut laughing eyes have a middle grade
    5: (2, 3),  # lid raise
    4: (4, 5),  # brow lower
    1: (6, 7),  # brow raise moves the whole brow, that is AU1 and AU2 together;
    2: (6, 7),  # an inner brow alone, as in sadness, cannot be told apart
    26: (8,),  # jaw drop; FEAFA has no AU27, so that its upper end may be one
    30: (9, 10),  # jaw slide to the left and right
    12: (11, 12),  # lip corner pull
    20: (13, 14),  # lip corner stretch
    28: (15, 16),  # upper and lower lip suck: which is which is uncertain and makes no difference
    29: (17,),  # jaw thrust
    10: (18,),  # upper lip raise, and
    16: (19,),  # lower lip depress; where one of them is alone the texts name this lip (2.7 to 1)
    17: (20,),  # chin raise
    18: (21,),  # lip pucker
    34: (22,),  # cheek puff
    9: (23,),  # nose wrinkle
}


def read(
    root: Path,
    split: str,
    *,
    part: str = "rafdb",
    images: str | None = None,
    threshold: float = 1.0,
) -> Rows:
    """Values 0..1 become FACS intensities 0..5 by a factor of 5; `meta["au"]` keeps the 24 values.
    The rationale is the description without its conclusion, which would repeat the answer and is
    `meta["conclusion"]`. `emo` is a word in the published files; codes are read as RAF-DB's 1..7
    and the sample's 1..8.

    Args:
        root: as above.
        split: one of SPLITS.
        part: "rafdb" or "affectnet" (the Kaggle sample).
        images: the folder that `file_name` starts from, RAF-DB's `Image/aligned` or the root of the
            sample (default: `root`).
        threshold: the least intensity of an AU that is present (default 1, grade A).
    """
    check_choice("part", part, ("rafdb", "affectnet"))
    if not 0 < threshold <= 5:
        raise UserError(f"threshold={threshold!r}: give an intensity above 0 and up to 5")
    folder = folder_of_images(images, root)
    faces = records(_file(root, part, split))
    parts = [three_parts(record.text("description")) for record in faces]
    values = np.array([_values(record) for record in faces], np.float64).reshape(-1, 24)
    intensity = 5 * np.stack([values[:, at].max(1) for at in UNITS.values()], 1)
    stems = [str(PurePosixPath(record.text("file_name")).with_suffix("")) for record in faces]
    return Rows(
        {
            "id": [f"expllm-{stem}" for stem in stems],
            "image": [record.image("file_name", folder) for record in faces],
            "emotion": [_emotion(record, part) for record in faces],
            "aus": action_units(list(UNITS), intensity >= threshold, intensity),
            "rationale": [rationale for rationale, _ in parts],
            "rationale_source": ["teacher"] * len(faces),
            "rationale_saw_label": np.ones(len(faces), bool),
            "meta": json_meta(
                len(faces),
                au=values.tolist(),
                conclusion=[conclusion for _, conclusion in parts],
                part=[part] * len(faces),
            ),
        }
    )


def _file(root: Path, part: str, split: str) -> Path:
    names = FILES[part, split]
    existing = [root / name for name in names if (root / name).exists()]
    return (
        existing[0]
        if existing
        else require_path(root / names[0], f"Exp-CoT of {part}, split {split!r}")
    )


def _values(record: Record) -> list[float]:
    values: Any = record.fields.get("au")
    if (
        not isinstance(values, list)
        or len(values) != 24
        or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values)
        or not all(0 <= v <= 1 for v in values)
    ):
        record.refuse("au", "24 numbers from 0 to 1")
    return values


def _emotion(record: Record, part: str) -> str | None:
    word = record.word("emo")
    if not word.isdecimal():
        return record.label("emo")
    coding = label_spaces.CODINGS[CODINGS[part]]
    if int(word) not in coding.codes:
        record.refuse("emo", f"an emotion or a code of {coding.id}, {coding.codes}")
    return coding.codes[int(word)]


# One published description in ten writes its headings in another way than the rest.
_HEADING = re.compile(
    r"^[ \t]*(?:\*\*|#+[ \t]*)?"
    r"(Key Observations|(?:Overall )?Emotional Interpretation|Conclusion)"
    r"[ \t]*(?::?\*\*:?|:|$)",
    re.IGNORECASE | re.MULTILINE,
)


def three_parts(description: str) -> tuple[str, str | None]:
    """(observations and interpretation under their usual headings, conclusion) of a description;
    one that does not have the three parts comes back as it is, with None."""
    before, *parts = _HEADING.split(description)
    names = [name.lower().removeprefix("overall ") for name in parts[::2]]
    if before.strip() or names != ["key observations", "emotional interpretation", "conclusion"]:
        return description.strip(), None
    observed, overall, concluded = (" ".join(text.split()) for text in parts[1::2])
    return (
        f"**Key Observations:** {observed}\n**Overall Emotional Interpretation:** {overall}",
        concluded,
    )
