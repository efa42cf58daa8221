"""The appearance of points of the face: skin, lips, eyes, hair, brows, and wrinkles of AUs.

All functions work on points given in template coordinates (head.py), so that a colour sticks to the
skin. Colours are linear RGB in 0..1. Positions of lines are read off the template mesh.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]

SKIN_TONES: tuple[Colour, ...] = (  # light to dark, sRGB
    (0.96, 0.82, 0.74),
    (0.92, 0.74, 0.63),
    (0.84, 0.64, 0.51),
    (0.71, 0.51, 0.38),
    (0.54, 0.37, 0.27),
    (0.38, 0.25, 0.18),
)
HAIR_COLOURS: dict[str, Colour] = {  # sRGB
    "black": (0.09, 0.08, 0.08),
    "dark brown": (0.20, 0.13, 0.09),
    "brown": (0.36, 0.23, 0.14),
    "blond": (0.74, 0.58, 0.36),
    "red": (0.55, 0.24, 0.11),
    "grey": (0.62, 0.61, 0.60),
    "white": (0.88, 0.87, 0.85),
}
EYE_COLOURS: dict[str, Colour] = {
    "brown": (0.30, 0.17, 0.09),
    "dark brown": (0.16, 0.09, 0.06),
    "blue": (0.32, 0.47, 0.62),
    "green": (0.36, 0.46, 0.30),
    "grey": (0.45, 0.49, 0.52),
}
# style -> (thickness on top, at the sides in dm, lowering of the hair line, curtain length in dm)
HAIR_STYLES: dict[str, tuple[float, float, float, float]] = {
    "bald": (0.0, 0.0, 0.0, 0.0),
    "buzz cut": (0.015, 0.01, 0.0, 0.0),
    "short": (0.11, 0.05, 0.04, 0.0),
    "full": (0.22, 0.12, 0.08, 0.0),
    "fringe": (0.14, 0.09, 0.20, 0.0),
    "curly": (0.30, 0.24, 0.06, 0.0),
    "bob": (0.15, 0.13, 0.08, 1.0),
    "long": (0.13, 0.11, 0.05, 2.2),
}


@dataclass(frozen=True)
class Appearance:
    """Colours and hair of one person. `tone` 0 (light) to 1 (dark); `age` in years draws lines."""

    tone: float
    warmth: float
    hair_colour: str
    hair_style: str
    brow_thickness: float
    brow_arch: float
    brow_density: float
    eye_colour: str
    lip_tint: float
    stubble: float
    beard: float
    age: float
    cloth: Colour
    texture_seed: int


def linear(colour: Colour | np.ndarray) -> np.ndarray:
    """sRGB to linear, by the plain power 2.2."""
    return np.power(np.asarray(colour, np.float32), 2.2)


def skin_colour(tone: float, warmth: float) -> np.ndarray:
    """Linear albedo (3,) of a skin tone; `warmth` (-1..1) moves it between olive and pink."""
    scaled = tone * (len(SKIN_TONES) - 1)
    index = min(int(scaled), len(SKIN_TONES) - 2)
    low, high = np.array(SKIN_TONES[index]), np.array(SKIN_TONES[index + 1])
    colour = low + (high - low) * (scaled - index)
    return linear(np.clip(colour * (1 + warmth * np.array([0.03, -0.02, -0.035])), 0, 1))


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def bump(x: np.ndarray, width: float) -> np.ndarray:
    """A bell of height 1 at 0."""
    return np.exp(-np.square(x / width))


def noise(points: np.ndarray, frequency: float, seed: int) -> np.ndarray:
    """Cheap smooth noise (n,) in about -1..1: a sum of random plane waves over points (n, 3)."""
    rng = np.random.default_rng(seed)
    waves = rng.normal(size=(6, 3)).astype(np.float32) * np.float32(frequency)
    phases = rng.uniform(0, 2 * np.pi, 6).astype(np.float32)
    return np.sin(points @ waves.T + phases).sum(1) / 3


def hair_amount(points: np.ndarray, lowering: float) -> np.ndarray:
    """Height (n,) above the hair line in dm, negative on bare skin."""
    x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
    front = 8.06 - 0.28 * np.square(x / 0.75) - lowering * (1 - 0.35 * np.square(x / 0.5))
    side = np.interp(z, [0.05, 0.30, 0.62, 0.80, 1.05, 1.15], [6.75, 7.25, 7.35, 7.15, 7.75, 7.9])
    side = side.astype(np.float32)
    return y - np.where(z > 1.1, front, np.minimum(side, np.maximum(front, 7.6)))


def brow_alpha(points: np.ndarray, look: Appearance) -> np.ndarray:
    """Opacity (n,) of the eyebrows."""
    x, y = np.abs(points[:, 0]), points[:, 1]
    along = (x - 0.10) / 0.46
    arch = look.brow_arch * (0.045 * np.sin(np.pi * np.clip(along, 0, 1) ** 1.4) - 0.012 * along)
    line = 7.462 + 0.022 * np.clip(along, 0, 0.7) + arch
    thickness = 0.017 + 0.026 * look.brow_thickness
    taper = thickness * (1.05 - 0.6 * np.clip(along, 0, 1))
    alpha = bump(y - line, 1.0) * np.clip(1.6 - np.abs(y - line) / taper, 0, 1)
    alpha *= smoothstep(-0.06, 0.06, along) * smoothstep(1.05, 0.85, along) * (points[:, 2] > 0.9)
    strands = 0.93 + 0.07 * np.sin(190 * x + 140 * (y - line))
    return np.clip(alpha * strands * (0.62 + 0.38 * look.brow_density), 0, 1)


def wrinkles(points: np.ndarray, aus: Mapping[int, np.ndarray | float], age: float) -> np.ndarray:
    """Relief (n,) drawn on the skin: negative in a furrow, positive on the fold next to it.

    `aus` gives the strength 0..1 of each AU, a number or one per point (left and right differ).
    Age adds faint lines of its own, in the same places: old skin at rest is not an expression.
    """
    skin = _Skin(points, aus, age)
    skin.forehead()
    skin.glabella()
    skin.eyes()
    skin.nasolabial_fold()
    skin.nose()
    skin.mouth_corners()
    skin.chin()
    skin.lips()
    return skin.relief


class _Skin:
    """The relief of skin points, added up region by region."""

    def __init__(
        self, points: np.ndarray, aus: Mapping[int, np.ndarray | float], age: float
    ) -> None:
        self.points, self.aus = points, aus
        self.x, self.y = np.abs(points[:, 0]), points[:, 1]
        self.old = float(np.clip((age - 38) / 60, 0, 0.55))
        self.front = (points[:, 2] > 0.85).astype(np.float32)
        self.relief = np.zeros(len(points), np.float32)

    def strength(self, au: int) -> np.ndarray | float:
        return self.aus.get(au, 0.0)

    def shows(self, *units: int) -> bool:
        return any(au in self.aus for au in units)

    def furrow(self, distance: np.ndarray, width: float, amount: np.ndarray | float) -> None:
        self.relief += amount * (
            0.55 * bump(distance - 1.9 * width, 1.3 * width) - bump(distance, width)
        )

    def forehead(self) -> None:
        """The middle by AU 1, the sides by AU 2; AU 4 pushes against it."""
        x, y, front = self.x, self.y, self.front
        if self.shows(1, 2) or self.old:
            lines = self.strength(1) * smoothstep(0.40, 0.18, x) + self.strength(2) * smoothstep(
                0.14, 0.32, x
            )
            lines = np.clip(lines, 0, 1.0) * smoothstep(0.66, 0.5, x) + 0.5 * self.old * smoothstep(
                0.6, 0.3, x
            )
            sag = 0.05 * np.cos(x * 6) * (self.strength(1) - 0.6 * self.strength(2))
            for height in (7.70, 7.81, 7.92):
                self.furrow(y - height - sag, 0.020, 0.85 * lines * front)

    def glabella(self) -> None:
        """Two upright lines and the pinched skin between the brows."""
        x, y, front = self.x, self.y, self.front
        if self.shows(4) or self.old:
            upright = smoothstep(7.36, 7.44, y) * smoothstep(7.68, 7.56, y)
            self.furrow(
                x - 0.055 - 0.03 * (y - 7.45),
                0.016,
                (1.15 * self.strength(4) + 0.35 * self.old) * upright * front,
            )
            self.relief -= 0.55 * self.strength(4) * bump(x, 0.13) * bump(y - 7.40, 0.05) * front

    def eyes(self) -> None:
        """Crow's feet and the pouch of the lower lid."""
        x, y, front = self.x, self.y, self.front
        if self.shows(6, 7) or self.old:
            fan = np.arctan2(y - 7.27, np.maximum(x - 0.46, 1e-3))
            reach = np.hypot(x - 0.46, y - 7.27)
            rays = bump(reach - 0.12, 0.06) * (x > 0.47) * front
            self.relief -= (
                (0.95 * self.strength(6) + 0.5 * self.old) * rays * np.clip(np.cos(fan * 10), 0, 1)
            )
            lid = np.hypot((x - 0.31) / 1.25, y - 7.30)
            below = (
                smoothstep(7.25, 7.19, y)
                * smoothstep(0.5, 0.42, x)
                * smoothstep(0.12, 0.18, x)
                * front
            )
            self.furrow(
                lid - 0.125, 0.013, (0.9 * self.strength(7) + 0.35 * self.strength(6)) * below
            )
            self.furrow(lid - 0.185, 0.018, (0.85 * self.strength(6) + 0.3 * self.old) * below)

    def nasolabial_fold(self) -> None:
        """All of it by AU 12, the upper half by AU 10, its top by AU 9."""
        x, y, front = self.x, self.y, self.front
        if self.shows(9, 10, 12, 14) or self.old:
            t = np.clip((6.98 - y) / 0.36, -0.2, 1.25)
            fold = x - (0.175 + 0.165 * t + 0.035 * np.sin(np.pi * np.clip(t, 0, 1)))
            lower = smoothstep(1.2, 0.9, t) * smoothstep(-0.1, 0.1, t)
            upper = smoothstep(0.75, 0.35, t) * smoothstep(-0.15, 0.05, t)
            amount = lower * (0.95 * self.strength(12) + 0.45 * self.old + 0.3 * self.strength(14))
            amount = amount + upper * (1.0 * self.strength(10) + 0.7 * self.strength(9))
            self.furrow(-fold, 0.026, amount * front)

    def nose(self) -> None:
        """Lines across the bridge and at its sides."""
        x, y, front = self.x, self.y, self.front
        if self.shows(9):
            for height in (7.19, 7.25, 7.31):
                self.furrow(
                    y - height - 0.25 * x,
                    0.013,
                    0.95 * self.strength(9) * smoothstep(0.15, 0.09, x) * front,
                )
            sides = bump(x - 0.155 - 0.10 * (7.12 - y), 0.014)
            sides = sides * smoothstep(6.98, 7.04, y) * smoothstep(7.28, 7.2, y)
            self.relief -= 0.9 * self.strength(9) * sides * front

    def mouth_corners(self) -> None:
        """AU 14 a pit, AU 15 a fold downwards, AU 20 brackets next to the mouth."""
        x, y, front = self.x, self.y, self.front
        bracket = bump(y - 6.60, 0.09) * front
        if self.shows(14):
            pit = bump(np.hypot(x - 0.315, (y - 6.60) / 1.3), 0.04)
            self.relief -= 1.25 * self.strength(14) * pit * front
            self.furrow(x - 0.365, 0.016, 0.9 * self.strength(14) * bracket)
        if self.shows(20):
            for start, depth in ((0.37, 0.85), (0.42, 0.7)):
                self.furrow(
                    x - start - 0.25 * np.abs(y - 6.58), 0.016, depth * self.strength(20) * bracket
                )
        if self.shows(15) or self.old:
            down = smoothstep(6.36, 6.42, y) * smoothstep(6.60, 6.54, y)
            self.furrow(
                x - 0.275 - 0.28 * (6.58 - y),
                0.018,
                (0.65 * self.strength(15) + 0.3 * self.old) * down * front,
            )

    def chin(self) -> None:
        """AU 17 pebbles it; AU 16 and 24 draw the crease under the lower lip."""
        x, y, front = self.x, self.y, self.front
        if self.shows(17):
            chin = bump(np.hypot(x, y - 6.26), 0.17) * front
            pebbles = noise(self.points * np.array([1, 1, 0], np.float32), 55.0, 7)
            self.relief += 0.75 * self.strength(17) * chin * np.clip(pebbles, -1, 0.4)
        if self.shows(17, 24):
            crease = (0.8 * self.strength(17) + 0.5 * self.strength(24)) * bump(x, 0.17) * front
            self.furrow(y - 6.40 - 0.25 * x * x, 0.022, crease)
            self.relief += 0.45 * self.strength(24) * bump(y - 6.74, 0.04) * bump(x, 0.2) * front
        if self.shows(16):
            self.furrow(y - 6.36, 0.020, 0.6 * self.strength(16) * bump(x, 0.2) * front)

    def lips(self) -> None:
        """Tight or pursed: short upright lines above and below them."""
        x, y, front = self.x, self.y, self.front
        if self.shows(18, 23):
            around = (bump(y - 6.76, 0.05) + bump(y - 6.45, 0.045)) * bump(x, 0.16) * front
            self.relief -= (
                (0.8 * self.strength(23) + 0.6 * self.strength(18))
                * around
                * np.clip(np.sin(85 * x + 1.2), 0, 1)
            )
