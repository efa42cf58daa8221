"""Random colours, and small pictures that are painted onto the things of a scene."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageDraw

from vlmface.synth.appearance import Colour


def tint(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> Colour:
    """A colour of any hue, with saturation and value from these ranges."""
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))


def as_bytes(colour: Colour) -> tuple[int, int, int]:
    """A colour of 0..1 as 0..255."""
    red, green, blue = (round(255 * channel) for channel in colour)
    return red, green, blue


def canvas(width: int, height: int, colour: Colour) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An image of one colour, and a pen for it."""
    image = Image.new("RGB", (width, height), as_bytes(colour))
    return image, ImageDraw.Draw(image)
