"""One's own faces: a folder of label folders, and the same as tables with foreign words."""

from __future__ import annotations

from pathlib import Path

from miniatures import face, text

ARGUMENTS: dict = {"labels": {"bored": None}}
FOLDERS = {
    "train": {"Angry": ("1.jpg", "2.PNG"), "happiness": ("deeper/3.webp",), "bored": ("4.jpg",)},
    "val": {"Sad": ("5.jpg",)},
    "test": {"fear": ("1.jpg", "6.jpg")},
}
# A byte order mark and CRLF as spreadsheets write them, a quoted comma, blank cells.
HEADER = "file,label,part,who,years,sex,au01_c,AU12_c,AU12_r"
LINES = (
    'train/Angry/1.jpg,Angry,Training,"Smith, J.",31,Woman,1,0,0.2',
    "train/Angry/2.PNG,7,Training,p2,,man,,1,3.5",
    "train/bored/4.jpg,bored,PublicTest,,40.5,,0,,",
    "val/Sad/5.jpg,,test,p2,3,,,,",
)
ARGUMENTS_CSV: dict = {
    "columns": {
        "image": "file",
        "emotion": "label",
        "subject": "who",
        "age": "years",
        "gender": "sex",
    },
    "labels": {7: "joy", "bored": None},
    "split_column": "part",
    "splits": {"PublicTest": "validation"},
}


def write(root: Path) -> None:
    number = 0
    for part, folders in FOLDERS.items():
        for label, names in folders.items():
            for name in names:
                number += 1
                face(root / part / label / name, number)
    text(root / "train" / "Angry" / "Thumbs.db", "no picture")


def write_csv(path: Path, delimiter: str = ",") -> Path:
    """Write the table beside the folders of `write`."""
    content = "\r\n".join((HEADER, *LINES, ""))
    if delimiter != ",":
        content = content.replace('"Smith, J."', "Smith").replace(",", delimiter)
    path.write_bytes(b"\xef\xbb\xbf" + content.encode())
    return path
