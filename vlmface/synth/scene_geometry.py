"""Geometry of a scene: the person's body, the desk, things on it, and the room.

Coordinates are the head model's (decimetres, y up, z to the camera), so that the head sits where
the mesh of `head.npz` has it and the body grows out of its shoulders. All choices are drawn from
the generator that is passed, independently of the face.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence

import numpy as np

from vlmface.synth.appearance import Appearance, Colour, linear, skin_colour
from vlmface.synth.meshes import (
    Mesh,
    Part,
    box,
    ellipsoid,
    joined,
    moved,
    rotation,
    sample,
    sheet,
    surface,
    tube,
)
from vlmface.synth.props import DESK, Prop
from vlmface.synth.textures import as_bytes, canvas, tint

WALL = -7.5  # z of the wall behind the person
SHOULDERS = 5.45  # height below which the body is built


# --- the person -----------------------------------------------------------------------------------


def body(rest_pose: np.ndarray, template: np.ndarray, look: Appearance) -> list[Part]:
    """Torso below the head's own shoulders; `rest` (n, 3) are the head's vertices at rest."""
    rim = rest_pose[template[:, 1] < 5.47]
    half, middle = float(np.abs(rim[:, 0]).max()), float(rim[:, 2].mean())
    top = float(rim[:, 1].max())
    deep = float(rim[:, 2].max() - rim[:, 2].min()) / 2
    # height below the shoulders, half width, half depth: inside the mesh first, then over it
    rings = [
        (0.22, 0.80, 0.80),
        (0.02, 0.985, 0.98),
        (-0.12, 1.02, 1.04),
        (-0.4, 1.0, 1.12),
        (-0.9, 0.90, 1.22),
        (-1.6, 0.84, 1.2),
        (-2.6, 0.82, 1.15),
    ]
    angle = np.linspace(0, 2 * np.pi, 33)
    sine, cosine = np.sin(angle), np.cos(angle)
    across = np.sign(sine) * np.abs(sine) ** 0.8 * half
    along = np.sign(cosine) * np.abs(cosine) ** 0.8 * deep
    points = [
        np.stack([across * wide, np.full(33, top + up), middle + along * thick], -1)
        for up, wide, thick in rings
    ]
    return [Part(surface(np.array(points)), look.cloth)]


def arms(rest_pose: np.ndarray, template: np.ndarray, look: Appearance, prop: Prop) -> list[Part]:
    """Sleeves from the shoulders to the wrists, and hands, as the prop requires."""
    rim = rest_pose[template[:, 1] < 5.47]
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
        upper_arm = (shoulder + elbow) / 2 + [side * 0.1, 0.1, 0]
        path = [shoulder, upper_arm, elbow, (elbow + cuff) / 2, cuff]
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
    thumb = [(0.28 * inner, 0.3, -0.05), (0.52 * inner, 0.58, -0.12), (0.5 * inner, 0.88, -0.2)]
    meshes.append(tube(thumb, [0.14, 0.12, 0.09], 8))
    return [Part(mesh.moved(turn, wrist), skin, 0.05) for mesh in meshes]


# --- things on the desk ---------------------------------------------------------------------------


def _turned(profile: Sequence[tuple[float, float]], sides: int) -> Mesh:
    """The surface that a profile of (radius, height) from top to bottom makes around the y axis."""
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    rings = [
        np.stack([radius * np.sin(angle), np.full(sides + 1, height), radius * np.cos(angle)], -1)
        for radius, height in profile
    ]
    return surface(np.array(rings))


def mug(rng: np.random.Generator) -> list[Part]:
    """A mug, its foot at the origin."""
    colour = tint(rng, (0.1, 0.9), (0.4, 0.95))
    profile = [(0.30, 0.0), (0.33, 0.1), (0.34, 0.7), (0.29, 0.7), (0.28, 0.5), (0.0, 0.5)]
    handle = [(0.3, 0.58, 0), (0.55, 0.5, 0), (0.55, 0.25, 0), (0.3, 0.14, 0)]
    turn = rotation(float(rng.uniform(-40, 40)), 0, 0)
    return moved(
        [
            Part(_turned(profile[::-1], 20), colour, 0.3),
            Part(ellipsoid((0.28, 0.01, 0.28)).moved(None, (0, 0.52, 0)), (0.2, 0.12, 0.07), 0.3),
            Part(tube(handle, [0.05] * 4, 8), colour, 0.3),
        ],
        turn,
    )


def plant(rng: np.random.Generator) -> list[Part]:
    """A plant in a pot."""
    pot = _turned(((0.0, 0.52), (0.36, 0.52), (0.38, 0.6), (0.27, 0.0)), 16)
    parts = [Part(pot, tint(rng, (0.2, 0.7), (0.4, 0.85)), 0.1)]
    green = colorsys.hsv_to_rgb(
        rng.uniform(0.25, 0.4), rng.uniform(0.5, 0.8), rng.uniform(0.3, 0.6)
    )
    for k in range(11):
        around, out = k * 2.4, float(rng.uniform(0.25, 0.75))
        up = 1.5 - 0.9 * out + float(rng.uniform(0, 0.3))
        heading = np.array([np.sin(around), 0, np.cos(around)])
        path = [
            np.array([0, 0.5, 0]),
            heading * out * 0.4 + [0, 0.5 + up * 0.6, 0],
            heading * out + [0, 0.5 + up, 0],
        ]
        parts.append(Part(tube(path, [0.03, 0.13, 0.02], 6), green, 0.1))
    return parts


def lamp(rng: np.random.Generator) -> list[Part]:
    """A desk lamp."""
    colour = tint(rng, (0.0, 0.9), (0.15, 0.9))
    lean = float(rng.choice([-1, 1]))
    shade = _turned(((0.12, 0.32), (0.16, 0.25), (0.44, -0.2)), 16)
    arm = tube([(0, 0, 0), (-0.3 * lean, 1.15, 0), (0.42 * lean, 2.1, 0.05)], [0.045] * 3, 8)
    return [
        Part(ellipsoid((0.42, 0.07, 0.42)), colour, 0.2),
        Part(arm, (0.45, 0.45, 0.47), 0.3),
        Part(shade.moved(rotation(0, 15, 25 * lean), (0.5 * lean, 2.0, 0.1)), colour, 0.2),
    ]


NUISANCE: dict[str, Callable[[np.random.Generator], list[Part]]] = {
    "mug": mug,
    "plant": plant,
    "lamp": lamp,
}


# --- the room -------------------------------------------------------------------------------------


_WOOD = ((0.05, 0.1), (0.3, 0.6), (0.35, 0.8))  # hue, saturation and value of a desk


def desk(rng: np.random.Generator) -> list[Part]:
    """The desk in front of the person: wood or lacquer."""
    if rng.random() < 0.7:
        hue, saturation, value = (rng.uniform(*span) for span in _WOOD)
        wood = np.array(colorsys.hsv_to_rgb(hue, saturation, value))
        grain = rng.normal(0, 1, (60, 4)).repeat(24, 1) * 0.035
        grain = np.cumsum(grain - grain.mean(0), 0) * 0.25 + grain * 0.5
        texture = np.clip(wood * (1 + grain[..., None]), 0, 1)
    else:
        texture = np.full((4, 4, 3), tint(rng, (0.0, 0.2), (0.3, 0.9)))
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
    image, pen = canvas(56, 72, tint(rng, (0.1, 0.7), (0.4, 0.95)))
    for _ in range(int(rng.integers(3, 7))):
        x, y, r = (int(v) for v in rng.integers((0, 0, 6), (56, 72, 24)))
        colour = as_bytes(tint(rng, (0.3, 0.9), (0.3, 0.95)))
        if rng.random() < 0.5:
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        else:
            pen.rectangle((x - r, y - r // 2, x + r, y + r // 2), fill=colour)
    frame = tint(rng, (0, 0.4), (0.1, 0.9))
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
                parts.append(Part(spine.moved(None, by), tint(rng, (0.1, 0.8), (0.2, 0.85))))
            x += thick
    return parts


def room(rng: np.random.Generator) -> list[Part]:
    """The wall behind, with something on its left and on its right."""
    wall = tint(rng, (0.03, 0.35), (0.45, 0.92))
    parts = [Part(sheet(40, 30).moved(None, (0, 8, WALL)), wall, 0.0)]
    if rng.random() < 0.35:  # the lower part of the wall is panelled
        panel = tint(rng, (0.03, 0.4), (0.3, 0.8))
        parts.append(
            Part(box(40, 8, 0.1).moved(None, (0, float(rng.uniform(1, 2.5)), WALL)), panel)
        )
    for side in (-1, 1):
        make = (_window, _poster, _shelf, None)[int(rng.integers(4))]
        if make is not None:
            by = (side * float(rng.uniform(3.3, 4.5)), float(rng.uniform(6.6, 8.6)), WALL + 0.06)
            parts += moved(make(rng), None, by)
    if rng.random() < 0.4:  # a chair's back rest
        chair = tint(rng, (0, 0.5), (0.08, 0.5))
        back_rest = ellipsoid((2.2, 1.6, 0.25), 14, 22).moved(None, (0, 4.9, -1.4))
        parts.append(Part(back_rest, chair, 0.1))
    return parts


def nuisance(rng: np.random.Generator) -> tuple[list[str], list[Part]]:
    """Up to two things at the sides of the desk, unrelated to the label."""
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
