"""FEA-20K: faces of seven sets with AUs, a label and reasoning (Facial-R1, Wu et al., AAAI 2026).

One JSON lines file for each source and stage, such as FABA-Train-stage1.jsonl and FABA-Test.jsonl:

    {"id", "dataset", "image", "question", "AUs": ["AU1"], "labels": ["anger"], "description",
     "meta_info"} and sometimes "is_valid"

The training files of stage 1 together are the training set, the test files the test set; stages 2
and 3 repeat images, so that all of them together would count faces twice. The images come from the
sources, with the names that those give them, except FER2013's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vlmface.data.records import Record, au_numbers, folder_of_images, records, split_thought
from vlmface.data.rows import Rows, json_meta, listed_units
from vlmface.errors import UserError

TITLE = "FEA-20K"
HOME = "https://huggingface.co/datasets/QBiscuits/FEA-20K"
LICENCE = "the sources' own for the images; research use"
SPLITS = ("train", "test")
PUBLISHED = {"train": {"rows": 17737}, "test": {"rows": 1688}}
FILES = {"train": "*[Tt]rain*stage1*.jsonl", "test": "*[Tt]est*.jsonl"}
# Words that the teacher gave to some faces of DISFA and BP4D: labels there, but none of the eight.
OTHER = (
    *("bittersweet", "confidence", "conflict", "conflicted", "confusion", "determination"),
    *("frustration", "mixed", "pride"),
)


def read(
    root: Path,
    split: str,
    *,
    files: str | Sequence[str] | None = None,
    images: str | Mapping[str, str] | None = None,
    au_set: str | int | Sequence[str | int] | None = None,
) -> Rows:
    """A row with one label has its emotion; with several, or with a word that is none of the eight,
    it has none, and `meta["labels"]` keeps them. The rationale is what `description` holds between
    its <think> tags (all of it, if it has none); its writer was a model that was given AUs and
    label.

    Args:
        root: as above.
        split: one of SPLITS.
        files: a pattern of file names in `root`, or several (default: FILES).
        images: the folder that `image` starts from, or one folder for each `dataset` as in {"FABA":
            "...", "DISFA": "..."} (default: `root`).
        au_set: the set lists which AUs are present, not which were coded. AUs of `au_set`, such as
            ["AU1", "AU2"], that a row does not list are annotated as absent, in each `dataset` that
            lists AUs at all; all others are unknown. Use it with `files` of sets that code the same
            AUs.
    """
    rows, skipped = _usable_records(root, split, files, images)
    faces = [record for record, _, _ in rows]
    texts = [split_thought(record.optional("description")) for record in faces]
    written = [rationale is not None for rationale, _ in texts]
    present = [record.units("AUs") if record.has("AUs") else set() for record in faces]
    coding = {r.fields["dataset"] for r, units in zip(faces, present, strict=True) if units}
    full = au_numbers(au_set)
    coded = [full if record.fields["dataset"] in coding else set() for record in faces]
    questions = [record.optional("question") or "" for record in faces]
    labels = [record.texts("labels") if record.has("labels") else [] for record in faces]
    return Rows(
        {
            "id": [id for _, id, _ in rows],
            "image": [path for _, _, path in rows],
            "emotion": [_emotion(*pair) for pair in zip(faces, labels, strict=True)],
            "aus": listed_units(present, coded),
            "rationale": [rationale for rationale, _ in texts],
            "rationale_source": ["teacher" if text else "none" for text in written],
            "rationale_saw_label": np.array(written, bool),
            "meta": json_meta(
                len(rows),
                answer=[answer for _, answer in texts],
                labels=labels,
                prompt=[prompt.replace("<image>", "").strip() for prompt in questions],
                source=[record.fields["dataset"] for record in faces],
                source_info=[record.fields.get("meta_info") for record in faces],
            ),
        },
        skipped,
    )


def _usable_records(
    root: Path,
    split: str,
    files: str | Sequence[str] | None,
    images: str | Mapping[str, str] | None,
) -> tuple[list[tuple[Record, str, str]], dict[str, list[str]]]:
    """([(record, id, path of its image)], the places of skipped records by reason)."""
    rows: list[tuple[Record, str, str]] = []
    skipped: dict[str, list[str]] = {"marked as not valid": [], "not one image": []}
    for record in (r for path in _files(root, split, files) for r in records(path)):
        source = record.text("dataset")
        if record.fields.get("is_valid", True) in (False, "false"):
            skipped["marked as not valid"].append(record.where)
        elif len(record.images("image")) != 1:
            skipped["not one image"].append(record.where)
        else:
            folder = _folder(record, source, images, root)
            path = record.but(image=record.images("image")[0]).image("image", folder)
            rows.append((record, f"fea20k-{source}-{record.word('id')}", path))
    return rows, {reason: places for reason, places in skipped.items() if places}


def _files(root: Path, split: str, files: str | Sequence[str] | None) -> list[Path]:
    patterns = [files] if isinstance(files, str) else list(files or [FILES[split]])
    for pattern in patterns:
        if not pattern or Path(pattern).is_absolute():
            raise UserError(f"files={pattern!r}: give names or patterns such as 'FABA-*.jsonl'")
    paths = sorted({path for pattern in patterns for path in root.glob(pattern) if path.is_file()})
    if not paths:
        listing = sorted(path.name for path in root.glob("*.jsonl"))[:8]
        raise UserError(
            f"{root} has no file {' or '.join(patterns)} for split {split!r}: it holds "
            f"{', '.join(listing) or 'no .jsonl file'}; name the files in files="
        )
    return paths


def _folder(
    record: Record, source: str, images: str | Mapping[str, str] | None, otherwise: Path
) -> Path:
    if not isinstance(images, Mapping):
        return folder_of_images(images, otherwise)
    if source not in images:
        record.refuse("dataset", f"one that images= has a folder for ({', '.join(images)})")
    return folder_of_images(images[source], otherwise)


def _emotion(record: Record, labels: list[str]) -> str | None:
    words = [
        None if label.lower() in OTHER else record.but(labels=label).label("labels")
        for label in labels
    ]
    return words[0] if len(words) == 1 else None
