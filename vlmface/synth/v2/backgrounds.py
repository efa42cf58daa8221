"""What is behind a person: out of focus, more or less."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from vlmface.synth.appearance import linear
from vlmface.synth.v2 import texture
from vlmface.synth.v2.parameters import Photo


def draw(size: int, view: Photo) -> np.ndarray:
    """The background (size, size, 3), linear RGB."""
    rng = np.random.default_rng([47, view.background_seed])
    fine = KINDS[view.backdrop][1]
    small = min(size, max(12, int(rng.integers(*fine))))
    colours = KINDS[view.backdrop][0](rng, small, view)
    pixels = (np.clip(colours, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
    table = linear(np.arange(256) / 255)
    return table[np.asarray(image)].astype(np.float32)


def _mixed(view: Photo, share: np.ndarray) -> np.ndarray:
    """Between the view's two colours, sRGB, by a share (h, w)."""
    low, high = np.array(view.background, np.float32)
    return low + np.clip(share, 0, 1)[..., None] * (high - low)


def _slope(rng: np.random.Generator, size: int) -> np.ndarray:
    axis = np.linspace(-1, 1, size)
    angle = rng.uniform(0, 2 * np.pi)
    return axis * np.cos(angle) + axis[:, None] * np.sin(angle)


def _noise(rng: np.random.Generator, size: int, roughness: float, scale: float) -> np.ndarray:
    """Noise (size, size), standard deviation about 1, of `scale` pixels of a tile a pixel."""
    x, y = rng.uniform(0, texture.SIZE, 2)
    axis = np.arange(size) * scale
    u, v = np.meshgrid(axis + x, axis + y)
    return texture.at(texture.tile(roughness), u, v)


def _studio(rng: np.random.Generator, size: int, view: Photo) -> np.ndarray:
    axis = np.linspace(-1, 1, size)
    centre, radius = rng.uniform(-0.6, 0.6, 2), rng.uniform(0.7, 2.0)
    spot = np.exp(-np.square(np.hypot(axis - centre[0], axis[:, None] - centre[1]) / radius))
    return _mixed(view, spot * rng.uniform(0.3, 1) + 0.1 * _slope(rng, size))


def _wall(rng: np.random.Generator, size: int, view: Photo) -> np.ndarray:
    share = 0.5 + 0.3 * _slope(rng, size) + rng.uniform(0.02, 0.12) * _noise(rng, size, 0.8, 2.0)
    return _mixed(view, share)


def _cloud(rng: np.random.Generator, size: int, view: Photo) -> np.ndarray:
    share = 0.5 + rng.uniform(0.1, 0.35) * _noise(rng, size, 1.6, texture.SIZE / size / 2)
    return _mixed(view, share) + rng.uniform(0, 0.03) * rng.normal(0, 1, 3)


def _room(rng: np.random.Generator, size: int, view: Photo) -> np.ndarray:
    """Pieces of furniture, windows and pictures: rectangles that stand in front of each other."""
    picture = _mixed(view, 0.5 + 0.25 * _slope(rng, size))
    for _ in range(int(rng.integers(3, 12))):
        wide, high = rng.uniform(0.05, 0.6), rng.uniform(0.08, 0.9)
        x, y = rng.uniform(-0.2, 1), rng.uniform(-0.3, 1)
        left, right = (int(np.clip(t, 0, 1) * size) for t in (x, x + wide))
        top, bottom = (int(np.clip(t, 0, 1) * size) for t in (y, y + high))
        colour = rng.uniform(0.02, 0.95) + rng.normal(0, 0.09, 3)
        shade = 1 + 0.15 * _slope(rng, size)[top:bottom, left:right, None]
        picture[top:bottom, left:right] = np.clip(colour, 0, 1) * shade
    return picture + rng.uniform(0, 0.03) * _noise(rng, size, 0.5, 1.0)[..., None]


def _outdoors(rng: np.random.Generator, size: int, view: Photo) -> np.ndarray:
    """Sky over leaves or stones, with spots of light."""
    horizon = rng.uniform(-0.4, 1.0)
    height = np.linspace(-1, 1, size)[:, None] + 0.15 * _noise(rng, size, 1.6, 1.5)
    sky = np.array([0.62, 0.74, 0.88]) * rng.uniform(0.7, 1.1) + rng.normal(0, 0.04, 3)
    hue = np.array([(0.22, 0.30, 0.12), (0.40, 0.37, 0.33), (0.45, 0.38, 0.25)])[rng.integers(3)]
    ground = hue * np.exp(0.3 * _noise(rng, size, 1.3, 2.0))[..., None] * rng.uniform(0.6, 1.4)
    picture = np.where((height < horizon - 0.9)[..., None], sky, ground)
    axis = np.linspace(-1, 1, size)
    for _ in range(int(rng.integers(0, 9))):
        centre, radius = rng.uniform(-1, 1, 2), rng.uniform(0.05, 0.2)
        spot = np.hypot(axis - centre[0], axis[:, None] - centre[1]) < radius
        picture = picture + rng.uniform(0.1, 0.4) * spot[..., None]
    return picture


# Kind -> what draws it in sRGB, and from how few pixels: fewer are less in focus.
KINDS: dict[
    str, tuple[Callable[[np.random.Generator, int, Photo], np.ndarray], tuple[int, int]]
] = {
    "studio": (_studio, (24, 64)),
    "wall": (_wall, (32, 160)),
    "cloud": (_cloud, (24, 96)),
    "room": (_room, (20, 90)),
    "outdoors": (_outdoors, (16, 70)),
}
