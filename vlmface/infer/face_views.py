"""The model's input for a picture. The command line, the Python API, servers, the gateway and the
demo all use it, so that the same file gives the same answer everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vlmface.data import crops, detect
from vlmface.data.face_search import FaceSearch
from vlmface.errors import UserError

if TYPE_CHECKING:
    from vlmface.manifest import Manifest
    from vlmface.utils.images import ImageOrImages

FACES = ("none", "largest", "all")  # which faces of a picture a model is run on
# The crop of a face in a photograph, for a model that was trained on whole portraits: the face
# fills as much of it as in synth.
PORTRAIT = crops.View(size=224, margin=0.12)
# If the portrait is at least this share of the picture's longer side, the picture is not cropped.
FULL_FRAME_SHARE = 0.8


@dataclass(frozen=True)
class FaceView:
    """The model's input for one face.

    Attributes:
        images: A picture, or the list of its views and frames.
        box: The face in the upright picture, [left, top, right, bottom] in pixels; None for the
            whole picture, and for a clip, in which the face moves.
        face_found: Whether there is a face; None if detection was not run.
        search_note: Which faces of the picture may have been missed; None if it was not searched
            for all.
        evidence: What was measured of the face (`vlmface.evidence`); None: not yet, or no prompt
            contains it.
    """

    images: ImageOrImages
    box: detect.Box | None
    face_found: bool | None
    search_note: str | None = None
    evidence: str | None = None


@dataclass(frozen=True)
class ViewSettings:
    """How the inputs of a run are made from a picture.

    Attributes:
        views: The views of a picture, () for the whole picture.
        frames: Frames of a clip.
        faces: The default of `faces` in `Predictor.predict`.
    """

    views: crops.Views = ()
    frames: int = 1
    faces: str = "none"

    @classmethod
    def from_manifest(cls, manifest: Manifest | None) -> ViewSettings:
        """The settings of a run; without a manifest, whole pictures."""
        if manifest is None:
            return cls()
        return cls(crops.parse_views(manifest.views), manifest.num_frames, manifest.faces)


@dataclass(frozen=True)
class DetectorFunctions:
    """`search` searches a picture for all faces, `quick_search` stops at the first ones, see
    `detect.Detector.search`; `mesh`: see `crops.MeshDetector`."""

    search: Callable[[Image.Image], FaceSearch]
    quick_search: Callable[[Image.Image], FaceSearch]
    mesh: crops.MeshDetector


def image_views(
    picture: Image.Image,
    view_settings: ViewSettings,
    faces: str,
    finder: DetectorFunctions,
    box: Sequence[float] | None = None,
) -> list[FaceView]:
    """The views of a picture.

    Args:
        picture: Upright RGB.
        view_settings: Those of the run.
        faces: "none", "largest" or "all"; has no effect with `box`.
        finder: Detects faces.
        box: The face to show, in pixels.

    Returns:
        A view of each face, that of "largest" first, then by size. If `box` is not valid or no
        face is detected, one view of the whole picture whose `face_found` is False.
    """
    if box is not None:
        usable = crops.valid_box(box, picture.size)
        view = _face_view(picture, usable, view_settings, finder, usable is not None)
        finite_box = tuple(map(float, box)) if all(map(math.isfinite, box)) else None
        return [replace(view, box=finite_box)]  # type: ignore[arg-type]
    if faces == "none":
        return [_face_view(picture, None, view_settings, finder, None)]
    if faces == "largest":
        search = finder.quick_search(picture)
        boxes, note = search.boxes[:1], None
    else:
        search = finder.search(picture)
        boxes, note = search.boxes, search.note
    if not boxes:
        view = _face_view(picture, None, view_settings, finder, False)
        return [replace(view, search_note=search.note)]
    views = [_face_view(picture, face, view_settings, finder, True) for face in boxes]
    return [replace(view, search_note=note) for view in views]


def clip_view(
    frames: Sequence[Image.Image],
    view_settings: ViewSettings,
    faces: str,
    finder: DetectorFunctions,
    boxes: Sequence[Sequence[float] | None] | None = None,
) -> FaceView:
    """The view of a clip, of which as many frames are used as the model takes.

    Args:
        frames: Upright RGB frames, in order.
        view_settings: Those of the run.
        faces: "none" or "largest"; has no effect with `boxes`.
        finder: Detects the largest face of each frame.
        boxes: The face in each frame, None in a frame without a face.

    Returns:
        The view. `face_found` is True if the face is in at least one frame.

    Raises:
        UserError: There are no frames, or `faces` is "all".
    """
    from vlmface.data.video import segment_midpoints

    if not frames:
        raise UserError("a clip without frames was given: a clip needs one frame at least")
    if faces == "all":
        raise UserError("faces is all, but a clip is about one face: use largest or none")
    indices = segment_midpoints(len(frames), view_settings.frames)
    pictures = [frames[i] for i in indices]
    face_boxes: list[detect.Box | None] = [None] * len(pictures)
    detection_ran = boxes is not None or faces != "none"
    if boxes is not None:
        face_boxes = [crops.valid_box(boxes[i], frames[i].size) for i in indices]
    elif detection_ran:
        face_boxes = [next(iter(finder.quick_search(picture).boxes), None) for picture in pictures]
    views = view_settings.views
    if not views and not all(
        box is None or _fills_picture(box, picture.size)
        for box, picture in zip(face_boxes, pictures, strict=True)
    ):
        views = (PORTRAIT,)
    images = crops.clip_views(pictures, face_boxes, views, finder.mesh)
    face_found = any(box is not None for box in face_boxes) if detection_ran else None
    return FaceView(images, None, face_found)


def _face_view(
    picture: Image.Image,
    box: detect.Box | None,
    view_settings: ViewSettings,
    finder: DetectorFunctions,
    face_found: bool | None,
) -> FaceView:
    views = view_settings.views
    if not views and box is not None and not _fills_picture(box, picture.size):
        views = (PORTRAIT,)
    images = crops.image_views(picture, box, views, view_settings.frames, finder.mesh)
    return FaceView(images, box, face_found)


def _fills_picture(box: detect.Box, size: tuple[int, int]) -> bool:
    """Whether the portrait of this face would be nearly the whole picture. Such a picture is used
    as the training pictures were, without the detector's jitter and without bars."""
    left, top, right, bottom = box
    side = max(right - left, bottom - top) * (1 + 2 * PORTRAIT.margin)
    return side >= FULL_FRAME_SHARE * max(size)


# --- boxes as callers pass them -------------------------------------------------------------------


def parse_boxes(boxes: Any, pictures: int, single: bool) -> list[tuple[float, ...] | None]:
    """Convert boxes to tuples of four floats.

    Args:
        boxes: A list, tuple, array or tensor with a box or None for each picture; None for no
            boxes.
        pictures: Their number.
        single: Whether one picture was passed by itself: its box needs no list around it.

    Returns:
        A box or None for each picture.

    Raises:
        UserError: There are more or fewer boxes than pictures, or a box is not four numbers.
    """
    if boxes is None:
        return [None] * pictures
    if single and _four_floats(boxes) is not None:
        return [_four_floats(boxes)]
    try:
        entries = list(boxes)
    except TypeError:
        raise UserError(f"boxes is {_short(boxes)}: give a box for each picture, or None") from None
    if len(entries) != pictures:
        raise UserError(
            f"there are {len(entries)} boxes for {pictures} picture(s): give one for each, or None"
        )
    parsed = [None if entry is None else _four_floats(entry) for entry in entries]
    for number, (entry, box) in enumerate(zip(entries, parsed, strict=True), 1):
        if entry is not None and box is None:
            raise UserError(
                f"box {number} is {_short(entry)}: give left, top, right, bottom in pixels of the "
                "upright picture"
            )
    return parsed


def _four_floats(value: Any) -> tuple[float, ...] | None:
    """None if the value is not four numbers."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return tuple(numbers.tolist()) if numbers.shape == (4,) else None


def _short(value: Any) -> str:
    """The value in a message of one line."""
    return " ".join(repr(value).split())[:60]
