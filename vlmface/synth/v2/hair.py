"""Hair of the head: a shell on the scalp for its volume, and ribbons for locks, fringe and what
hangs down, which give it an outline that is not smooth."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from vlmface.synth.appearance import bump, smoothstep
from vlmface.synth.head import head_model
from vlmface.synth.v2 import texture
from vlmface.synth.v2.layers import CURTAIN, HAIR, LOCK, Layer, Roots, Scalp, ribbons, scatter
from vlmface.synth.v2.parameters import Hair

LOCKS, FRINGE, HANGING = 520, 130, 170  # numbers of ribbons
RADIUS = 0.85  # dm, of the head: locks bend around it
MIDDLE = np.array([0, 7.45, 0.4], np.float32)


def amount(template: np.ndarray, hair: Hair) -> np.ndarray:
    """Height (n,) above the hair line in dm, negative on bare skin; the line is not smooth."""
    x, y, z = np.abs(template[:, 0]), template[:, 1], template[:, 2]
    front = 7.98 + hair.line - 0.28 * np.square(x / 0.75)
    front = front + hair.recession * (0.20 * bump(x - 0.40, 0.20) + 0.10)
    side = np.interp(z, [0.05, 0.30, 0.62, 0.80, 1.05, 1.15], [6.75, 7.25, 7.35, 7.15, 7.75, 7.9])
    side = side.astype(np.float32)
    above = y - np.where(z > 1.1, front, np.minimum(side, np.maximum(front, 7.6)))
    u, v = texture.unrolled(template)
    above = above + 0.025 * texture.at(texture.tile(0.8), u * 60 + hair.seed, v * 25)
    if hair.crown:
        above = np.minimum(above, 7.85 - y - 0.5 * np.clip(z - 0.5, 0, 1))
    return above


@lru_cache(maxsize=1)
def _skin_triangles() -> np.ndarray:
    """Triangles (m, 3) of the skin outside the mouth and the ears, above the shoulders."""
    model = head_model()
    usable = (model.part == 0) & (model.masks["inside_mouth"] < 0.5) & (model.masks["ears"] < 0.5)
    usable &= model.template[:, 1] > 5.9
    return model.triangles[usable[model.triangles].all(1)]


def layers(scalp: Scalp) -> list[Layer]:
    """All hair of the head; none if it is shaved."""
    look = scalp.face.look
    hair = look.hair
    if hair.top == 0:
        return []
    rng = np.random.default_rng([61, hair.seed])
    model = head_model()
    above = amount(model.template, hair)
    shell, thickness = _shell(scalp, hair, above)
    triangles = _skin_triangles()
    grown = triangles[(thickness[triangles] > 0.004).all(1)]
    arrays = (shell.points, scalp.normals, model.template)
    made = [shell]
    if len(grown) and hair.top > 0.03:
        count = round(LOCKS * (1 + 0.6 * hair.curl))
        roots = scatter(rng, grown, _areas(shell.points, grown), count, arrays)
        made.append(_locks(rng, roots, hair))
    if hair.fringe > 0:
        made += _fringe(rng, scalp, hair, arrays, triangles[(above[triangles] > 0).all(1)])
    if hair.length > 0:
        made += _hanging(rng, hair)
    return made


def _areas(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    corners = points[triangles]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return np.linalg.norm(across, axis=1)


def _shell(scalp: Scalp, hair: Hair, above: np.ndarray) -> tuple[Layer, np.ndarray]:
    """The surface of the hair, and its thickness (n,) over each vertex of the model."""
    model = head_model()
    template = model.template
    high = smoothstep(7.5, 8.2, template[:, 1])
    thickness = (hair.sides + (hair.top - hair.sides) * high) * smoothstep(0.0, 0.2, above)
    u, v = texture.unrolled(template)
    coarse = texture.at(texture.tile(1.4), u * (22 + 20 * hair.curl) + hair.seed, v * 22)
    thickness = thickness * (1 + np.clip((0.10 + 0.12 * hair.curl) * coarse, -0.5, 0.5))
    if hair.parting is not None:
        on_line = bump(template[:, 0] - hair.parting, 0.06) * smoothstep(7.8, 8.1, template[:, 1])
        thickness = thickness * (1 - 0.45 * on_line * (template[:, 2] > 0.2))
    thickness = thickness + 0.006 * (above > 0)
    thickness[(model.masks["ears"] > 0.5) | (above < 0) | (model.part != 0)] = -0.02
    outward = scalp.normals + np.array([0, 0.25, 0], np.float32)
    points = scalp.vertices + outward * thickness[:, None].astype(np.float32)
    triangles = model.triangles[(thickness[model.triangles] > 0).any(1)]
    attributes = np.concatenate(
        [template, scalp.normals, np.zeros((len(template), 2)), model.masks["sky"][:, None]], 1
    )
    attributes[:, 7] = 0.5
    return Layer(points, attributes, triangles, np.full(len(triangles), HAIR)), thickness


def _combed(roots: Roots, hair: Hair) -> np.ndarray:
    """Unit directions (k, 3) along the surface in which hair is combed from its roots."""
    parting = 0.0 if hair.parting is None else hair.parting
    if hair.parting is None:  # back, and down at the sides
        direction = np.tile(np.array([0, 0.1, -1.0], np.float32), (len(roots.points), 1))
        direction[:, 1] -= 2.0 * smoothstep(8.1, 7.6, roots.template[:, 1])
    else:  # away from the parting and the crown
        from_crown = roots.template - np.array([parting * 0.6, 8.45, 0.1], np.float32)
        away = np.sign(roots.template[:, 0] - parting)
        direction = from_crown + np.stack([away * 0.8, -0.3 * away * away, 0 * away], 1)
    direction = direction - roots.normals * (direction * roots.normals).sum(1, keepdims=True)
    return direction / (np.linalg.norm(direction, axis=1, keepdims=True) + 1e-9)


def _locks(rng: np.random.Generator, roots: Roots, hair: Hair) -> Layer:
    """Locks on the shell, along the comb or curled."""
    count, steps = len(roots.points), 4
    thick = hair.sides + (hair.top - hair.sides) * smoothstep(7.5, 8.2, roots.template[:, 1])
    length = np.clip(thick * 1.6, 0.06, 0.40 - 0.28 * hair.curl) * rng.uniform(0.6, 1.4, count)
    ahead = _combed(roots, hair) + rng.normal(0, 0.16 + 0.3 * hair.curl, (count, 3))
    side = np.cross(ahead, roots.normals)
    share = np.linspace(0, 1, steps)[None, :, None]
    way = length[:, None, None] * share
    lift = rng.uniform(0.0, 0.35 + 0.25 * hair.curl, (count, 1, 1)) ** 2
    bend = way**2 / (2 * RADIUS)
    turn = share * np.pi * (0.15 + 1.2 * hair.curl) + rng.uniform(0, 6.28, (count, 1, 1))
    swing = hair.curl * 0.22 * length[:, None, None] * (np.sin(turn) - np.sin(turn[:, :1]))
    paths = (
        roots.points[:, None]
        + ahead[:, None] * way
        + roots.normals[:, None] * (lift * way * (1 - 0.55 * share) - bend + 0.004)
        + side[:, None] * swing
    )
    width = rng.uniform(0.012, 0.032, count) * (1 + 1.2 * hair.curl)
    return ribbons(paths, roots.normals[:, None], width, rng.uniform(-1, 1, count), LOCK)


def _fringe(
    rng: np.random.Generator,
    scalp: Scalp,
    hair: Hair,
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray],
    triangles: np.ndarray,
) -> list[Layer]:
    """Locks that fall over the forehead; they follow it."""
    model = head_model()
    centre = model.template[triangles].mean(1)
    front = (centre[:, 2] > 0.75) & (np.abs(centre[:, 0]) < 0.55)
    near = amount(centre, hair) < 0.22
    if not (front & near).any():
        return []
    chosen = triangles[front & near]
    roots = scatter(rng, chosen, _areas(arrays[0], chosen), FRINGE, arrays)
    count, steps = len(roots.points), 5
    x = roots.template[:, 0]
    lowest = 7.98 - 0.47 * hair.fringe + 0.10 * np.square(x / 0.5) * (1 - hair.fringe)
    end = lowest + rng.normal(0, 0.035, count) + 0.10 * hair.sweep * np.sign(-x) * np.abs(x)
    down = np.maximum(roots.points[:, 1] - end, 0.05)
    sway = hair.sweep * 0.35 * down + rng.normal(0, 0.06, count)
    if hair.parting is not None:
        sway = sway + 0.5 * (x - hair.parting)
    share = np.linspace(0, 1, steps)[None, :]
    across = roots.points[:, :1] + sway[:, None] * share**1.3
    across = np.clip(across, -0.62, 0.62)  # the forehead ends there
    across = across + hair.curl * 0.05 * np.sin(7 * share + rng.uniform(0, 6.28, (count, 1)))
    height = roots.points[:, 1:2] - down[:, None] * share
    skin = scalp.vertices[_forehead()]
    places = np.stack([across, height], -1).reshape(-1, 2).astype(np.float32)
    flat = skin[:, :2]
    nearest = (np.square(flat).sum(1) - 2 * places @ flat.T).argmin(1)
    depth = skin[nearest, 2].reshape(count, steps)
    lift = 0.03 + 0.5 * hair.top * (1 - share) ** 2 * 0.6 + 0.03 * rng.random((count, 1))
    start = roots.points[:, 2:] * (1 - share) ** 3 + (1 - (1 - share) ** 3) * (depth + lift)
    paths = np.stack([across, height, np.maximum(start, depth + lift * 0.7)], -1)
    outward = np.stack([0.6 * across, 0.25 + 0 * across, 1 + 0 * across], -1)
    outward /= np.linalg.norm(outward, axis=-1, keepdims=True)
    width = rng.uniform(0.02, 0.055, count) * (0.6 + 0.6 * hair.fringe)
    return [ribbons(paths, outward, width, rng.uniform(-1, 1, count), LOCK)]


@lru_cache(maxsize=1)
def _forehead() -> np.ndarray:
    """Numbers of the vertices from the brows to the hair, and of the temples."""
    model = head_model()
    x, y, z = model.template.T
    part = (model.part == 0) & (z > 0.6) & (y > 7.3) & (y < 8.3) & (np.abs(x) < 0.75)
    return np.flatnonzero(part & (model.masks["ears"] < 0.1))


def _hanging(rng: np.random.Generator, hair: Hair) -> list[Layer]:
    """A sheet at the back and the sides, and locks upon it, of which some fall to the front."""
    columns, rows = 33, 9
    angle = np.linspace(-2.3, 2.3, columns)  # 0 at the back of the head
    down = np.linspace(0, 1, rows)[:, None]
    sheet = _hung(angle[None], down, hair, 0.0)
    points = sheet.reshape(-1, 3)
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    squares = np.stack([corner, corner + 1, corner + columns + 1, corner + columns], 1)
    triangles = np.concatenate([squares[:, [0, 1, 2]], squares[:, [0, 2, 3]]])
    normals = points - np.array([0, 7.2, 0.38], np.float32)
    normals[:, 1] *= 0.2
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
    attributes = np.zeros((len(points), 9), np.float32)
    attributes[:, :3], attributes[:, 3:6] = points, normals
    attributes[:, 7], attributes[:, 8] = np.repeat(down[:, 0], columns), 0.8
    back = Layer(points, attributes, triangles, np.full(len(triangles), CURTAIN))

    steps = 6
    at = rng.uniform(-2.5, 2.5, HANGING)
    at = np.where(rng.random(HANGING) < 0.5, np.sign(at) * rng.uniform(1.5, 2.5, HANGING), at)
    start, end = rng.uniform(0, 0.25, HANGING), rng.uniform(0.8, 1.06, HANGING)
    ways = start[:, None] + (end - start)[:, None] * np.linspace(0, 1, steps)
    paths = _hung(at[:, None], ways, hair, rng.uniform(0.0, 0.07, (HANGING, 1)))
    wave = (0.02 + 0.07 * hair.curl) * np.sin(
        ways * (5 + 9 * hair.curl) + rng.uniform(0, 6.28, (HANGING, 1))
    )
    paths[..., 0] += wave * np.cos(at)[:, None]
    paths[..., 2] += wave * np.sin(at)[:, None]
    outward = np.stack([np.sin(at), 0 * at + 0.1, -np.cos(at)], -1)[:, None]
    width = rng.uniform(0.03, 0.09, HANGING)
    tone = rng.uniform(-1, 1, HANGING)
    return [back, ribbons(paths.astype(np.float32), outward, width, tone, CURTAIN)]


def _hung(angle: np.ndarray, down: np.ndarray, hair: Hair, out: float | np.ndarray) -> np.ndarray:
    """Points (..., 3) of hanging hair at an angle around the head and a way down, 0..1; `out`
    in dm from the sheet."""
    wide = 0.80 + 0.6 * hair.sides + 0.10 * hair.curl
    tail = wide - 0.04 + 0.08 * (hair.length > 1.5)
    width = np.interp(down, [0, 0.22, 0.6, 1], [0.62, wide, wide + 0.03, tail])
    width = width * (1 + 0.03 * np.sin(9 * angle + hair.seed % 7)) + out
    x, z = np.sin(angle) * width, 0.38 - np.cos(angle) * width * 0.85
    y = np.broadcast_to(8.05 - down * (0.75 + hair.length * 0.62), x.shape)
    return np.stack([x, y, z], -1).astype(np.float32)
