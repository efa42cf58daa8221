"""FERBench: four test sets as one set of questions (UniFER, zfkarl/UniFER on GitHub).

    eval_rafdb/data/rafdb_qa.json          a list of {image_path, true_label, prompt,
    eval_ferplus/data/ferplus_qa.json      candidate_labels}
    eval_affectnet/data/affectnet_qa.json
    eval_sfew_2.0/data/sfew_2.0_qa.json

The images are those of RAF-DB, FERPlus, AffectNet and SFEW 2.0. An `image_path` such as
`/RAF-DB/aligned/test_3068_aligned.jpg` starts from the folder that holds the four, for all its
leading slash. Labels are nouns in two of the sets and adjectives in the others.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from vlmface.data.published import published_counts
from vlmface.data.records import check_choice, folder_of_images, records
from vlmface.data.rows import Rows, json_meta, require_path

TITLE = "FERBench"
HOME = "https://github.com/zfkarl/UniFER"
LICENCE = "none stated for the questions; each set's own for its images"
SPLITS = ("test",)
# Counted in the published files: 3068 of RAF-DB, 3573 of FERPlus, 4000 of AffectNet, 431 of SFEW.
PUBLISHED = published_counts(
    """
    split   rows  anger  contempt  disgust  fear  happiness  neutral  sadness  surprise
    test   11072   1061       530      704   718       2686     2538     1500      1335
    """
)
PARTS = {
    "rafdb": "eval_rafdb/data/rafdb_qa.json",
    "ferplus": "eval_ferplus/data/ferplus_qa.json",
    "affectnet": "eval_affectnet/data/affectnet_qa.json",
    "sfew": "eval_sfew_2.0/data/sfew_2.0_qa.json",
}


def read(root: Path, split: str, *, part: str = "all", images: str | None = None) -> Rows:
    """`meta` keeps each question: `prompt`, `candidate_labels`, and the label in the set's own
    word, `label_word`.

    Args:
        root: as above.
        split: one of SPLITS.
        part: "rafdb", "ferplus", "affectnet", "sfew" or "all".
        images: the folder that holds RAF-DB, FERPlus, AffectNet and SFEW-2.0 (default: `root`).
    """
    check_choice("part", part, ("all", *PARTS))
    folder = folder_of_images(images, root)
    ids, paths, emotions = [], [], []
    questions: dict[str, list[Any]] = {
        "part": [],
        "prompt": [],
        "candidate_labels": [],
        "label_word": [],
    }
    for name in PARTS if part == "all" else (part,):
        for record in records(require_path(root / PARTS[name], f"FERBench's questions on {name}")):
            candidates = record.texts("candidate_labels")
            emotion = record.label("true_label")
            if record.text("true_label") not in candidates:
                record.refuse("true_label", f"one of the candidates {', '.join(candidates)}")
            paths.append(record.image("image_path", folder, rooted=True))
            stem = PurePosixPath(record.text("image_path")).with_suffix("")
            ids.append(f"ferbench-{str(stem).lstrip('/')}")
            emotions.append(emotion)
            questions["part"].append(name)
            questions["prompt"].append(record.text("prompt"))
            questions["candidate_labels"].append(candidates)
            questions["label_word"].append(record.text("true_label"))
    return Rows(
        {"id": ids, "image": paths, "emotion": emotions, "meta": json_meta(len(ids), **questions)}
    )
