"""A person's surroundings: body, desk, what is held, what stands around, the room behind.

Coordinates are the head model's (decimetres, y up, z to the camera), so that the head sits where
the mesh of `head.npz` has it and the body grows out of its shoulders. All choices are drawn from
the generator that is given; none looks at the face.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from vlmface.synth.appearance import Appearance, Colour, linear, skin_colour
from vlmface.synth.render import rotation
from vlmface.synth.solids import (
    Mesh,
    Part,
    Vector,
    box,
    ellipsoid,
    joined,
    moved,
    sample,
    sheet,
    surface,
    tube,
)

DESK = 4.2  # height of its top
WALL = -7.5  # z of the wall behind the person
SHOULDERS = 5.45  # height below which the body is built


@dataclass(frozen=True)
class Prop:
    """A thing and how it is held: where the wrists are and where the hands point, right hand (the
    picture's left) first; `curl` 0 (flat) to 1 (a fist)."""

    parts: list[Part]
    wrists: tuple[Vector, Vector]
    fingers: tuple[Vector, Vector]
    backs: tuple[Vector, Vector]
    curl: tuple[float, float]


def _tint(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> Colour:
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))


def _bytes(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = (round(255 * channel) for channel in colour)
    return red, green, blue


def _canvas(width: int, height: int, colour: Colour) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (width, height), _bytes(colour))
    return image, ImageDraw.Draw(image)


# --- the person -----------------------------------------------------------------------------------


def body(rest: np.ndarray, template: np.ndarray, look: Appearance) -> list[Part]:
    """Torso below the head's own shoulders; `rest` (n, 3) are the head's vertices at rest."""
    rim = rest[template[:, 1] < 5.47]
    half, middle = float(np.abs(rim[:, 0]).max()), float(rim[:, 2].mean())
    top = float(rim[:, 1].max())
    deep = float(rim[:, 2].max() - rim[:, 2].min()) / 2
    # height below the shoulders, half width, half depth: inside the mesh first, then over it
    rings = [(0.22, 0.80, 0.80), (0.02, 0.985, 0.98), (-0.12, 1.02, 1.04), (-0.4, 1.0, 1.12),
             (-0.9, 0.90, 1.22), (-1.6, 0.84, 1.2), (-2.6, 0.82, 1.15)]  # fmt: skip
    angle = np.linspace(0, 2 * np.pi, 33)
    sine, cosine = np.sin(angle), np.cos(angle)
    points = [
        np.stack(
            [np.sign(sine) * np.abs(sine) ** 0.8 * half * wide, np.full(33, top + up),
             middle + np.sign(cosine) * np.abs(cosine) ** 0.8 * deep * thick], -1
        )
        for up, wide, thick in rings
    ]  # fmt: skip
    return [Part(surface(np.array(points)), look.cloth)]


def arms(rest: np.ndarray, template: np.ndarray, look: Appearance, prop: Prop) -> list[Part]:
    """Sleeves from the shoulders to the wrists, and hands, as the prop wants them."""
    rim = rest[template[:, 1] < 5.47]
    half, top = float(np.abs(rim[:, 0]).max()), float(rim[:, 1].max())
    middle = float(rim[:, 2].mean())
    skin = skin_colour(look.tone, look.warmth) ** (1 / 2.2)
    flesh = (float(skin[0]), float(skin[1]), float(skin[2]))
    parts = []
    for side, wrist, towards, back, curl in zip(
        (-1, 1), prop.wrists, prop.fingers, prop.backs, prop.curl, strict=True
    ):
        end = np.asarray(wrist, float)
        shoulder = np.array([side * half * 0.86, top - 0.22, middle])
        elbow = np.array([side * (half * 0.86 + 0.28), DESK + 0.38, 0.95])
        direction = np.asarray(towards, float) / np.linalg.norm(towards)
        cuff = end - 0.12 * direction
        path = [shoulder, (shoulder + elbow) / 2 + [side * 0.1, 0.1, 0], elbow, (elbow + cuff) / 2,
                cuff]  # fmt: skip
        parts.append(Part(tube(path, [0.52, 0.47, 0.43, 0.37, 0.3]), look.cloth))
        parts += _hand(end, direction, np.asarray(back, float), side, curl, flesh)
    return parts


def _hand(
    wrist: np.ndarray, fingers: np.ndarray, back: np.ndarray, side: int, curl: float, skin: Colour
) -> list[Part]:
    """A hand of `skin` colour; `side` -1: the right one. `back` is where its back looks."""
    y = fingers
    z = back - y * (back @ y)
    z /= np.linalg.norm(z)
    turn = np.stack([np.cross(y, z), y, z], 1)
    bend = curl * 1.5
    meshes = [
        tube([(0, -0.1, 0), (0, 0.35, 0)], [0.23, 0.25]),
        ellipsoid((0.40, 0.5, 0.19)).moved(None, (0, 0.5, 0)),
    ]
    for k, (x, long) in enumerate(((-0.29, 0.62), (-0.1, 0.74), (0.1, 0.76), (0.29, 0.68))):
        joint = np.array([x, 0.85 - 0.04 * abs(k - 1.6), 0.0])
        first = joint + long * 0.5 * np.array([0.1 * x, np.cos(bend * 0.6), -np.sin(bend * 0.6)])
        last = first + long * 0.5 * np.array([0, np.cos(bend * 1.6), -np.sin(bend * 1.6)])
        meshes.append(tube([joint, first, last], [0.11, 0.105, 0.085], 8))
    # The thumb lies towards the body's middle when the back looks up or to the camera.
    inner = -side if turn[0, 0] >= 0 else side
    meshes.append(
        tube(
            [(0.28 * inner, 0.3, -0.05), (0.52 * inner, 0.58, -0.12), (0.5 * inner, 0.88, -0.2)],
            [0.14, 0.12, 0.09], 8,
        )
    )  # fmt: skip
    return [Part(mesh.moved(turn, wrist), skin, 0.05) for mesh in meshes]


# --- what the person has --------------------------------------------------------------------------

UP, AHEAD = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def _lines_of_text(
    rng: np.random.Generator, width: int, height: int, ink: Colour, paper: Colour, *, hand: bool
) -> np.ndarray:
    """A page: lines of words, or of handwriting on ruled paper."""
    image, pen = _canvas(width, height, paper)
    step = 5 if not hand else 7
    for row, y in enumerate(range(6, height - 5, step)):
        if hand:
            pen.line([(2, y + 3), (width - 3, y + 3)], fill=_bytes((0.62, 0.72, 0.86)))
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
                    pen.line(points, fill=_bytes(ink), width=1)
            else:
                pen.line([(x, y), (right, y)], fill=_bytes(ink), width=2)
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
        colour = _bytes(_tint(rng, (0.4, 0.8), (0.5, 0.9)))
        ImageDraw.Draw(image).rectangle((6, top, 47, top + 22), fill=colour)
        pages[0] = np.asarray(image)
    wide, high = 1.22, 1.75
    cover = Part(
        box(2 * wide + 0.12, 0.05, high + 0.1).moved(None, (0, 0.0, 0)),
        _tint(rng, (0.5, 0.9), (0.25, 0.75)), 0.1,
    )  # fmt: skip
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
        Part(box(wide + 0.1, 0.07, high + 0.08), _tint(rng, (0.5, 0.9), (0.3, 0.8)), 0.1),
        Part(box(wide, 0.05, high).moved(None, (0, 0.05, 0)), (0.93, 0.93, 0.9)),
        Part(leaf, page, 0.03),
    ]
    for x in np.linspace(-wide / 2 + 0.1, wide / 2 - 0.1, 9):  # the spiral, at the far edge
        ring = [(x, 0.0, high / 2 - 0.05), (x, 0.17, high / 2), (x, 0.02, high / 2 + 0.09)]
        parts.append(Part(tube(ring, [0.028] * 3, 6), (0.5, 0.5, 0.53), 0.4))
    by = (float(rng.uniform(-0.1, 0.2)), DESK + 0.06, 2.4)
    parts = moved(parts, rotation(float(rng.uniform(-14, 6)), 0, 0), by)
    colour = _tint(rng, (0.7, 1), (0.3, 0.9))
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
    image, pen = _canvas(84, 52, shell)
    mark = _bytes((0.92, 0.93, 0.95) if grey < 0.6 else (0.3, 0.31, 0.34))
    shape = int(rng.integers(3))
    if shape == 0:
        pen.ellipse((36, 20, 48, 32), fill=mark)
    elif shape == 1:
        pen.polygon([(42, 18), (49, 31), (35, 31)], fill=mark)
    else:
        pen.rectangle((34, 24, 50, 28), fill=mark)
    wide, deep, high = 3.0, 1.9, 1.75
    keys, pen = _canvas(90, 56, shell)
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
    case = (0.09, 0.09, 0.11) if dark else _tint(rng, (0.45, 0.9), (0.45, 0.9))
    wide, high, thick = 0.84, 1.6, 0.1
    image, pen = _canvas(44, 84, case)
    edge = tuple(round(c * 0.55) for c in _bytes(case))
    pen.rectangle((0, 0, 43, 83), outline=edge, width=2)
    pen.rounded_rectangle((4, 4, 20, 24), 4, fill=tuple(round(c * 0.5) for c in _bytes(case)))
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


def handheld(rng: np.random.Generator) -> Prop:
    """A handheld game, held at both ends, its back to the camera."""
    wide, high, thick = 1.75, 1.0, 0.16
    body_colour = (0.13, 0.13, 0.15) if rng.random() < 0.6 else (0.86, 0.86, 0.88)
    ends = (((0.1, 0.62, 0.85), (0.95, 0.3, 0.25)), ((0.95, 0.75, 0.1), (0.35, 0.75, 0.3)),
            ((0.6, 0.3, 0.85), (0.95, 0.55, 0.15)))[int(rng.integers(3))]  # fmt: skip
    image, pen = _canvas(70, 40, body_colour)
    shade = tuple(round(c * 0.72) for c in _bytes(body_colour))
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


# --- what stands around ---------------------------------------------------------------------------


def mug(rng: np.random.Generator) -> list[Part]:
    """A mug, its foot at the origin."""
    colour = _tint(rng, (0.1, 0.9), (0.4, 0.95))
    angle = np.linspace(0, 2 * np.pi, 21)
    profile = [(0.30, 0.0), (0.33, 0.1), (0.34, 0.7), (0.29, 0.7), (0.28, 0.5), (0.0, 0.5)]
    rings = [np.stack([r * np.sin(angle), np.full(21, y), r * np.cos(angle)], -1)
             for r, y in profile[::-1]]  # fmt: skip
    handle = [(0.3, 0.58, 0), (0.55, 0.5, 0), (0.55, 0.25, 0), (0.3, 0.14, 0)]
    turned = rotation(float(rng.uniform(-40, 40)), 0, 0)
    return moved(
        [
            Part(surface(np.array(rings)), colour, 0.3),
            Part(ellipsoid((0.28, 0.01, 0.28)).moved(None, (0, 0.52, 0)), (0.2, 0.12, 0.07), 0.3),
            Part(tube(handle, [0.05] * 4, 8), colour, 0.3),
        ],
        turned,
    )


def plant(rng: np.random.Generator) -> list[Part]:
    """A plant in a pot."""
    angle = np.linspace(0, 2 * np.pi, 17)
    rings = [np.stack([r * np.sin(angle), np.full(17, y), r * np.cos(angle)], -1)
             for r, y in ((0.0, 0.52), (0.36, 0.52), (0.38, 0.6), (0.27, 0.0))]  # fmt: skip
    parts = [Part(surface(np.array(rings)), _tint(rng, (0.2, 0.7), (0.4, 0.85)), 0.1)]
    green = colorsys.hsv_to_rgb(
        rng.uniform(0.25, 0.4), rng.uniform(0.5, 0.8), rng.uniform(0.3, 0.6)
    )
    for k in range(11):
        around, out = k * 2.4, float(rng.uniform(0.25, 0.75))
        up = 1.5 - 0.9 * out + float(rng.uniform(0, 0.3))
        heading = np.array([np.sin(around), 0, np.cos(around)])
        path = [np.array([0, 0.5, 0]), heading * out * 0.4 + [0, 0.5 + up * 0.6, 0],
                heading * out + [0, 0.5 + up, 0]]  # fmt: skip
        parts.append(Part(tube(path, [0.03, 0.13, 0.02], 6), green, 0.1))
    return parts


def lamp(rng: np.random.Generator) -> list[Part]:
    """A desk lamp."""
    colour = _tint(rng, (0.0, 0.9), (0.15, 0.9))
    lean = float(rng.choice([-1, 1]))
    angle = np.linspace(0, 2 * np.pi, 17)
    rings = [np.stack([r * np.sin(angle), np.full(17, y), r * np.cos(angle)], -1)
             for r, y in ((0.12, 0.32), (0.16, 0.25), (0.44, -0.2))]  # fmt: skip
    shade = surface(np.array(rings)).moved(rotation(0, 15, 25 * lean), (0.5 * lean, 2.0, 0.1))
    return [
        Part(ellipsoid((0.42, 0.07, 0.42)), colour, 0.2),
        Part(tube([(0, 0, 0), (-0.3 * lean, 1.15, 0), (0.42 * lean, 2.1, 0.05)], [0.045] * 3, 8),
             (0.45, 0.45, 0.47), 0.3),
        Part(shade, colour, 0.2),
    ]  # fmt: skip


NUISANCE: dict[str, Callable[[np.random.Generator], list[Part]]] = {
    "mug": mug,
    "plant": plant,
    "lamp": lamp,
}


# --- the room -------------------------------------------------------------------------------------


def desk(rng: np.random.Generator) -> list[Part]:
    """The desk in front of the person: wood or lacquer."""
    if rng.random() < 0.7:
        wood = np.array(colorsys.hsv_to_rgb(rng.uniform(0.05, 0.1), rng.uniform(0.3, 0.6),
                                            rng.uniform(0.35, 0.8)))  # fmt: skip
        grain = rng.normal(0, 1, (60, 4)).repeat(24, 1) * 0.035
        grain = np.cumsum(grain - grain.mean(0), 0) * 0.25 + grain * 0.5
        texture = np.clip(wood * (1 + grain[..., None]), 0, 1)
    else:
        texture = np.full((4, 4, 3), _tint(rng, (0.0, 0.2), (0.3, 0.9)))
    board = (texture * 255).astype(np.uint8)
    top = sheet(9.0, 3.6).moved(rotation(0, -90, 0), (0, DESK, 2.55))
    front = box(9.0, 0.25, 0.1).moved(None, (0, DESK - 0.13, 4.3))
    return [Part(top, board, 0.12), Part(front, board[::2], 0.08)]


def _window(rng: np.random.Generator) -> list[Part]:
    width, height = float(rng.uniform(3.2, 4.6)), float(rng.uniform(3.6, 5.2))
    bright = float(rng.uniform(0.75, 1.0))
    sky = np.linspace((0.55, 0.75, 0.98), (0.88, 0.94, 1.0), 48)[:, None].repeat(40, 1) * bright
    hills = 34 + 4 * np.sin(np.linspace(0, rng.uniform(3, 9), 40) + rng.uniform(0, 6))
    below = np.arange(48)[:, None] > hills[None]
    sky[below] = np.array(colorsys.hsv_to_rgb(rng.uniform(0.2, 0.4), 0.4, 0.55)) * bright
    view = (np.clip(sky, 0, 1) * 255).astype(np.uint8)
    white = (0.93, 0.92, 0.9)
    parts = [Part(sheet(width, height).moved(None, (0, 0, 0.02)), view)]
    for x in (-width / 2, 0, width / 2):
        parts.append(Part(box(0.2, height + 0.2, 0.16).moved(None, (x, 0, 0.08)), white))
    for y in (-height / 2, height / 2):
        parts.append(Part(box(width + 0.2, 0.2, 0.16).moved(None, (0, y, 0.08)), white))
    return parts


def _poster(rng: np.random.Generator) -> list[Part]:
    width, height = float(rng.uniform(1.8, 2.8)), float(rng.uniform(2.2, 3.4))
    image, pen = _canvas(56, 72, _tint(rng, (0.1, 0.7), (0.4, 0.95)))
    for _ in range(int(rng.integers(3, 7))):
        x, y, r = (int(v) for v in rng.integers((0, 0, 6), (56, 72, 24)))
        colour = _bytes(_tint(rng, (0.3, 0.9), (0.3, 0.95)))
        if rng.random() < 0.5:
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        else:
            pen.rectangle((x - r, y - r // 2, x + r, y + r // 2), fill=colour)
    frame = _tint(rng, (0, 0.4), (0.1, 0.9))
    return [
        Part(box(width + 0.2, height + 0.2, 0.08), frame),
        Part(sheet(width, height).moved(None, (0, 0, 0.05)), np.asarray(image)),
    ]


def _shelf(rng: np.random.Generator) -> list[Part]:
    width = float(rng.uniform(3.0, 4.2))
    wood = colorsys.hsv_to_rgb(rng.uniform(0.05, 0.1), rng.uniform(0.2, 0.6), rng.uniform(0.3, 0.8))
    parts = []
    for y in (-1.3, 0.6):
        parts.append(Part(box(width, 0.14, 1.0).moved(None, (0, y, 0.5)), wood))
        x = -width / 2 + 0.1
        while x < width / 2 - 0.35:
            thick, high = float(rng.uniform(0.16, 0.36)), float(rng.uniform(0.9, 1.5))
            if rng.random() < 0.88:
                spine = box(thick - 0.02, high, 0.7)
                by = (x + thick / 2, y + 0.07 + high / 2, 0.45)
                parts.append(Part(spine.moved(None, by), _tint(rng, (0.1, 0.8), (0.2, 0.85))))
            x += thick
    return parts


def room(rng: np.random.Generator) -> list[Part]:
    """The wall behind, with something on its left and on its right."""
    wall = _tint(rng, (0.03, 0.35), (0.45, 0.92))
    parts = [Part(sheet(40, 30).moved(None, (0, 8, WALL)), wall, 0.0)]
    if rng.random() < 0.35:  # the lower part of the wall is panelled
        panel = _tint(rng, (0.03, 0.4), (0.3, 0.8))
        parts.append(
            Part(box(40, 8, 0.1).moved(None, (0, float(rng.uniform(1, 2.5)), WALL)), panel)
        )
    for side in (-1, 1):
        make = (_window, _poster, _shelf, None)[int(rng.integers(4))]
        if make is not None:
            by = (side * float(rng.uniform(3.3, 4.5)), float(rng.uniform(6.6, 8.6)), WALL + 0.06)
            parts += moved(make(rng), None, by)
    if rng.random() < 0.4:  # a chair's back rest
        chair = _tint(rng, (0, 0.5), (0.08, 0.5))
        rest = ellipsoid((2.2, 1.6, 0.25), 14, 22).moved(None, (0, 4.9, -1.4))
        parts.append(Part(rest, chair, 0.1))
    return parts


def nuisance(rng: np.random.Generator) -> tuple[list[str], list[Part]]:
    """Nothing to two things on the desk, at its sides, that have to do with nothing."""
    names: list[str] = []
    parts: list[Part] = []
    for side in (-1, 1):
        if rng.random() < 0.45:
            name = str(rng.choice(list(NUISANCE)))
            by = (side * float(rng.uniform(2.0, 2.3)), DESK, float(rng.uniform(2.0, 2.6)))
            if name == "lamp":  # behind the arm, it would hide nothing
                by = (side * float(rng.uniform(2.7, 3.0)), DESK, float(rng.uniform(-0.6, 0.2)))
            names.append(name)
            parts += moved(NUISANCE[name](rng), None, by)
    return names, parts


def colour_of(part: Part, uv: np.ndarray) -> np.ndarray:
    """Linear albedo (k, 3) of a part's points at texture coordinates (k, 2)."""
    if isinstance(part.cover, tuple):
        return np.broadcast_to(linear(part.cover), (len(uv), 3))
    return linear(sample(part.cover, uv))


def whole(parts: Sequence[Part]) -> Mesh:
    """The parts as one mesh."""
    return joined([part.mesh for part in parts])
