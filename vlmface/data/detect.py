"""Face detection with MediaPipe's face landmarker: `pip install 'vlmface[detect]'`."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmface.data import landmarker_file
from vlmface.errors import UserError
from vlmface.utils import image_conversion

if TYPE_CHECKING:
    from PIL import Image

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
NAME = "mediapipe-face-landmarker"
MAX_FACES = 20  # faces that are looked for in one picture
# Landmarkers of a detector, of about 25 MiB each. More than cores bring nothing.
MAX_LANDMARKERS = min(16, os.cpu_count() or 1)
SEARCH_MARGIN = 0.5  # of a given box's longer side, on each side, is searched for its face


class Detector:
    """Detects faces; any number of threads may share one. Use it in a `with` block.

    A box spans the 468 points of the face mesh: forehead to chin, ear to ear. The landmarker finds
    faces from about a tenth of the picture's longer side on; if it finds none, tiles of half the
    sides are searched one by one.

    Raises:
        UserError: the package is not installed, or its weights are not the known file.
    """

    def __init__(self) -> None:
        try:
            from mediapipe.tasks.python import vision
        except ImportError as error:
            raise UserError(f"to find faces, pip install 'vlmface[detect]' ({error})") from error
        self._vision = vision
        self._weights = landmarker_file.read()
        self._landmarkers = _Pool(self._landmarker, MAX_LANDMARKERS)

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._landmarkers.close()

    def faces(self, image: Image.Image) -> list[Box]:
        """The boxes of the faces in an image of any mode, in its own pixels, the largest first."""
        return [bounding_box(mesh) for mesh in self.meshes(image)]

    def mesh(self, image: Image.Image) -> np.ndarray | None:
        """The mesh of the largest face, as of `meshes`; None without a face."""
        return next(iter(self.meshes(image)), None)

    def meshes(self, image: Image.Image) -> list[np.ndarray]:
        """The points (n, 2) of each face's mesh in pixels, numbered as MediaPipe does, the largest
        face first. Of two that are equally large, the left one is first."""
        image = image_conversion.as_rgb(image)
        meshes = self._detect_once(image)
        if not meshes:
            width, height = -(-image.width // 2), -(-image.height // 2)
            for i, j in itertools.product(range(3), range(3)):  # half of a tile from the next
                left, top = i * width // 2, j * height // 2
                tile = self._detect_once(image.crop((left, top, left + width, top + height)))
                moved = [mesh + np.array([left, top]) for mesh in tile]
                meshes += [
                    mesh
                    for mesh in moved
                    if not any(_same(bounding_box(mesh), bounding_box(other)) for other in meshes)
                ]
        return sorted(meshes, key=lambda mesh: _order(bounding_box(mesh)))

    def _detect_once(self, image: Image.Image) -> list[np.ndarray]:
        import mediapipe

        pixels = np.ascontiguousarray(image)
        with self._landmarkers.lend() as landmarker:
            result = landmarker.detect(
                mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels)
            )
        return [
            np.array([(p.x, p.y) for p in points]) * image.size for points in result.face_landmarks
        ]

    def face(self, image: Image.Image, near: Sequence[float] | None = None) -> Box | None:
        """The largest face; of those in and around the box `near`, if one is given, the largest
        whose middle lies in it. None without such a face."""
        if near is None:
            return next(iter(self.faces(image)), None)
        x0, y0, x1, y1 = near
        margin = SEARCH_MARGIN * max(x1 - x0, y1 - y0)
        left, top = max(0, round(x0 - margin)), max(0, round(y0 - margin))
        right = min(image.width, round(x1 + margin))
        bottom = min(image.height, round(y1 + margin))
        if right - left < 2 or bottom - top < 2:
            return None
        for a, b, c, d in self.faces(image.crop((left, top, right, bottom))):
            x, y = left + (a + c) / 2, top + (b + d) / 2
            if x0 <= x <= x1 and y0 <= y <= y1:
                return a + left, b + top, c + left, d + top
        return None

    def _landmarker(self) -> Any:
        from mediapipe.tasks.python import BaseOptions

        options = self._vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_buffer=self._weights), num_faces=MAX_FACES
        )
        with quiet():
            return self._vision.FaceLandmarker.create_from_options(options)


class _Pool:
    """Lends objects to threads, `most` at a time. An object is made when all others are lent, so
    that consecutive threads share the first. Objects that are returned after `close` are closed;
    the pool itself can be used again."""

    def __init__(self, make: Callable[[], Any], most: int) -> None:
        self._make = make
        self._turns = threading.BoundedSemaphore(most)
        self._lock = threading.Lock()
        self._idle: list[Any] = []
        self._age = 0  # how often it was closed

    @contextlib.contextmanager
    def lend(self) -> Iterator[Any]:
        with self._turns:
            with self._lock:  # also around `make`, which is not for two threads at once
                age = self._age
                thing = self._idle.pop() if self._idle else self._make()
            try:
                yield thing
            finally:
                with self._lock:
                    if age < self._age:
                        thing.close()
                    else:
                        self._idle.append(thing)

    def close(self) -> None:
        with self._lock:
            self._age += 1
            while self._idle:
                self._idle.pop().close()


def unavailable_reason() -> str | None:
    """Why a `Detector` cannot be created here; None if it can."""
    try:
        Detector()
    except UserError as error:
        return str(error)
    return None


def bounding_box(mesh: np.ndarray) -> Box:
    """The box that spans a face's points."""
    (left, top), (right, bottom) = mesh.min(0).tolist(), mesh.max(0).tolist()
    return left, top, right, bottom


def _order(box: Box) -> tuple[float, float]:
    """Sorts the largest to the front."""
    return -(box[2] - box[0]) * (box[3] - box[1]), box[0] + box[2]


def _same(a: Box, b: Box) -> bool:
    """Whether the middle of one box lies in the other."""
    x, y = (a[0] + a[2]) / 2, (a[1] + a[3]) / 2
    return b[0] < x < b[2] and b[1] < y < b[3]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the C++ library writes to the standard error while it starts."""
    saved_stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved_stderr, 2)
        os.close(saved_stderr)
