"""FERV39k: clips of 22 kinds of scenes with seven expressions (Wang et al., CVPR 2022).

    4_setups/All_scenes/train_All.csv        `Action/Happy/0267 Happy`; a blank, not a comma
    2_ClipsforFaceCrop/Action/Happy/0267/    frames

Clip numbers start again in each scene and expression.
"""

from __future__ import annotations

from pathlib import Path

from vlmface.data.clips import FRAMES, frames_root, read_list, with_frames
from vlmface.data.published import published_counts
from vlmface.data.rows import Rows, canonical_labels, json_meta, require_path
from vlmface.utils.ranges import Count

TITLE = "FERV39k"
HOME = "https://wangyanckxx.github.io/Proj_CVPR2022_FERV39k.html"
LICENCE = "non-commercial research, no redistribution"
SPLITS = ("train", "test")
PUBLISHED = published_counts(
    """
    split   rows  happiness  sadness  neutral  anger  surprise  disgust  fear
    train  31088       5854     5523     7790   5906      2502     1833  1680
    test    7847       1473     1393     1958   1487       638      467   431
    """
)
CLIPS = ("2_ClipsforFaceCrop",)


def read(root: Path, split: str, *, num_frames: Count = FRAMES, clips: str | None = None) -> Rows:
    """All scenes together, the usual protocol. The scene is in `meta`.

    Args:
        root: as above.
        split: one of SPLITS.
        num_frames: of each clip.
        clips: the folder of the clips' frames, under the root, "2_ClipsforFaceCrop" by default.
    """
    listing = root / "4_setups" / "All_scenes" / f"{split}_All.csv"
    lines, skipped = read_list(
        require_path(listing, "FERV39k's labels"), lambda line: line.rsplit(None, 1), 2
    )
    paths = [path for path, _ in lines]
    folder = frames_root(root, CLIPS, clips)
    columns = {
        "id": [f"ferv39k-{path}" for path in paths],
        "emotion": canonical_labels("emotion7", [word for _, word in lines]),
        "meta": json_meta(len(paths), scene=[path.partition("/")[0] for path in paths]),
    }
    return with_frames(columns, [folder / path for path in paths], num_frames, skipped)
