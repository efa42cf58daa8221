"""What a model is shown of a picture: the one place for the command, Python, servers, gateway and
demo, so that the same file gives the same answer everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vlmface.data import crops, detect
from vlmface.errors import UserError

if TYPE_CHECKING:
    from vlmface.manifest import Manifest
    from vlmface.utils.images import ImageOrImages

FACES = ("none", "largest", "all")  # of a picture, that a model is asked about
# A face in a photograph, for a model that was trained on portraits and takes pictures whole: a face
# fills as much as in synth.
PORTRAIT = crops.Crop(size=224, margin=0.12)
# Share of a picture's longer side from which on the portrait of its face is the picture itself.
FULL_FRAME_SHARE = 0.8


@dataclass(frozen=True)
class FaceView:
    """A face as a model is shown it.

    Attributes:
        pictures: What the model is shown: a picture, or the list of its views and frames.
        box: Of the face in the upright picture, [left, top, right, bottom] in pixels; None for the
            picture as a whole, and for a clip, in whose frames the face moves.
        face_found: Whether there is a face; None if none was looked for.
    """

    pictures: ImageOrImages
    box: detect.Box | None
    face_found: bool | None


@dataclass(frozen=True)
class Viewpoint:
    """What a run is shown of a picture, by its manifest: `views` (() for the picture whole),
    `frames` of a clip, and which `faces` it is asked about unless somebody says otherwise."""

    views: crops.Views = ()
    frames: int = 1
    faces: str = "none"

    @classmethod
    def of(cls, manifest: Manifest | None) -> Viewpoint:
        """Of a model without a manifest nothing is known: it takes pictures whole."""
        if manifest is None:
            return cls()
        return cls(crops.parse(manifest.crop), manifest.frames, manifest.faces)


@dataclass(frozen=True)
class FaceFinder:
    """`boxes`: those of a picture's faces, the largest first; `mesh`: see `crops.MeshOf`."""

    boxes: Callable[[Image.Image], Sequence[detect.Box]]
    mesh: crops.MeshOf


def image_views(
    picture: Image.Image,
    viewpoint: Viewpoint,
    faces: str,
    finder: FaceFinder,
    box: Sequence[float] | None = None,
) -> list[FaceView]:
    """The views of an upright RGB picture: of the face at `box`; or of no face ("none"), the
    "largest" or "all", the largest first. A box that cannot be one, or a picture without a face,
    gives one view of the picture as a whole, whose `face_found` is False."""
    if box is not None:
        usable = crops.usable(box, picture.size)
        view = _face_view(picture, usable, viewpoint, finder, usable is not None)
        named = tuple(map(float, box)) if all(map(math.isfinite, box)) else None
        return [replace(view, box=named)]  # type: ignore[arg-type]
    if faces == "none":
        return [_face_view(picture, None, viewpoint, finder, None)]
    places = list(finder.boxes(picture))
    if not places:
        return [_face_view(picture, None, viewpoint, finder, False)]
    chosen = places if faces == "all" else places[:1]
    return [_face_view(picture, place, viewpoint, finder, True) for place in chosen]


def clip_view(
    frames: Sequence[Image.Image],
    viewpoint: Viewpoint,
    faces: str,
    finder: FaceFinder,
    boxes: Sequence[Sequence[float] | None] | None = None,
) -> FaceView:
    """The view of a clip, of whose upright RGB frames as many are shown as the model takes.
    `boxes`: where the face is in each frame, None in one without a face; without them the largest
    face of each is looked for, unless `faces` is "none". A face that is in one frame is found.
    Raises UserError for no frame, and for `faces` "all"."""
    from vlmface.data.video import segment_midpoints

    if not frames:
        raise UserError("a clip without frames was given: a clip needs one frame at least")
    if faces == "all":
        raise UserError("faces is all, but a clip is about one face: use largest or none")
    chosen = segment_midpoints(len(frames), viewpoint.frames)
    pictures = [frames[i] for i in chosen]
    places: list[detect.Box | None] = [None] * len(pictures)
    looked = boxes is not None or faces != "none"
    if boxes is not None:
        places = [crops.usable(boxes[i], frames[i].size) for i in chosen]
    elif looked:
        places = [next(iter(finder.boxes(picture)), None) for picture in pictures]
    views = viewpoint.views
    if not views and not all(
        place is None or _fills(place, picture.size)
        for place, picture in zip(places, pictures, strict=True)
    ):
        views = (PORTRAIT,)
    shown = crops.views_of_clip(pictures, places, views, finder.mesh)
    found = any(place is not None for place in places) if looked else None
    return FaceView(shown, None, found)


def _face_view(
    picture: Image.Image,
    place: detect.Box | None,
    viewpoint: Viewpoint,
    finder: FaceFinder,
    found: bool | None,
) -> FaceView:
    views = viewpoint.views
    if not views and place is not None and not _fills(place, picture.size):
        views = (PORTRAIT,)
    shown = crops.views_of(picture, place, views, viewpoint.frames, finder.mesh)
    return FaceView(shown, place, found)


def _fills(box: detect.Box, size: tuple[int, int]) -> bool:
    """Whether the portrait of this face would be about the whole picture. Such a picture is shown
    as the training pictures were, without the detector's jitter or bars beside it."""
    left, top, right, bottom = box
    side = max(right - left, bottom - top) * (1 + 2 * PORTRAIT.margin)
    return side >= FULL_FRAME_SHARE * max(size)


# --- boxes as they are given ----------------------------------------------------------------------


def parse_boxes(boxes: Any, pictures: int, single: bool) -> list[tuple[float, ...] | None]:
    """A box for each picture, or None, from lists, tuples, arrays or tensors. One picture by itself
    may have its box alone, or in a list. Raises UserError for another number of boxes or numbers.
    """
    if boxes is None:
        return [None] * pictures
    if single and _box(boxes) is not None:
        return [_box(boxes)]
    try:
        entries = list(boxes)
    except TypeError:
        raise UserError(f"boxes is {_short(boxes)}: give a box for each picture, or None") from None
    if len(entries) != pictures:
        raise UserError(
            f"there are {len(entries)} boxes for {pictures} picture(s): give one for each, or None"
        )
    made = [None if entry is None else _box(entry) for entry in entries]
    for number, (entry, numbers) in enumerate(zip(entries, made, strict=True), 1):
        if entry is not None and numbers is None:
            raise UserError(
                f"box {number} is {_short(entry)}: give left, top, right, bottom in pixels of the "
                "upright picture"
            )
    return made


def _box(value: Any) -> tuple[float, ...] | None:
    """Four numbers, None for anything else."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return tuple(numbers.tolist()) if numbers.shape == (4,) else None


def _short(value: Any) -> str:
    """For a message of one line."""
    return " ".join(repr(value).split())[:60]
