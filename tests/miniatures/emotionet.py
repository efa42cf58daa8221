"""EmotioNet: quotes in the header and the URLs, unknown AUs, folders of downloads."""

from __future__ import annotations

from pathlib import Path

from miniatures import face, text

ARGUMENTS: dict = {}
UNITS = (1, 2, 3, 4, 5, 6, 9, 10, 12, 17, 20, 25, 26, 43)
URL = "http://cbcsnas01.ece.ohio-state.edu/EmotioNet/Images/N_0000000005/"


def write(root: Path, n: int = 12) -> None:
    """Image i has AU 12, AU 25 where i is even; its AU 43 is unknown; of image 3 all is unknown."""
    lines = ["URL,URL orig," + ",".join(f"'AU {au}'" for au in UNITS)]
    for i in range(1, n + 1):
        codes = dict.fromkeys(UNITS, 999 if i == 3 else 0)
        if i != 3:
            codes |= {12: 1, 25: int(i % 2 == 0), 43: 999}
        name = f"N_0000000005_{i:05d}.jpg"
        lines.append(f"'{URL}{name}',http://gone/{i}.jpg," + ",".join(map(str, codes.values())))
        face(root / "images" / "N_0000000005" / name, i)
    text(root / "EmotioNet_FACS_aws_2020_24600.csv", *lines)
    text(root / "test.txt", "N_0000000005_00003.jpg", "N_0000000005_00012.jpg")
