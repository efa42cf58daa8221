"""MAFW: clips from films and short videos with eleven affects (Liu et al., ACM MM 2022).

    Train & Test Set/single/no_caption/set_1/train.txt    `00025.mp4 anger`; five folds
    data/faces/00025/, or data/frames/00025/              extracted frames; else the videos
    clips/00025.mp4                                       that the set ships

Its label files hold words. Re-users have put numbers in their place, in two orders.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlmface import label_spaces
from vlmface.data.clips import FRAMES, first_existing, frames_root, read_list, with_frames
from vlmface.data.published import published_counts
from vlmface.data.rows import Rows, canonical_labels
from vlmface.errors import UserError
from vlmface.utils.ranges import Count

TITLE = "MAFW"
HOME = "https://mafw-database.github.io/MAFW"
LICENCE = "non-commercial research, no redistribution"
SPLITS = ("train", "test")
# Fold 1; the other folds share the same 9,172 clips and differ by a few in each class.
PUBLISHED = published_counts(
    """
    split  rows  anger  disgust  fear  happiness  neutral  sadness  surprise  contempt
    train  7333   1112      511   500        993      910     1176       857       188
    test   1839    278      128   125        249      228      294       215        48
    """
)
FOLDS = 5
LISTS = ("Train & Test Set/single/no_caption", "split/single/no_caption", "single/no_caption")
CLIPS = ("data/faces", "data/frames", "faces", "frames", "data/clips", "clips")


@dataclass(frozen=True)
class Options:
    """Options of MAFW.

    Args:
        fold: 1 to 5.
        num_frames: of each clip.
        clips: the folder of the clips' frames, under the root; by default the first of CLIPS that
            exists, face crops first.
        order: of label files with numbers: "anger" (anger, disgust, fear, happiness ... as MAE-DFER
            counts) or "happiness" (happiness, sadness, neutral, anger ... as DFER-CLIP counts).
        first: the number of the first word of `order`.
    """

    fold: int = 1
    num_frames: Count = FRAMES
    clips: str | None = None
    order: str = "anger"
    first: int = 0

    def __post_init__(self) -> None:
        if self.fold not in range(1, FOLDS + 1):
            raise UserError(f"fold={self.fold!r}: MAFW has folds 1 to {FOLDS}")
        if self.order not in label_spaces.MAFW_ORDERS:
            orders = ", ".join(label_spaces.MAFW_ORDERS)
            raise UserError(f"order={self.order!r}: use one of {orders}")


def read(root: Path, split: str, options: Options) -> Rows:
    """`context` holds one of the eleven words (label space mafw11); `emotion` is null for anxiety,
    helplessness and disappointment.
    """
    lists = first_existing(root, LISTS, "MAFW's lists of single labels")
    listing = first_existing(lists, [f"set_{options.fold}/{split}.txt"], "MAFW's labels")
    lines, skipped = read_list(listing, lambda line: line.rsplit(None, 1), 2)
    names = [Path(name).stem for name, _ in lines]
    labels = _labels([label for _, label in lines], options)
    folder = frames_root(root, CLIPS, options.clips)
    columns = {
        "id": [f"mafw-{name}" for name in names],
        "emotion": [label if label in label_spaces.EMOTIONS else None for label in labels],
        "context": [[label] for label in labels],
    }
    return with_frames(columns, [folder / name for name in names], options.num_frames, skipped)


def _labels(texts: list[str], options: Options) -> list[str | None]:
    """Words as they are, numbers as words."""
    labels, first = label_spaces.MAFW_ORDERS[options.order], options.first
    numbered = {str(first + i): label for i, label in enumerate(labels)}
    if any(text.isdigit() for text in texts):
        for text in texts:
            if text not in numbered:
                raise UserError(
                    f"MAFW has no label {text!r} in a file of numbers from {first} to "
                    f"{first + len(labels) - 1}; give first=1 if its labels are counted from 1"
                )
    return canonical_labels("mafw11", [numbered.get(text, text) for text in texts])
