"""What a person at a desk has in the hands: books, a laptop, a phone, a game. Coordinates as in
`scene_geometry`; all choices are drawn from the generator that is passed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from vlmface.synth.appearance import Colour
from vlmface.synth.meshes import Part, Vector, box, moved, rotation, sheet, surface, tube
from vlmface.synth.textures import as_bytes, canvas, tint

DESK = 4.2  # height of the desk's top


@dataclass(frozen=True)
class Prop:
    """A thing and how it is held: where the wrists are and where the hands point, right hand (the
    picture's left) first; `curl` 0 (flat) to 1 (a fist)."""

    parts: list[Part]
    wrists: tuple[Vector, Vector]
    fingers: tuple[Vector, Vector]
    backs: tuple[Vector, Vector]
    curl: tuple[float, float]


UP, AHEAD = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def _lines_of_text(
    rng: np.random.Generator, width: int, height: int, ink: Colour, paper: Colour, *, hand: bool
) -> np.ndarray:
    """A page: lines of words, or of handwriting on ruled paper."""
    image, pen = canvas(width, height, paper)
    step = 5 if not hand else 7
    for row, y in enumerate(range(6, height - 5, step)):
        if hand:
            pen.line([(2, y + 3), (width - 3, y + 3)], fill=as_bytes((0.62, 0.72, 0.86)))
        if not hand and row in (4, 5, 6) and rng.random() < 0.4:
            continue  # a gap, as around a figure
        end = width - 4 - (int(rng.integers(0, width // 2)) if rng.random() < 0.3 else 0)
        if hand and y > height * 0.7:
            break
        x = 4
        while x < end:
            word = int(rng.integers(4, 11))
            right = min(x + word, end)
            if hand:
                points = [(k, y + int(rng.integers(-1, 2))) for k in range(x, right, 2)]
                if len(points) > 1:
                    pen.line(points, fill=as_bytes(ink), width=1)
            else:
                pen.line([(x, y), (right, y)], fill=as_bytes(ink), width=2)
            x += word + 3
    return np.asarray(image)


def _pages(width: float, height: float, textures: Sequence[np.ndarray]) -> list[Part]:
    """The two open pages of a book, lying: arched beside the fold. Read from behind (-z)."""
    parts = []
    across = np.linspace(0, width, 9)
    arch = 0.16 * np.sin(np.pi * np.clip(across / width, 0, 1) ** 0.6) + 0.02
    for side, texture in zip((-1, 1), textures, strict=True):
        # The reader sits at -z: rows run from the far edge towards them, columns from +x to -x.
        x, rise = (across[::-1], arch[::-1]) if side < 0 else (-across, arch)
        z = np.linspace(height / 2, -height / 2, 3)
        points = np.stack(
            [np.tile(x, (3, 1)), np.tile(rise, (3, 1)), np.tile(z[:, None], (1, len(x)))], -1
        )
        parts.append(Part(surface(points), texture, 0.03))
    return parts


def book(rng: np.random.Generator) -> Prop:
    """An open book on the desk, tilted a little towards its reader."""
    paper = (0.96, 0.94, 0.87)
    pages = [_lines_of_text(rng, 54, 72, (0.2, 0.2, 0.22), paper, hand=False) for _ in range(2)]
    if rng.random() < 0.5:  # a picture on one page
        image = Image.fromarray(pages[0])
        top = int(rng.integers(6, 40))
        colour = as_bytes(tint(rng, (0.4, 0.8), (0.5, 0.9)))
        ImageDraw.Draw(image).rectangle((6, top, 47, top + 22), fill=colour)
        pages[0] = np.asarray(image)
    wide, high = 1.22, 1.75
    boards = box(2 * wide + 0.12, 0.05, high + 0.1)
    cover = Part(boards.moved(None, (0, 0.0, 0)), tint(rng, (0.5, 0.9), (0.25, 0.75)), 0.1)
    block = Part(box(2 * wide, 0.06, high).moved(None, (0, 0.04, 0)), (0.88, 0.85, 0.77))
    lying = moved([cover, block, *_pages(wide, high, pages)], None)
    turn = rotation(float(rng.uniform(-8, 8)), 9.0, 0)
    lying = moved(lying, turn, (float(rng.uniform(-0.12, 0.12)), DESK + 0.22, 2.45))
    return Prop(
        lying,
        wrists=((-1.62, DESK + 0.3, 1.55), (1.62, DESK + 0.3, 1.55)),
        fingers=((0.42, 0.02, 1), (-0.42, 0.02, 1)),
        backs=(UP, UP),
        curl=(0.22, 0.22),
    )


def notebook(rng: np.random.Generator) -> Prop:
    """A pad with handwriting on the desk, and a pen in the right hand that writes in it."""
    ink = ((0.1, 0.15, 0.5), (0.1, 0.1, 0.12))[int(rng.integers(2))]
    page = _lines_of_text(rng, 60, 78, ink, (0.97, 0.97, 0.95), hand=True)
    wide, high = 1.75, 1.95
    # The page is read from behind: its top is the edge at the camera.
    leaf = sheet(wide, high).moved(rotation(180, 0, 0) @ rotation(0, -90, 0), (0, 0.085, 0))
    parts = [
        Part(box(wide + 0.1, 0.07, high + 0.08), tint(rng, (0.5, 0.9), (0.3, 0.8)), 0.1),
        Part(box(wide, 0.05, high).moved(None, (0, 0.05, 0)), (0.93, 0.93, 0.9)),
        Part(leaf, page, 0.03),
    ]
    for x in np.linspace(-wide / 2 + 0.1, wide / 2 - 0.1, 9):  # the spiral, at the far edge
        ring = [(x, 0.0, high / 2 - 0.05), (x, 0.17, high / 2), (x, 0.02, high / 2 + 0.09)]
        parts.append(Part(tube(ring, [0.028] * 3, 6), (0.5, 0.5, 0.53), 0.4))
    by = (float(rng.uniform(-0.1, 0.2)), DESK + 0.06, 2.4)
    parts = moved(parts, rotation(float(rng.uniform(-14, 6)), 0, 0), by)
    colour = tint(rng, (0.7, 1), (0.3, 0.9))
    tip = np.array([by[0] - 0.3, DESK + 0.17, 2.5])
    pen = tube(
        [tip, tip + np.array([-0.1, 0.2, -0.16]), tip + np.array([-0.62, 0.95, -0.85])],
        [0.02, 0.055, 0.06],
    )
    parts.append(Part(pen, colour, 0.4))
    return Prop(
        parts,
        wrists=((-1.05, DESK + 0.34, 1.5), (1.45, DESK + 0.28, 1.6)),
        fingers=((0.62, 0.0, 0.78), (-0.5, 0.02, 0.9)),
        backs=((-0.35, 1, 0.1), UP),
        curl=(0.62, 0.2),
    )


def laptop(rng: np.random.Generator) -> Prop:
    """An open laptop: the camera sees the back of its lid, and hands behind it."""
    grey = float(rng.choice([0.72, 0.55, 0.2]))
    shell = (grey, grey, min(1.0, grey * 1.02))
    image, pen = canvas(84, 52, shell)
    mark = as_bytes((0.92, 0.93, 0.95) if grey < 0.6 else (0.3, 0.31, 0.34))
    shape = int(rng.integers(3))
    if shape == 0:
        pen.ellipse((36, 20, 48, 32), fill=mark)
    elif shape == 1:
        pen.polygon([(42, 18), (49, 31), (35, 31)], fill=mark)
    else:
        pen.rectangle((34, 24, 50, 28), fill=mark)
    wide, deep, high = 3.0, 1.9, 1.75
    keys, pen = canvas(90, 56, shell)
    for row in range(5):
        for k in range(13):
            pen.rectangle((6 + 6 * k, 6 + 6 * row, 10 + 6 * k, 10 + 6 * row), fill=(28, 28, 30))
    deck = sheet(wide, deep).moved(rotation(180, 0, 0) @ rotation(0, -90, 0), (0, 0.062, 0))
    base = [Part(box(wide, 0.12, deep), shell, 0.25), Part(deck, np.asarray(keys), 0.1)]
    back = Part(sheet(wide, high).moved(None, (0, high / 2, 0.042)), np.asarray(image), 0.25)
    lid = [Part(box(wide, high, 0.08).moved(None, (0, high / 2, 0)), shell, 0.25), back]
    lean = float(rng.uniform(12, 22))
    lid = moved(lid, rotation(0, lean, 0), (0, 0.06, deep / 2))
    by = (float(rng.uniform(-0.15, 0.15)), DESK + 0.06, 1.95)
    parts = moved([*base, *lid], rotation(float(rng.uniform(-9, 9)), 0, 0), by)
    return Prop(
        parts,
        wrists=((-0.75, DESK + 0.38, 1.15), (0.75, DESK + 0.38, 1.15)),
        fingers=((0.2, 0.0, 1), (-0.2, 0.0, 1)),
        backs=(UP, UP),
        curl=(0.4, 0.4),
    )


def phone(rng: np.random.Generator) -> Prop:
    """A phone in the right hand, its back with the lenses to the camera."""
    dark = rng.random() < 0.5
    case = (0.09, 0.09, 0.11) if dark else tint(rng, (0.45, 0.9), (0.45, 0.9))
    wide, high, thick = 0.84, 1.6, 0.1
    image, pen = canvas(44, 84, case)
    edge = tuple(round(c * 0.55) for c in as_bytes(case))
    pen.rectangle((0, 0, 43, 83), outline=edge, width=2)
    pen.rounded_rectangle((4, 4, 20, 24), 4, fill=tuple(round(c * 0.5) for c in as_bytes(case)))
    for x, y in ((9, 10), (9, 19), (16, 14)):
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(18, 18, 22), outline=(190, 190, 200))
    back = sheet(wide, high).moved(None, (0, 0, thick / 2 + 0.004))
    parts = [
        Part(box(wide, high, thick), edge_colour(case), 0.3),
        Part(back, np.asarray(image), 0.3),
    ]
    turn = rotation(*(float(rng.uniform(*span)) for span in ((-14, 14), (6, 14), (-8, 8))))
    by = np.array([float(rng.uniform(-0.4, 0.0)), DESK + 0.8, 2.35])
    parts = moved(parts, turn, by)
    # The palm stands beside the phone, behind its edge; the fingers come around to the front.
    wrist = by - np.array([0.86, 0.72, 0.36])
    return Prop(
        parts,
        wrists=(wrist, (1.25, DESK + 0.28, 1.75)),
        fingers=((0.42, 0.78, 0.42), (-0.75, 0.02, 0.75)),
        backs=((-0.55, -0.1, 0.9), UP),
        curl=(0.5, 0.2),
    )


def edge_colour(colour: Colour) -> Colour:
    """A darker shade, for the rim of a thing."""
    return (colour[0] * 0.6, colour[1] * 0.6, colour[2] * 0.6)


_GRIP_COLOURS = (
    ((0.1, 0.62, 0.85), (0.95, 0.3, 0.25)),
    ((0.95, 0.75, 0.1), (0.35, 0.75, 0.3)),
    ((0.6, 0.3, 0.85), (0.95, 0.55, 0.15)),
)


def handheld(rng: np.random.Generator) -> Prop:
    """A handheld game, held at both ends, its back to the camera."""
    wide, high, thick = 1.75, 1.0, 0.16
    body_colour = (0.13, 0.13, 0.15) if rng.random() < 0.6 else (0.86, 0.86, 0.88)
    ends = _GRIP_COLOURS[int(rng.integers(3))]
    image, pen = canvas(70, 40, body_colour)
    shade = tuple(round(c * 0.72) for c in as_bytes(body_colour))
    for k in range(7):  # where the warm air leaves
        pen.line([(14 + 6 * k, 6), (18 + 6 * k, 6)], fill=shade, width=2)
    pen.rectangle((26, 18, 44, 26), fill=shade)
    back = sheet(wide, high).moved(None, (0, 0, thick / 2 + 0.004))
    parts = [Part(box(wide, high, thick), body_colour, 0.2), Part(back, np.asarray(image), 0.2)]
    for side, colour in zip((-1, 1), ends, strict=True):
        x = side * (wide / 2 + 0.16)
        grip = tube([(x, -0.3, 0), (x, 0.3, 0)], [0.24, 0.24])
        parts.append(Part(grip, colour, 0.25))
        shoulder = box(0.42, 0.1, 0.2).moved(None, (side * (wide / 2 + 0.08), high / 2 + 0.04, 0))
        parts.append(Part(shoulder, edge_colour(colour), 0.25))
    turn = rotation(*(float(rng.uniform(*span)) for span in ((-9, 9), (2, 12), (-6, 6))))
    by = np.array([float(rng.uniform(-0.15, 0.15)), DESK + 0.85, 2.3])
    parts = moved(parts, turn, by)
    left, right = ((turn @ np.array([side * 1.12, 0, 0])) + by for side in (-1, 1))
    return Prop(
        parts,
        wrists=(left - np.array([0.42, 0.62, 0.45]), right + np.array([0.42, -0.62, -0.45])),
        fingers=((0.3, 0.75, 0.6), (-0.3, 0.75, 0.6)),
        backs=((-0.7, -0.2, 0.6), (0.7, -0.2, 0.6)),
        curl=(0.75, 0.75),
    )


OBJECTS: dict[str, Callable[[np.random.Generator], Prop]] = {
    "book": book,
    "notebook": notebook,
    "laptop": laptop,
    "phone": phone,
    "handheld game": handheld,
}
