"""Tables as OpenFace 2, py-feat and LibreFace write them.

Traps: OpenFace puts spaces before its header names, has `x_0` (pixels) and `X_0` (millimetres),
writes zeros for a lost face, counts frames from 1 and several faces in one frame, and may call an
action unit present with intensity 0. py-feat counts frames from 0 and writes empty cells for a
picture without a face. LibreFace measures presence and intensity of different action units, and
writes intensities below 0 and above 5.
"""

from __future__ import annotations

from pathlib import Path

from miniatures import face, text

OPENFACE_UNITS = ("AU01_r", "AU12_r", "AU01_c", "AU12_c", "AU28_c")


def openface_rows(*rows: tuple[int, int, int, float, tuple[float, ...]]) -> list[str]:
    """Lines of a table from (frame, face, success, left edge of the face, values of the AUs)."""
    landmarks = [f"{axis}_{i}" for axis in ("x", "y", "X", "Y", "Z") for i in range(68)]
    names = ("frame", "face_id", "timestamp", "confidence", "success", *landmarks, *OPENFACE_UNITS)
    lines = [", ".join(names)]
    for frame, number, success, left, units in rows:
        pixels = [left + i / 10 for i in range(68)] + [20 + i / 10 for i in range(68)]
        millimetres = [-500.0] * (3 * 68)
        cells = [frame, number, frame / 30, 0.98 * success, success, *pixels, *millimetres, *units]
        lines.append(", ".join(str(cell) for cell in cells))
    return lines


def write_openface(root: Path) -> None:
    """`processed/clip.csv` of a folder of four pictures whose names do not start at 1."""
    text(
        root / "processed" / "clip.csv",
        *openface_rows(
            (1, 0, 1, 10, (0.4, 3.2, 0, 1, 0)),
            (2, 0, 1, 11, (0.0, 1.5, 1, 1, 1)),
            (2, 1, 1, 30, (2.0, 0.1, 1, 0, 0)),
            (3, 0, 0, 0, (0.0, 0.0, 0, 0, 0)),
            (4, 0, 1, 12, (0.2, 0.0, 0, 0, 0)),
        ),
    )
    for number in (7, 8, 9, 10):
        face(root / "videos" / "clip" / f"{number}.jpg", number, (64, 64))


def write_openface_aligned(root: Path) -> None:
    """The same table with OpenFace's aligned faces, of which the lost one is missing."""
    write_openface(root)
    for frame, number in ((1, 0), (2, 0), (2, 1), (4, 0)):
        path = root / "processed" / "clip_aligned" / f"frame_det_{number:02d}_{frame:06d}.bmp"
        face(path, 10 * frame + number)


PYFEAT_UNITS = ("AU01", "AU04", "AU12")
EMOTIONS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")


def write_pyfeat(
    root: Path, inputs: tuple[str, ...] = ("a.jpg", "a.jpg", "b.jpg", "c.jpg")
) -> Path:
    """Two faces in the first picture, none in the last."""
    header = [
        "",
        "FaceRectX,FaceRectY,FaceRectWidth,FaceRectHeight,FaceScore",
        *PYFEAT_UNITS,
        *EMOTIONS,
        "input,frame",
    ]
    rows = (
        "0,4.5,5,20,25,0.99,0.1,0.9,0.5,0.8,0.1,0,0,0.1,0,0,{},0",
        "1,30,6,15,20,0.95,0.6,0.2,0.4,0,0,0,0.5,0,0,0.5,{},0",
        "2,1,2,30,40,0.97,0.7,0.1,0.9,0,0,0,1,0,0,0,{},1",
        "3,,,,,,,,,,,,,,,,{},2",
    )
    lines = [row.format(name) for row, name in zip(rows, inputs, strict=True)]
    for number, name in enumerate(("a.jpg", "b.jpg", "c.jpg")):
        face(root / name, number, (64, 64))
    return text(root / "fex.csv", ",".join(header), *lines)


def write_libreface(root: Path) -> Path:
    """A video of three frames as a folder, without a face in the second one."""
    for number in (1, 2, 3):
        face(root / "talk" / f"frame_{number:09d}.png", number)
    return text(
        root / "talk.csv",
        "frame_idx,frame_time_in_ms,pitch,lm_mp_0_x,au_1,au_12,au_25_intensity,au_1_intensity,"
        "facial_expression",
        "0,0.0,1.5,0.4,1,0,5.214,0.0,Happiness",
        "1,0.033,,,,,,,",
        "2,0.067,1.5,0.4,0,1,-0.031,0.8,Neutral",
    )


# --- whole studies, of which rows can be trained on and tested -----------------------------------


def write_openface_videos(root: Path, videos: int = 5, frames: int = 4) -> Path:
    """`processed/vN.csv` of folders of frames `videos/vN`, with one lost face and one second face
    in each; returns the folder of tables."""
    for number in range(videos):
        rows = []
        for frame in range(1, frames + 1):
            lost = frame == 3
            smile = float((number + frame) % 2)
            units = (0.2, 3 * smile, 0, smile, frame == 2 and number % 2)
            rows.append((frame, 0, int(not lost), 10, (0.0,) * 5 if lost else units))
            face(root / "videos" / f"v{number}" / f"{frame}.jpg", 10 * number + frame, (64, 64))
        rows.insert(1, (1, 1, 1, 30, (2.0, 0.1, 1, 0, 0)))
        text(root / "processed" / f"v{number}.csv", *openface_rows(*rows))
    return root / "processed"


def write_openface_with_labels(root: Path, people: int = 6) -> Path:
    """One table of pictures, labels and people next to columns of OpenFace, as users join them."""
    lines = ["picture,state,person,confidence,success,AU04_r,AU12_r,AU04_c,AU12_c"]
    for i in range(4 * people):
        bored = i % 2
        name, word, person = f"{i}.jpg", ("Engaged", "bored")[bored], f"P{i // 4:02d}"
        units = (3.5 * bored, 2.0 - 2.0 * bored, bored, 0)  # AU12: present by intensity alone
        success = int(i != 5)
        cells = [name, word, person, 0.9 * success, success, *(units if success else (0, 0, 0, 0))]
        lines.append(",".join(map(str, cells)))
        face(root / "pictures" / name, i, (64, 64))
    return text(root / "study.csv", *lines)


def write_pyfeat_pictures(root: Path, n: int = 16) -> Path:
    """`fex.csv` of pictures in `faces`, with two faces in the first and none in the last."""
    names = [f"{i}.jpg" for i in (0, *range(n - 1))]
    lines = [
        f",FaceRectX,FaceRectY,FaceRectWidth,FaceRectHeight,FaceScore,{','.join(PYFEAT_UNITS)},"
        f"{','.join(EMOTIONS)},input,frame"
    ]
    for row, name in enumerate(names):
        votes = [0.05] * len(EMOTIONS)
        votes[3 if row % 2 else 0] = 0.7
        cells = [row, 5 + row % 3, 5, 20, 25, 0.9, 0.2, 0.9 - row % 2 * 0.6, 0.5, *votes, name, 0]
        lines.append(",".join(map(str, cells)))
    lines.append(f"{n},{',' * 15}{n}.jpg,0")
    for i in range(n + 1):
        face(root / "faces" / f"{i}.jpg", i, (64, 64))
    return text(root / "fex.csv", *lines)


def write_libreface_pictures(root: Path, n: int = 16) -> Path:
    """`libre.csv` of pictures, of which one has no face and one intensity is below 0."""
    lines = ["input_image_path,pitch,au_1,au_12,au_25_intensity,au_1_intensity,facial_expression"]
    for i in range(n):
        name = f"faces/{i}.png"
        face(root / name, i)
        word = ("Happiness", "Sadness")[i % 2]
        lines.append(f"{name},1.5,{i % 2},{1 - i % 2},{-0.03 if i == 1 else 2.5},0.8,{word}")
    face(root / "faces" / f"{n}.png", n)
    return text(root / "libre.csv", *lines, f"faces/{n}.png,,,,,,")
