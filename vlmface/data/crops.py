"""What a model is shown of a picture: its face, cut out, or another view of it. `crop_cache` makes
the views of many pictures, once."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image, ImageDraw

from vlmface.data import detect, shapes
from vlmface.errors import UserError
from vlmface.utils import config, files

if TYPE_CHECKING:
    from vlmface.utils.images import ImageOrImages

VERSION = 2  # raise whenever the same picture would give other pixels
MAX_SQUARE_SIDE = 8_192  # pixels of a square around a face, before it is made smaller
BOX_COLOUR = (255, 0, 0)  # colour of a box that is drawn
MASK_COLOUR = (0, 0, 0)  # of a face that is blacked out
INVALID_BOX = (
    0.0,
    0.0,
    0.0,
    0.0,
)  # stands for a box that is broken, so that nobody else's is taken
MAX_COORDINATE = 1_000_000.0  # pixels from the picture's corner, beyond which a number is no place
MESH_INPUT_SIZE = 256  # pixels of a side of the face in which a mesh is looked for
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
MeshDetector = Callable[
    [Image.Image], "np.ndarray | None"
]  # points (n, 2) in pixels of a picture's face


@dataclass(frozen=True)
class View:
    """A view of a picture, `size` pixels a side; what lies outside of the picture is black.

    `show`: "face" is the square around the face, with `margin` times the longer side of its box and
    `margin_px` pixels of the picture on each side. "boxed" does not cut, but takes the whole
    picture with a red frame around the box and its margins, so that a prompt can ask about one
    person among several. "context" is the whole picture with that box blacked out (as CAER-Net's
    second stream sees it), "scene" the whole picture as it is. "person" is the square around the
    person, with those margins. "landmarks" and "parsed" show no pixels of the "face", but what
    `shapes` draws of its mesh; where a detector finds none in it, they are black.

    `find`, for all but "scene" and "person": "given" takes the data set's own box (of the face, or
    else of the person), "detect" that of the largest face that `detect.Detector` finds, in and
    around a given box if there is one. Where a set boxes faces and found none in a picture, the
    person's box is no face, but still gets the frame. Without any box the whole picture is taken.
    """

    size: int = 224
    margin: float = 0.2
    find: Literal["given", "detect"] = "given"
    show: Literal["face", "boxed", "context", "scene", "person", "landmarks", "parsed"] = "face"
    margin_px: int = 0

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 2048:
            raise UserError(f"crop: size is {self.size}, expected 16 to 2048 pixels")
        if not 0 <= self.margin <= 2:
            raise UserError(f"crop: margin is {self.margin}, expected 0 to 2 times the box's side")
        if not 0 <= self.margin_px <= 500:
            raise UserError(f"crop: margin_px is {self.margin_px}, expected 0 to 500 pixels")
        if self.find == "detect" and not self.about_face:
            raise UserError(
                f"crop: find is detect, but show is {self.show}, which looks for no face: leave "
                "find out, or use show: face, boxed, context, landmarks or parsed"
            )

    @property
    def about_face(self) -> bool:
        """Whether the view needs to know where the face is."""
        return self.show not in ("scene", "person")

    @property
    def is_shape(self) -> bool:
        """Whether the view is drawn from the face's mesh."""
        return self.show in ("landmarks", "parsed")

    @property
    def is_face(self) -> bool:
        """Whether the view shows the face and nothing around it."""
        return self.show == "face" or self.is_shape

    @property
    def needs_face(self) -> bool:
        """Whether only a face's own box will do, and not that of the person around it."""
        return (self.is_face or self.show == "context") and self.find == "given"

    @property
    def folder(self) -> Path:
        """Where pictures that are cut out in this way are kept."""
        by = self.find if self.find == "given" else detect.NAME
        by = f"{by}+mesh{shapes.VERSION}" if self.is_shape else by
        pixels = f"+{self.margin_px}" if self.margin_px else ""
        name = f"v{VERSION}-{self.size}px-margin{self.margin:g}{pixels}-{by}"
        name = name if self.show == "face" else f"{name}-{self.show}"
        return files.cache_dir() / "crops" / name


Views = tuple[View, ...]  # that a model is shown, in their order; () for the picture as it is


def parse_views(values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None) -> Views:
    """The `crop` of a settings file or manifest: null, a mapping, or a list of mappings. Raises
    UserError."""
    if values is None:
        return ()
    listed = [values] if isinstance(values, Mapping) else list(values)
    if not listed or not all(isinstance(one, Mapping) for one in listed):
        raise UserError(
            f"crop is {values!r}: give one view, such as {{size: 224, show: face}}, a list of "
            "views, or null for pictures as they are"
        )
    return tuple(config.build(View, dict(one), where="crop") for one in listed)


def views_as_dict(views: Sequence[View]) -> dict[str, Any] | list[dict[str, Any]] | None:
    """The views as settings and manifests write them; `margin_px` only where there is one."""
    listed = [
        {k: v for k, v in dataclasses.asdict(crop).items() if v or k != "margin_px"}
        for crop in views
    ]
    return listed if len(listed) > 1 else listed[0] if listed else None


def valid_box(box: object, size: tuple[int, int] | None = None) -> Box | None:
    """The box, if it is one: four finite numbers, a pixel or more wide and high, and, in a picture
    of `size` (width, height), with a part of the picture in it. Annotations hold others."""
    try:
        x0, y0, x1, y1 = (float(x + 0) for x in box)  # type: ignore[attr-defined]
    except (TypeError, ValueError, OverflowError):
        return None
    if not all(math.isfinite(x) and abs(x) <= MAX_COORDINATE for x in (x0, y0, x1, y1)):
        return None
    inside = size is None or (x0 < size[0] and y0 < size[1] and x1 > 0 and y1 > 0)
    return (x0, y0, x1, y1) if inside and x1 - x0 >= 1 and y1 - y0 >= 1 else None


def render_view(
    image: Image.Image, box: Sequence[float] | None, crop: View, mesh: MeshDetector | None = None
) -> Image.Image:
    """The view of a picture, the box being that of the face or, for "person", of the person. The
    whole picture with black bars if there is no `usable` box, or if that is the view. Views drawn
    from a mesh need `mesh`, such as `detect.Detector.mesh`."""
    if crop.is_shape:
        assert mesh is not None, f"{crop.show} is drawn from a mesh"
        face = render_view(image, box, dataclasses.replace(crop, show="face", size=MESH_INPUT_SIZE))
        points = mesh(face)
        if points is None:
            return Image.new("RGB", (crop.size, crop.size))
        draw = shapes.landmarks if crop.show == "landmarks" else shapes.parsed
        return draw(points / MESH_INPUT_SIZE, crop.size)
    known = valid_box(box, image.size)
    whole = _square((0, 0, *image.size), 0)
    if known is None or crop.show == "scene":
        return _resized(image, whole, crop.size)
    around = _square(known, crop.margin, crop.margin_px)
    if crop.show not in ("boxed", "context"):
        return _resized(image, around, crop.size)
    left, top, right, _ = whole
    picture = _resized(image, whole, crop.size)
    scale = crop.size / (right - left)
    moved = (around[0] - left, around[1] - top, around[2] - left, around[3] - top)
    corners = [min(max(round(x * scale), 0), crop.size - 1) for x in moved]
    drawn = ImageDraw.Draw(picture)
    if crop.show == "context":
        drawn.rectangle(corners, fill=MASK_COLOUR)
    else:
        drawn.rectangle(corners, outline=BOX_COLOUR, width=max(2, crop.size // 100))
    return picture


def mixes_face_and_scene(views: Sequence[View]) -> bool:
    """Whether what is around a face is shown beside it, so that without a face it is all that a
    model judges."""
    several = len(views) > 1
    return several and any(v.about_face for v in views) and not all(v.is_face for v in views)


def image_views(
    image: Image.Image,
    face: Sequence[float] | None,
    views: Sequence[View],
    frames: int = 1,
    mesh: MeshDetector | None = None,
) -> Image.Image | list[Image.Image]:
    """One photograph as a model with these views is shown it: a picture, or the list of them. To a
    model of clips it is one that stands still. Where the person is, nobody says. `mesh` as for
    `cut`."""
    made = [render_view(image, face if one.about_face else None, one, mesh) for one in views] or [
        image
    ]
    found = [picture for picture in made for _ in range(frames)]
    return found if len(found) > 1 else found[0]


def clip_views(
    frames: Sequence[Image.Image],
    faces: Sequence[Sequence[float] | None],
    views: Sequence[View],
    mesh: MeshDetector | None = None,
) -> Image.Image | list[Image.Image]:
    """`views_of` the frames of a clip, each with its own face's box: the frames of the first view,
    then those of the next."""
    made = [
        [
            render_view(frame, face if one.about_face else None, one, mesh)
            for frame, face in zip(frames, faces, strict=True)
        ]
        for one in views
    ] or [list(frames)]
    found = [picture for view in made for picture in view]
    return found if len(found) > 1 else found[0]


def requires_face(views: Sequence[View]) -> bool:
    """Whether it matters to a model's answer that a face was found."""
    return any(one.find == "detect" for one in views) or mixes_face_and_scene(views)


def default_faces(views: Sequence[View], shows_faces: bool) -> str:
    """Which faces of a photograph a model with these views is about, for `Manifest.faces`:
    "largest" or "none". `shows_faces`: whether the pictures of its data set are faces, which
    decides where they are taken whole."""
    about_face = any(one.about_face for one in views) if views else shows_faces
    return "largest" if about_face else "none"


def render_views(
    images: Sequence[ImageOrImages],
    boxes: Sequence[Sequence[float] | None] | None,
    views: Views,
    frames: int = 1,
) -> tuple[Sequence[ImageOrImages], list[bool | None]]:
    """(photographs as a model with these views is shown them; whether it is known where the face is
    in each, None if that does not matter). Lists of pictures stay as they are."""
    found: list[bool | None] = [None] * len(images)
    if not views and frames == 1:
        return images, found
    shown = list(images)
    asked = requires_face(views)
    with face_locator(views) as find:
        for i, image in enumerate(images):
            if isinstance(image, Sequence):
                continue
            face = find(image, boxes[i] if boxes else None)
            shown[i] = image_views(image, face, views, frames, find.mesh)
            found[i] = face is not None if asked else None
    return shown, found


def _resized(image: Image.Image, square: tuple[int, int, int, int], size: int) -> Image.Image:
    """A square of the picture, black outside of it, `size` pixels a side."""
    side = square[2] - square[0]
    if side > MAX_SQUARE_SIDE:  # around a long strip: far more pixels than the strip has
        scale = MAX_SQUARE_SIDE / side
        small = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))),
            Image.Resampling.LANCZOS,
        )
        return _resized(small, tuple(round(x * scale) for x in square), size)  # type: ignore[arg-type]
    return image.crop(square).resize((size, size), Image.Resampling.LANCZOS)


def _square(box: Sequence[float], margin: float, margin_px: int = 0) -> tuple[int, int, int, int]:
    """The square with the box in its middle, in whole pixels: left, top, right, bottom."""
    x0, y0, x1, y1 = box
    side = max(1, round(max(x1 - x0, y1 - y0) * (1 + 2 * margin)) + 2 * margin_px)
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    return left, top, left + side, top + side


@dataclass(frozen=True)
class FaceLocator:
    """Call it with (image, box or None) for the face's box or None, as the views find it: by the
    detector, in and around the box, if one of them asks for that. For many threads. `mesh`: of a
    picture's largest face, where a view is drawn from it."""

    detector: detect.Detector | None
    looks: bool

    def __call__(self, image: Image.Image, box: Sequence[float] | None = None) -> Box | None:
        if not self.looks:
            return valid_box(box, image.size)
        assert self.detector is not None
        near = None if box is None else valid_box(box, image.size) or INVALID_BOX
        return self.detector.face(image, near)

    @property
    def mesh(self) -> MeshDetector | None:
        return None if self.detector is None else self.detector.mesh


@contextlib.contextmanager
def face_locator(views: Sequence[View]) -> Iterator[FaceLocator]:
    """Who finds the faces of these views. Raises UserError if that needs a package that is
    missing."""
    looks = any(one.find == "detect" for one in views)
    if not looks and not any(one.is_shape for one in views):
        yield FaceLocator(None, looks)
        return
    with detect.Detector() as detector:
        yield FaceLocator(detector, looks)
