"""Corrupted pictures, for a curve of accuracy over strength.

In the manner of ImageNet-C (Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations", ICLR 2019): each corruption has five strengths, 0 leaves the
picture as it is. The kinds and numbers are ours, for faces. Lengths are shares of the picture's
size, so that a picture and its enlargement are hurt alike:

    blur            Gaussian blur; standard deviation, share of the size
    noise           Gaussian noise with a grain of 1/96 of the size; standard deviation, grey levels
    jpeg            JPEG at 224 pixels; quality as in libjpeg
    low_resolution  shrunk and enlarged again; pixels that are left of the size
    rotation        in the picture's plane around its middle, to a side by the key; degrees
    darkness        gain * value ** gamma, values in 0..1; gain, gamma
    mask            a surgical mask; how far up its edge lies, share of the face's height
    glasses         dark glasses; opacity, half the height of a lens as share of the face's height
    hand            a hand before the face, from a side by the key; its length and how far its palm
                    has moved from the edge to the middle of the face, shares of the face's height
                    and width

The size of a picture is the square root of its area, in pixels.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vlmface.errors import UserError

STRENGTHS = range(6)  # 0: untouched
# Corruption -> its parameters at strengths 1 to 5, as described above.
PARAMETERS: dict[str, tuple[tuple[float, ...], ...]] = {
    "blur": ((0.008,), (0.012,), (0.017,), (0.024,), (0.032,)),
    "noise": ((9,), (18,), (28,), (40,), (55,)),
    "jpeg": ((25,), (16,), (11,), (7,), (4,)),
    "low_resolution": ((48,), (36,), (28,), (22,), (17,)),
    "rotation": ((7,), (14,), (22,), (32,), (45,)),
    "darkness": ((0.85, 1.1), (0.7, 1.2), (0.55, 1.3), (0.42, 1.4), (0.32, 1.5)),
    "mask": ((0.18,), (0.27,), (0.36,), (0.45,), (0.52,)),
    "glasses": ((0.45, 0.07), (0.65, 0.085), (0.8, 0.1), (0.92, 0.12), (1.0, 0.15)),
    "hand": ((0.45, 0.05), (0.6, 0.15), (0.75, 0.27), (0.87, 0.39), (0.97, 0.5)),
}
NAMES: tuple[str, ...] = tuple(PARAMETERS)
OCCLUSIONS: tuple[str, ...] = ("mask", "glasses", "hand")

# Where the face lies in a face crop, and the eyes in the face: shares of width and height.
FACE_IN_CROP = (0.14, 0.07, 0.86, 0.94)
EYE_HEIGHT, EYE_FROM_MIDDLE = 0.41, 0.20
MASKS = ((172, 205, 222), (226, 229, 230), (58, 60, 66))  # sRGB: light blue, white, black
GRAIN, JPEG_SIZE = 96, 224  # sizes at which noise and JPEG blocks are a pixel's and 8 pixels' wide

Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]


def corrupt(
    image: Image.Image,
    name: str,
    strength: int,
    *,
    key: str,
    box: Sequence[float] | None = None,
) -> Image.Image:
    """A new RGB picture of the same size, corrupted by `name` (see NAMES) at a strength of 0 to 5.

    `key` is the picture's id: with the name it decides all that is random, the same way at every
    strength. Occlusions are laid over the face in `box`, [x0, y0, x1, y1] in pixels, forehead to
    chin and ear to ear; without one the picture counts as a face crop (FACE_IN_CROP). Raises
    UserError for an unknown name or strength and for an empty box.
    """
    if name not in PARAMETERS:
        raise UserError(f"there is no corruption {name!r}: use one of {', '.join(NAMES)}")
    if strength not in STRENGTHS:
        raise UserError(f"a corruption's strength is a whole number from 0 to 5, not {strength!r}")
    clean = image.convert("RGB")
    if strength == 0:
        return clean
    rng = np.random.default_rng([zlib.crc32(name.encode()), zlib.crc32(key.encode())])
    numbers = PARAMETERS[name][int(strength) - 1]
    if name in OCCLUSIONS:
        return _OCCLUDE[name](clean, _face(clean, box), rng, *numbers)
    return _CORRUPT[name](clean, rng, *numbers)


def _face(image: Image.Image, box: Sequence[float] | None) -> Box:
    if box is None:
        x0, y0, x1, y1 = FACE_IN_CROP
        return x0 * image.width, y0 * image.height, x1 * image.width, y1 * image.height
    x0, y0, x1, y1 = box
    if not (x0 < x1 and y0 < y1):
        raise UserError(f"a face box is [x0, y0, x1, y1] with x0 < x1 and y0 < y1, not {box}")
    return x0, y0, x1, y1


def _resized(image: Image.Image, size: float, up: Image.Resampling) -> Image.Image:
    """The picture at another size (square root of its area), in its own shape."""
    scale = size / math.sqrt(image.width * image.height)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS if scale < 1 else up)


def _blur(image: Image.Image, rng: np.random.Generator, deviation: float) -> Image.Image:
    size = math.sqrt(image.width * image.height)
    return image.filter(ImageFilter.GaussianBlur(deviation * size))


def _noise(image: Image.Image, rng: np.random.Generator, deviation: float) -> Image.Image:
    scale = GRAIN / math.sqrt(image.width * image.height)
    width, height = (max(1, round(side * scale)) for side in image.size)
    grain = rng.normal(0, deviation, (3, height, width)).astype(np.float32)
    layers = [
        np.asarray(Image.fromarray(layer).resize(image.size, Image.Resampling.BICUBIC))
        for layer in grain
    ]
    return _added(image, np.stack(layers, -1))


def _jpeg(image: Image.Image, rng: np.random.Generator, quality: float) -> Image.Image:
    # What the compression does at one size is added at the picture's own: blocks keep their share
    # of the face, and a large picture is not blurred on top.
    small = _resized(image, JPEG_SIZE, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=int(quality))
    error = np.asarray(Image.open(buffer).convert("RGB"), np.float32) - np.asarray(small)
    layers = [
        np.asarray(Image.fromarray(error[..., i]).resize(image.size, Image.Resampling.BICUBIC))
        for i in range(3)
    ]
    return _added(image, np.stack(layers, -1))


def _added(image: Image.Image, change: np.ndarray) -> Image.Image:
    """The picture with a change (h, w, 3) in grey levels."""
    changed = np.asarray(image, np.float32) + change
    return Image.fromarray(np.clip(np.rint(changed), 0, 255).astype(np.uint8))


def _low_resolution(image: Image.Image, rng: np.random.Generator, left: float) -> Image.Image:
    if left >= math.sqrt(image.width * image.height):
        return image  # it has no more than that
    small = _resized(image, left, Image.Resampling.BICUBIC)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def _rotation(image: Image.Image, rng: np.random.Generator, degrees: float) -> Image.Image:
    width, height = image.size
    # Edges are extended: black corners would be a cue.
    margin = math.ceil((math.hypot(width, height) - min(width, height)) / 2) + 2
    padded = np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), "edge")
    turned = Image.fromarray(padded).rotate(
        degrees if rng.random() < 0.5 else -degrees, Image.Resampling.BICUBIC
    )
    return turned.crop((margin, margin, margin + width, margin + height))


def _darkness(
    image: Image.Image, rng: np.random.Generator, gain: float, gamma: float
) -> Image.Image:
    values = np.arange(256) / 255
    table = np.rint(255 * gain * values**gamma).astype(int).tolist()
    return image.point(table * 3)


class _Layer:
    """A transparent layer over the picture, drawn in shares of a face box: x to the right, y down,
    lengths in shares of the box's height."""

    def __init__(self, image: Image.Image, face: Box) -> None:
        self.image, self.face = image, face
        self.fine = max(1, min(4, 1024 // max(image.size)))  # drawn larger, for smooth edges
        size = (image.width * self.fine, image.height * self.fine)
        self.layer = Image.new("RGBA", size, (0, 0, 0, 0))
        self.pen = ImageDraw.Draw(self.layer)
        self.unit = (face[3] - face[1]) * self.fine  # pixels
        self.across = (face[2] - face[0]) / (face[3] - face[1])  # the box's width / height

    def place(self, x: float, y: float) -> tuple[float, float]:
        x0, y0, x1, y1 = self.face
        return (x0 + x * (x1 - x0)) * self.fine, (y0 + y * (y1 - y0)) * self.fine

    def polygon(self, points: Sequence[tuple[float, float]], colour: Colour) -> None:
        self.pen.polygon([self.place(*point) for point in points], fill=(*colour, 255))

    def line(self, points: Sequence[tuple[float, float]], width: float, colour: Colour) -> None:
        """A stroke with round ends."""
        places = [self.place(*point) for point in points]
        wide = max(1, round(width * self.unit))
        self.pen.line(places, fill=(*colour, 255), width=wide, joint="curve")
        for x, y in places:
            r = wide / 2
            self.pen.ellipse((x - r, y - r, x + r, y + r), fill=(*colour, 255))

    def over(self, opacity: float = 1.0) -> Image.Image:
        """The picture under the layer."""
        layer = self.layer.resize(self.image.size, Image.Resampling.BOX)
        alpha = layer.getchannel("A").point([round(a * opacity) for a in range(256)])
        covered = self.image.copy()
        covered.paste(layer.convert("RGB"), mask=alpha)
        return covered


def _shade(colour: Sequence[float], factor: float) -> Colour:
    red, green, blue = (min(255, round(value * factor)) for value in colour)
    return red, green, blue


def _mask(image: Image.Image, face: Box, rng: np.random.Generator, reach: float) -> Image.Image:
    colour = MASKS[int(rng.integers(len(MASKS)))]
    layer = _Layer(image, face)
    top = 1 - reach
    ear = min(top + 0.06, 0.80)
    # Over the nose the edge rises, at the cheeks it falls, under the chin it closes.
    edge = [(0.04, ear), (0.22, top + 0.045), (0.38, top + 0.01), (0.5, top)]
    under = [(0.5, 1.03), (0.36, 1.02), (0.22, 0.96), (0.09, 0.86)]
    outline = edge + [(1 - x, y) for x, y in edge[-2::-1]]
    outline += [(1 - x, y) for x, y in under[:0:-1]] + under
    for side in (-0.02, 1.02):
        cheek = 0.05 if side < 0 else 0.95
        layer.line([(cheek, ear + 0.01), (side, 0.42)], 0.012, _shade(colour, 0.92))
    layer.polygon(outline, colour)
    for share in (0.35, 0.55, 0.75):
        y = top + share * (1.02 - top)
        pleat = [(0.18, y - 0.012), (0.35, y + 0.005), (0.5, y + 0.01)]
        pleat += [(1 - x, y) for x, y in pleat[-2::-1]]
        layer.line(pleat, 0.010, _shade(colour, 0.84))
    layer.line(edge[1:] + [(1 - x, y) for x, y in edge[-2:0:-1]], 0.014, _shade(colour, 0.9))
    return layer.over()


def _glasses(
    image: Image.Image, face: Box, rng: np.random.Generator, opacity: float, half: float
) -> Image.Image:
    layer = _Layer(image, face)
    dark = (22, 22, 26)
    wide = 0.14 + 0.25 * half  # half of a lens, share of the face's width
    for side in (-1, 1):
        middle = 0.5 + side * EYE_FROM_MIDDLE
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        # A superellipse: the rounded square of a lens.
        x = middle + wide * np.sign(np.cos(angles)) * np.abs(np.cos(angles)) ** 0.6
        y = EYE_HEIGHT + 0.01 + half * np.sign(np.sin(angles)) * np.abs(np.sin(angles)) ** 0.6
        layer.polygon(list(zip(x.tolist(), y.tolist(), strict=True)), dark)
    glass = layer.over(opacity)
    frame = _Layer(glass, face)
    inner = EYE_FROM_MIDDLE - wide
    height = EYE_HEIGHT - 0.35 * half
    frame.line([(0.5 - inner, height), (0.5, height - 0.01), (0.5 + inner, height)], 0.022, dark)
    for side in (-1, 1):
        hinge = 0.5 + side * (EYE_FROM_MIDDLE + wide)
        frame.line([(hinge - side * 0.01, height), (0.5 + side * 0.52, height)], 0.022, dark)
    return frame.over()


# A right hand seen from its back, the wrist below: x to the right, y up, in shares of its length.
_FINGERS = (  # knuckle, tip, width
    ((-0.17, 0.33), (-0.27, 0.72), 0.105),
    ((-0.06, 0.38), (-0.09, 0.86), 0.115),
    ((0.06, 0.38), (0.09, 0.90), 0.115),
    ((0.17, 0.34), (0.25, 0.82), 0.11),
)
_THUMB = ((0.14, 0.06), (0.40, 0.36), 0.125)


def _hand(
    image: Image.Image, face: Box, rng: np.random.Generator, length: float, inward: float
) -> Image.Image:
    side = 1 if rng.random() < 0.5 else -1
    skin = _skin(image, face)
    layer = _Layer(image, face)
    lean = math.radians(24)
    palm_x, palm_y = 0.5 + side * 0.5 * (1 - inward), 1.02

    def at(point: tuple[float, float]) -> tuple[float, float]:
        """From the hand to the face, the fingers leaning to its middle."""
        x, y = point[0] * length, point[1] * length
        across = x * math.cos(lean) - y * math.sin(lean)
        up = x * math.sin(lean) + y * math.cos(lean)
        return palm_x + side * across / layer.across, palm_y - up

    strokes = [
        ([(0.0, -0.9), (0.0, 0.0)], 0.30),  # forearm
        ([(-0.09, 0.05), (-0.09, 0.27)], 0.28),  # palm
        ([(0.09, 0.05), (0.09, 0.27)], 0.28),
        *(([knuckle, tip], width) for knuckle, tip, width in (*_FINGERS, _THUMB)),
    ]
    for points, width in strokes:
        places = [at(point) for point in points]
        layer.line(places, width * length + 0.018, _shade(skin, 0.62))
        layer.line(places, width * length, _shade(skin, 0.94))
    for points, width in strokes[:3]:  # the palm over the roots of the fingers
        layer.line([at(point) for point in points], width * length * 0.97, _shade(skin, 0.94))
    return layer.over()


def _skin(image: Image.Image, face: Box) -> list[float]:
    """Median colour of cheeks and nose, three values 0..255; of the picture if they are outside."""
    x0, y0, x1, y1 = face
    left, top = x0 + 0.25 * (x1 - x0), y0 + 0.48 * (y1 - y0)
    right, bottom = x0 + 0.75 * (x1 - x0), y0 + 0.68 * (y1 - y0)
    pixels = np.asarray(image)
    rows = slice(max(0, math.floor(top)), max(0, math.ceil(bottom)))
    columns = slice(max(0, math.floor(left)), max(0, math.ceil(right)))
    cheeks = pixels[rows, columns].reshape(-1, 3)
    return np.median(cheeks if len(cheeks) else pixels.reshape(-1, 3), axis=0).tolist()


_CORRUPT: dict[str, Callable[..., Image.Image]] = {
    "blur": _blur,
    "noise": _noise,
    "jpeg": _jpeg,
    "low_resolution": _low_resolution,
    "rotation": _rotation,
    "darkness": _darkness,
}
_OCCLUDE: dict[str, Callable[..., Image.Image]] = {
    "mask": _mask,
    "glasses": _glasses,
    "hand": _hand,
}
