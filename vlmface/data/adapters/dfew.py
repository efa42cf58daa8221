"""DFEW: clips of film scenes with single-labelled expressions (Jiang et al., ACM MM 2020).

    EmoLabel_DataSplit/train(single-labeled)/set_1.csv    `video_name,label`; five folds
    Clip/clip_224x224/00001/1.jpg                         frames; the folder's name differs

Frame files are `1.jpg` ... `16.jpg` in some copies and `00001.jpg` ... in others.
"""

from __future__ import annotations

from pathlib import Path

from vlmface.data.clips import FRAMES, first_existing, frames_root, with_frames
from vlmface.data.published import published_counts
from vlmface.data.rows import Rows, emotions, read_csv
from vlmface.errors import UserError
from vlmface.utils.ranges import Count

TITLE = "DFEW"
HOME = "https://dfew-dataset.github.io"
LICENCE = "non-commercial research, no redistribution"
SPLITS = ("train", "test")
# Fold 1; the other folds share the same 11,697 clips and differ by a few in each class.
PUBLISHED = published_counts(
    """
    split  rows  happiness  sadness  neutral  anger  surprise  disgust  fear
    train  9356       1956     1515     2135   1738      1175      116   721
    test   2341        489      379      534    435       294       29   181
    """
)
FOLDS = 5
CLIPS = ("Clip/clip_224x224", "Clip/clip_224x224_16f", "Clip/clip_224x16f", "Clip/jpg_256")


def read(
    root: Path, split: str, *, fold: int = 1, num_frames: Count = FRAMES, clips: str | None = None
) -> Rows:
    """Results are means over the test parts of the five folds.

    Args:
        root: as above.
        split: one of SPLITS.
        fold: 1 to 5.
        num_frames: of each clip.
        clips: the folder of the clips' frames, under the root; by default the first of CLIPS that
            exists, face crops first.
    """
    if fold not in range(1, FOLDS + 1):
        raise UserError(f"fold={fold!r}: DFEW has folds 1 to {FOLDS}")
    labels = first_existing(
        root / "EmoLabel_DataSplit",
        [f"{split}(single-labeled)/set_{fold}.csv", f"{split}/set_{fold}.csv"],
        "DFEW's labels",
    )
    table = read_csv(labels, {"video_name": "int32", "label": "int32"})
    names = [f"{number:05d}" for number in table["video_name"].to_pylist()]
    folder = frames_root(root, CLIPS, clips)
    columns = {
        "id": [f"dfew-{name}" for name in names],
        "emotion": emotions("dfew", table["label"]),
    }
    return with_frames(columns, [folder / name for name in names], num_frames)
