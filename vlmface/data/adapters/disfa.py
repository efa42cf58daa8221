"""DISFA: 27 people watching a film, every frame coded for twelve AUs (Mavadati et al., TAC 2013).

    ActionUnit_Labels/SN001/SN001_au1.txt    `1,0`: frame (from 1), intensity 0 to 5
    Images/SN001/00001.jpg                   the frames, which you extract from the videos

The owners distribute videos (Videos_LeftCamera/LeftVideoSN001_comp.avi). Write their frames into
one folder a person, whose name holds the person's (SN001, LeftVideoSN001, LeftVideoSN001_comp);
the last number of an image's name is its frame: 1.png, 00001.jpg and LeftVideoSN001_00001.jpg are
all frame 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlmface.data.folds import people_of_split
from vlmface.data.rows import Rows, action_units, frames_by_number, read_csv, require_path
from vlmface.errors import UserError

TITLE = "DISFA"
HOME = "http://mohammadmahoor.com/disfa/"
LICENCE = "non-commercial research, agreement with the owners"
SPLITS = ("train", "test")  # of a fold: 18 people train, 9 test
AUS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)
BENCHMARK = (1, 2, 4, 6, 9, 12, 25, 26)
# The three parts of ME-GraphAU (Luo et al., IJCAI 2022; tool/DISFA_image_label_process.py). Its
# fold 1 tests on the third part, fold 2 on the second, fold 3 on the first.
PARTS = (
    ("SN001", "SN002", "SN009", "SN010", "SN016", "SN026", "SN027", "SN030", "SN032"),
    ("SN006", "SN011", "SN012", "SN013", "SN018", "SN021", "SN024", "SN028", "SN031"),
    ("SN003", "SN004", "SN005", "SN007", "SN008", "SN017", "SN023", "SN025", "SN029"),
)


@dataclass(frozen=True)
class Options:
    """Options of DISFA.

    Args:
        fold: 1 to 3.
        aus: 8 (the benchmark) or 12 (all that are coded).
        threshold: the least intensity of an AU that is present.
        frames_dir: the folder of the people's folders of frames, under the root.
        camera: which folder to take if there are those of both cameras.
        first_frame: the number in the name of the first frame, which the labels call 1; by default
            0 if any person has a frame 0, else 1.
    """

    fold: int = 1
    aus: int = 8
    threshold: int = 2
    frames_dir: str = "Images"
    camera: str = "left"
    first_frame: int | None = None

    def __post_init__(self) -> None:
        fold, aus, threshold = self.fold, self.aus, self.threshold
        if fold not in (1, 2, 3) or aus not in (8, 12) or threshold not in (1, 2, 3, 4, 5):
            raise UserError(
                f"fold={fold}, aus={aus}, threshold={threshold}: DISFA has folds 1 to 3, 8 or "
                "12 AUs and intensities 1 to 5"
            )


def read(root: Path, split: str, options: Options) -> Rows:
    """The coded frames of the people of a fold, with the intensities of their AUs."""
    numbers = BENCHMARK if options.aus == 8 else AUS
    people = people_of_split(PARTS, options.fold, split)
    images = _images_by_frame(root, people, options)
    ids, paths, subjects, codes = [], [], [], []
    lacking, unlabelled = [], []
    for person in people:
        frames, labels = _labels(root / "ActionUnit_Labels" / person, person, numbers)
        images_by_frame = images[person]
        has_image = np.array([frame in images_by_frame for frame in frames], bool)
        unlabelled += [
            images_by_frame[frame] for frame in sorted(set(images_by_frame) - set(frames))
        ]
        lacking += [f"{person} frame {frame}" for frame in np.array(frames)[~has_image]]
        with_image = [frame for frame in frames if frame in images_by_frame]
        ids += [f"disfa-{person}-{frame:05d}" for frame in with_image]
        paths += [images_by_frame[frame] for frame in with_image]
        subjects += [person] * len(with_image)
        codes.append(labels[has_image])
    grid = np.concatenate(codes)
    columns = {
        "id": ids,
        "image": paths,
        "subject": subjects,
        "aus": action_units(numbers, grid >= options.threshold, grid, grid >= 0),
    }
    skipped = {"frame that was not extracted": lacking, "frame without a label": unlabelled}
    return Rows(columns, {reason: rows for reason, rows in skipped.items() if rows})


def _images_by_frame(
    root: Path, people: Sequence[str], options: Options
) -> dict[str, dict[int, str]]:
    """{person: {frame as the labels count it, from 1: image}}."""
    folder = require_path(
        root / options.frames_dir, "the folders of extracted frames (see frames_dir)"
    )
    images = {
        person: frames_by_number(_folder(folder, person, options.camera)) for person in people
    }
    first = options.first_frame
    if first is None:
        first = 0 if any(0 in frames for frames in images.values()) else 1
    return {
        person: {number + 1 - first: path for number, path in frames.items()}
        for person, frames in images.items()
    }


def _folder(frames: Path, person: str, camera: str) -> Path:
    folders = [f for f in sorted(frames.iterdir()) if f.is_dir() and person in f.name]
    if len(folders) > 1:
        folders = [f for f in folders if camera.lower() in f.name.lower()] or folders
    if len(folders) != 1:
        names = ", ".join(f.name for f in folders) or "none"
        raise UserError(
            f"{frames} should hold one folder of {person}'s frames, found: {names}; extract the "
            "videos there, one folder a person, or set frames_dir and camera"
        )
    return folders[0]


def _labels(folder: Path, person: str, numbers: tuple[int, ...]) -> tuple[list[int], np.ndarray]:
    """The frames, and their intensities (frames, AUs); -1 where an AU's file lacks the frame."""
    tables = []
    for au in numbers:
        path = require_path(folder / f"{person}_au{au}.txt", f"{person}'s intensities of AU{au}")
        table = read_csv(path, {"f0": "int32", "f1": "int32"}, autogenerate_column_names=True)
        frame, grade = table["f0"].to_numpy(), table["f1"].to_numpy()
        if len(grade) and not 0 <= grade.min() <= grade.max() <= 5:
            raise UserError(f"{path} has intensities {grade.min()} to {grade.max()}, not 0 to 5")
        tables.append((frame, grade))
    frames = np.unique(np.concatenate([frame for frame, _ in tables]))
    grid = np.full((len(frames), len(numbers)), -1, np.int8)
    for column, (frame, grade) in enumerate(tables):
        grid[np.searchsorted(frames, frame), column] = grade
    return frames.tolist(), grid
