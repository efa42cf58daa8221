"""Views: what a model is shown of a picture, such as the face, cut out. `crop_cache` makes the
views of many pictures once and stores them."""

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
BOX_COLOUR = (255, 0, 0)
MASK_COLOUR = (0, 0, 0)  # of a face that is blacked out
# Stands for an annotated box that is not valid, so that no other box is used in its place.
INVALID_BOX = (0.0, 0.0, 0.0, 0.0)
MAX_COORDINATE = 1_000_000.0  # pixels; annotations beyond it are not places in a picture
MESH_INPUT_SIZE = 256  # pixels of a side of the face in which a mesh is looked for
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
# The points (n, 2) of the mesh of a picture's largest face, in its pixels.
MeshDetector = Callable[[Image.Image], "np.ndarray | None"]


@dataclass(frozen=True)
class View:
    """A square picture made from a picture; what lies outside of the original is black.

    Attributes:
        size: pixels of a side.
        margin: kept around the box on each side, as a share of its longer side.
        margin_px: kept in addition, in pixels of the picture.
        view: "face" is the square around the face with its margins. "face_boxed" is the whole
            picture with a red frame around the face and its margins, so that a prompt can ask about
            one person among several. "face_masked" is the whole picture with that box blacked out,
            as in CAER-Net's second stream; "scene" the whole picture as it is. "person" is the
            square around the person with its margins. "landmarks" and "face_parsing" show what
            `shapes` draws of the face's mesh instead of its pixels; they are black where no mesh is
            detected.
        box_source: where the box is from, except for "scene" and "person". "annotation" takes the
            annotated box of the face, or else of the person. "detector" takes the largest face that
            `detect.Detector` finds, in and around the annotated box if there is one.

    Where a data set boxes faces and has no box for a picture, the box of its person is not used as
    that of a face, but "face_boxed" still frames it. Without any box the whole picture is taken.
    """

    size: int = 224
    margin: float = 0.2
    box_source: Literal["annotation", "detector"] = "annotation"
    view: Literal[
        "face", "face_boxed", "face_masked", "scene", "person", "landmarks", "face_parsing"
    ] = "face"
    margin_px: int = 0

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 2048:
            raise UserError(f"views: size is {self.size}, expected 16 to 2048 pixels")
        if not 0 <= self.margin <= 2:
            raise UserError(f"views: margin is {self.margin}, expected 0 to 2 times the box's side")
        if not 0 <= self.margin_px <= 500:
            raise UserError(f"views: margin_px is {self.margin_px}, expected 0 to 500 pixels")
        if self.box_source == "detector" and not self.about_face:
            raise UserError(
                f"views: box_source is detector, but view is {self.view}, which does not use a "
                "face's box: leave box_source out, or use view: face, face_boxed, face_masked, "
                "landmarks or face_parsing"
            )

    @property
    def about_face(self) -> bool:
        """Whether the view depends on where the face is."""
        return self.view not in ("scene", "person")

    @property
    def is_shape(self) -> bool:
        """Whether the view is drawn from the face's mesh."""
        return self.view in ("landmarks", "face_parsing")

    @property
    def is_face(self) -> bool:
        """Whether the view shows the face and nothing around it."""
        return self.view == "face" or self.is_shape

    @property
    def needs_face(self) -> bool:
        """Whether only a face's own box will do, and not that of the person around it."""
        return (self.is_face or self.view == "face_masked") and self.box_source == "annotation"

    @property
    def folder(self) -> Path:
        """Where pictures that are cut out in this way are kept."""
        by = self.box_source if self.box_source == "annotation" else detect.NAME
        by = f"{by}+mesh{shapes.VERSION}" if self.is_shape else by
        pixels = f"+{self.margin_px}" if self.margin_px else ""
        name = f"v{VERSION}-{self.size}px-margin{self.margin:g}{pixels}-{by}"
        name = name if self.view == "face" else f"{name}-{self.view}"
        return files.cache_dir() / "crops" / name


Views = tuple[View, ...]  # in the order in which a model is shown them; () for whole pictures


def parse_views(values: Sequence[Mapping[str, Any]] | None) -> Views:
    """The views that the field `views` of a settings file or manifest describes.

    Args:
        values: a list of mappings of `View`'s fields, or null.

    Raises:
        UserError: `values` is of another kind, or a field of a view is not valid.
    """
    if values is None:
        return ()
    is_list = isinstance(values, Sequence) and bool(values)
    if not is_list or not all(isinstance(mapping, Mapping) for mapping in values):
        raise UserError(
            f"views is {values!r}: give a list of views, such as [{{size: 224, view: face}}], or "
            "null for pictures as they are"
        )
    return tuple(config.from_dict(View, dict(mapping), where="views") for mapping in values)


def views_as_dicts(views: Sequence[View]) -> list[dict[str, Any]] | None:
    """The views as settings and manifests write them; `margin_px` only where it is not 0."""
    return [
        {k: v for k, v in dataclasses.asdict(view).items() if v or k != "margin_px"}
        for view in views
    ] or None


def valid_box(box: object, size: tuple[int, int] | None = None) -> Box | None:
    """The box, or None if it is not valid; annotations hold boxes of all kinds.

    Args:
        box: valid if it is four finite numbers and at least a pixel wide and high.
        size: (width, height) of its picture, of which it must cover a part.
    """
    try:
        x0, y0, x1, y1 = (float(x + 0) for x in box)  # type: ignore[attr-defined]
    except (TypeError, ValueError, OverflowError):
        return None
    if not all(math.isfinite(x) and abs(x) <= MAX_COORDINATE for x in (x0, y0, x1, y1)):
        return None
    inside = size is None or (x0 < size[0] and y0 < size[1] and x1 > 0 and y1 > 0)
    return (x0, y0, x1, y1) if inside and x1 - x0 >= 1 and y1 - y0 >= 1 else None


def render_view(
    image: Image.Image, box: Sequence[float] | None, view: View, mesh: MeshDetector | None = None
) -> Image.Image:
    """Render a view of a picture.

    Args:
        image: the picture, RGB.
        box: of the face or, for "person", of the person. If it is not valid, the whole picture is
            shown, with black bars.
        view: what to render.
        mesh: such as `detect.Detector.mesh`; required for views that are drawn from a mesh.

    Returns:
        An RGB picture of `view.size` x `view.size` pixels.
    """
    if view.is_shape:
        return _render_shape(image, box, view, mesh)
    usable_box = valid_box(box, image.size)
    whole = _square((0, 0, *image.size), 0)
    if usable_box is None or view.view == "scene":
        return _resized(image, whole, view.size)
    around = _square(usable_box, view.margin, view.margin_px)
    if view.view not in ("face_boxed", "face_masked"):
        return _resized(image, around, view.size)
    left, top, right, _ = whole
    picture = _resized(image, whole, view.size)
    scale = view.size / (right - left)
    moved = (around[0] - left, around[1] - top, around[2] - left, around[3] - top)
    corners = [min(max(round(x * scale), 0), view.size - 1) for x in moved]
    pen = ImageDraw.Draw(picture)
    if view.view == "face_masked":
        pen.rectangle(corners, fill=MASK_COLOUR)
    else:
        pen.rectangle(corners, outline=BOX_COLOUR, width=max(2, view.size // 100))
    return picture


def _render_shape(
    image: Image.Image, box: Sequence[float] | None, view: View, mesh: MeshDetector | None
) -> Image.Image:
    assert mesh is not None, f"{view.view} is drawn from a mesh"
    face = render_view(image, box, dataclasses.replace(view, view="face", size=MESH_INPUT_SIZE))
    points = mesh(face)
    if points is None:
        return Image.new("RGB", (view.size, view.size))
    draw = shapes.draw_landmarks if view.view == "landmarks" else shapes.draw_parsing
    return draw(points / MESH_INPUT_SIZE, view.size)


def mixes_face_and_scene(views: Sequence[View]) -> bool:
    """Whether the surroundings of a face are shown in addition to it, so that a model still gives
    an answer for a picture in which no face is found."""
    about_face = any(view.about_face for view in views)
    return len(views) > 1 and about_face and not all(view.is_face for view in views)


def image_views(
    image: Image.Image,
    face: Sequence[float] | None,
    views: Sequence[View],
    frames: int = 1,
    mesh: MeshDetector | None = None,
) -> Image.Image | list[Image.Image]:
    """The views of one photograph as a model is shown them. A photograph has no box of a person.

    Args:
        image: the picture, RGB.
        face: the box of its face; None if it is not known.
        views: () for the picture as it is.
        frames: pictures of each view; for video models the photograph is repeated.
        mesh: as of `render_view`.

    Returns:
        A picture, or a list of them if there are several: the frames of the first view, then those
        of the next.
    """
    return clip_views([image], [face], views, mesh, repeat=frames)


def clip_views(
    frames: Sequence[Image.Image],
    faces: Sequence[Sequence[float] | None],
    views: Sequence[View],
    mesh: MeshDetector | None = None,
    *,
    repeat: int = 1,
) -> Image.Image | list[Image.Image]:
    """The views of the frames of a clip, as `image_views` returns them.

    Args:
        frames: pictures, RGB.
        faces: the box of the face in each frame; None if it is not known.
        views: () for the frames as they are.
        mesh: as of `render_view`.
        repeat: how often each picture occurs in the result.
    """
    by_view = [
        [
            render_view(frame, face if view.about_face else None, view, mesh)
            for frame, face in zip(frames, faces, strict=True)
        ]
        for view in views
    ] or [list(frames)]
    pictures = [picture for of_view in by_view for picture in of_view for _ in range(repeat)]
    return pictures if len(pictures) > 1 else pictures[0]


def requires_face(views: Sequence[View]) -> bool:
    """Whether a model's answer depends on a face being found."""
    return any(view.box_source == "detector" for view in views) or mixes_face_and_scene(views)


def detects_face(views: Sequence[View]) -> bool:
    """Whether a model with these views is not run on a picture in which no face is detected."""
    detects = any(view.box_source == "detector" or view.is_shape for view in views)
    return detects and not mixes_face_and_scene(views)


def default_faces(views: Sequence[View], shows_faces: bool) -> str:
    """Which faces of a photograph a model with these views is about, for `Manifest.faces`.

    Args:
        views: () for pictures as they are.
        shows_faces: whether the pictures of its data set are faces, which decides without views.

    Returns:
        "largest" or "none".
    """
    about_face = any(view.about_face for view in views) if views else shows_faces
    return "largest" if about_face else "none"


def render_views(
    images: Sequence[ImageOrImages],
    boxes: Sequence[Sequence[float] | None] | None,
    views: Views,
    frames: int = 1,
) -> tuple[Sequence[ImageOrImages], list[bool | None]]:
    """The views of several photographs; lists of pictures stay as they are.

    Args:
        images: photographs, or lists of pictures that are views already.
        boxes: of the face in each; None if none is known.
        views: () for the pictures as they are.
        frames: pictures of each view.

    Returns:
        The pictures as a model is shown them, and for each whether its face was found: None if the
        answer does not depend on that.
    """
    face_found: list[bool | None] = [None] * len(images)
    if not views and frames == 1:
        return images, face_found
    prepared = list(images)
    with face_locator(views) as locate:
        for i, image in enumerate(images):
            if isinstance(image, Sequence):
                continue
            face = locate(image, boxes[i] if boxes else None)
            prepared[i] = image_views(image, face, views, frames, locate.mesh)
            face_found[i] = face is not None if requires_face(views) else None
    return prepared, face_found


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
    """Locates the face of a picture as views require it; can be called from several threads.

    Attributes:
        detector: None if no view needs one.
        detects: whether a view takes the detector's box; otherwise the annotated one is used.
    """

    detector: detect.Detector | None
    detects: bool

    def __call__(self, image: Image.Image, box: Sequence[float] | None = None) -> Box | None:
        """The box of the face in `image`, in and around the annotated `box` if there is one."""
        if not self.detects:
            return valid_box(box, image.size)
        assert self.detector is not None
        near = None if box is None else valid_box(box, image.size) or INVALID_BOX
        return self.detector.face(image, near)

    @property
    def mesh(self) -> MeshDetector | None:
        """The mesh of a picture's largest face, where a view is drawn from it."""
        return None if self.detector is None else self.detector.mesh


@contextlib.contextmanager
def face_locator(views: Sequence[View]) -> Iterator[FaceLocator]:
    """Open the locator for these views. Raises UserError if it needs a package that is missing."""
    detects = any(view.box_source == "detector" for view in views)
    if not detects and not any(view.is_shape for view in views):
        yield FaceLocator(None, detects)
        return
    with detect.Detector() as detector:
        yield FaceLocator(detector, detects)
