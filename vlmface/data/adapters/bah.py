"""BAH: people who answer questions at a webcam, with or without ambivalence or hesitancy
(Gonzalez-Gonzalez et al., ICLR 2026).

    split/train.txt    `Videos/82711/Visite_1/82711_Question_1_..._Video.mp4,1,what was said, ...`
    Videos/82711/Visite_1/82711_Question_1_..._Video.mp4
    cropped-aligned-faces/Videos/82711/Visite_1/82711_Question_1_..._Video.mp4/frame-0.jpg

Label 1 is "With A-H", 0 "No A-H", of the whole video. The transcript is not quoted and may hold
commas. The lists are as the owners publish them; the names of the folders `split` and
`cropped-aligned-faces` are those that re-users of the set report, and so they are options. The
first edition had 1,118 videos of 224 people, the one whose counts are given here 1,427 of 300.
"""

from __future__ import annotations

from pathlib import Path

from vlmface import label_spaces
from vlmface.data.clips import FRAMES, first_existing, frames_root, read_list, with_frames
from vlmface.data.rows import Rows, json_meta
from vlmface.errors import UserError
from vlmface.utils.ranges import Count

TITLE = "BAH"
HOME = "https://github.com/LIVIAETS/bah-dataset"
LICENCE = "research under the owners' agreement, no redistribution"
SPLITS = ("train", "validation", "test")
PUBLISHED = {"train": {"rows": 778}, "validation": {"rows": 124}, "test": {"rows": 525}}
LISTS = ("split", "dataset-splits/video-level/BAH_DB/split-0")
CLIPS = ("cropped-aligned-faces", "cropped_aligned")


def read(
    root: Path,
    split: str,
    *,
    num_frames: Count = FRAMES,
    lists: str | None = None,
    clips: str | None = None,
) -> Rows:
    """`context` holds the label (label space bah2), `meta` the transcript.

    Args:
        root: as above.
        split: one of SPLITS.
        num_frames: of each clip.
        lists: the folder of train.txt, val.txt and test.txt, under the root; by default the first
            of LISTS that exists.
        clips: the folder of the face crops, below which the videos' own paths follow; by default
            the first of CLIPS that exists.
    """
    folder = first_existing(root, LISTS if lists is None else [lists], "BAH's lists of videos")
    name = "val.txt" if split == "validation" else f"{split}.txt"
    listing = first_existing(folder, [name], "BAH's list of videos")
    lines, skipped = read_list(listing, lambda line: line.split(",", 2), 3)
    paths = [path for path, _, _ in lines]
    faces = frames_root(root, CLIPS, clips)
    columns = {
        "id": [f"bah-{Path(path).stem}" for path in paths],
        "subject": [_subject(path, listing) for path in paths],
        "context": [[_label(code, listing)] for _, code, _ in lines],
        "meta": json_meta(len(paths), transcript=[transcript for _, _, transcript in lines]),
    }
    return with_frames(columns, [faces / path for path in paths], num_frames, skipped)


def _subject(path: str, listing: Path) -> str:
    parts = path.split("/")
    if len(parts) < 3 or parts[0] != "Videos":
        raise UserError(f"{listing}: {path!r}, expected Videos/PERSON/VISIT/FILE.mp4")
    return parts[1]


def _label(code: str, listing: Path) -> str:
    labels = label_spaces.space("bah2").labels
    if code not in ("0", "1"):
        raise UserError(f"{listing}: label {code!r}, expected 0 ({labels[0]}) or 1 ({labels[1]})")
    return labels[int(code)]
