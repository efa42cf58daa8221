"""Ray casting and shading: a face description in, an image out, with nothing but pip packages.

Embree (through `embreex`) computes which triangle each ray meets and which points are in shadow;
everything else is NumPy. `render()` also returns landmarks and parts.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from embreex import mesh_construction, rtcore_scene
from PIL import Image, ImageFilter

from vlmface.synth import appearance as paint
from vlmface.synth.appearance import Appearance, Colour, bump, linear, noise, smoothstep
from vlmface.synth.head import (
    LEFT_EYE,
    RIGHT_EYE,
    TONGUE,
    UPPER_TEETH,
    Identity,
    head_model,
    unit_weights,
)

HAIR, CURTAIN = 6, 7
FIELD_OF_VIEW = 22.0  # degrees
FACE_CENTRE = np.array([0.0, 7.13, 0.75], np.float32)


@dataclass(frozen=True)
class View:
    """Camera, light and picture quality. Angles in degrees: positive yaw turns the head to its
    left (the picture's right), positive pitch lowers the chin, positive roll tilts it clockwise in
    the picture.

    `zoom` 1 fits a face from hair line to chin; `shift` moves it in shares of the picture. `light`
    is the direction (x right of the picture, y up, z to the camera) of the key light; `blur` in
    pixels, `noise` in grey levels, drawn from `noise_seed` (None: from the background's).
    """

    yaw: float
    pitch: float
    roll: float
    gaze: tuple[float, float]
    zoom: float
    shift: tuple[float, float]
    light: tuple[float, float, float]
    key: float
    key_colour: Colour
    fill: float
    ambient: float
    background: tuple[Colour, Colour]
    background_seed: int
    blur: float
    noise: float
    jpeg: int
    noise_seed: int | None = None


@dataclass(frozen=True)
class Face:
    """All that makes one picture: identity, look, AU strengths (0..1, left, right) and view."""

    identity: Identity
    look: Appearance
    left: dict[int, float]
    right: dict[int, float]
    view: View


@dataclass(frozen=True)
class Render:
    """A rendered face.

    Attributes:
        image: uint8 (h, w, 3), decoded from `jpeg`.
        jpeg: the picture as a file.
        vertices: (n, 3) with expression and pose, as the camera sees them.
        rest_pose: (n, 3) without either.
        moved: (n, 3) with the expression, without the pose.
        pixels: (n, 2) places of the vertices in the picture.
        part: int8 (h, w): -1 background, 0 skin, 1..7 as in the model.
    """

    image: np.ndarray
    jpeg: bytes
    vertices: np.ndarray
    rest_pose: np.ndarray
    moved: np.ndarray
    pixels: np.ndarray
    part: np.ndarray


@lru_cache(maxsize=1)
def _corner_sums() -> tuple[np.ndarray, int]:
    model = head_model()
    return model.triangles.T.ravel(), len(model.template)


def vertex_normals(vertices: np.ndarray) -> np.ndarray:
    """Unit normals (n, 3), area-weighted over the model's triangles."""
    index, count = _corner_sums()
    corners = vertices[head_model().triangles]
    face = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    face = np.tile(face, (3, 1))
    total = np.stack([np.bincount(index, face[:, i], count) for i in range(3)], 1)
    return (total / (np.linalg.norm(total, axis=1, keepdims=True) + 1e-12)).astype(np.float32)


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Rotation matrix (3, 3) for angles in degrees: roll after pitch after yaw."""
    a, b, c = np.radians([yaw, pitch, -roll])
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    nod = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    tilt = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return (tilt @ nod @ turn).astype(np.float32)


def _hair_shell(
    vertices: np.ndarray, normals: np.ndarray, look: Appearance
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices pushed out by the hair's thickness, and the triangles (m, 3) of the shell."""
    model = head_model()
    top, sides, lowering, _ = paint.HAIR_STYLES[look.hair_style]
    if top == 0:
        return vertices, np.zeros((0, 3), np.int64)
    above = paint.hair_amount(model.template, lowering)
    high = smoothstep(7.5, 8.2, model.template[:, 1])
    thickness = (sides + (top - sides) * high) * smoothstep(0.0, 0.16, above)
    lumps = noise(model.template, 9.0 if look.hair_style == "curly" else 4.0, look.texture_seed)
    thickness = thickness * (1 + 0.22 * lumps) + 0.012 * (above > 0)
    thickness[(model.masks["ears"] > 0.5) | (above < -0.02) | (model.part != 0)] = -0.02
    has_hair = (thickness[model.triangles] > 0).any(1)
    outward = normals + np.array([0, 0.25, 0], np.float32)
    return vertices + outward * thickness[:, None].astype(np.float32), model.triangles[has_hair]


def _curtain(vertices: np.ndarray, look: Appearance) -> tuple[np.ndarray, np.ndarray]:
    """A hanging sheet of hair around the back and the sides: vertices (k, 3), triangles."""
    length = paint.HAIR_STYLES[look.hair_style][3]
    if not length:
        return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64)
    columns, rows = 33, 9
    angle = np.linspace(-2.35, 2.35, columns)  # 0 at the back of the head
    down = np.linspace(0, 1, rows)[:, None]
    wave = 1 + 0.03 * np.sin(9 * angle + look.texture_seed % 7)
    width = np.interp(down, [0, 0.25, 1], [0.62, 0.92, 0.86 + 0.12 * (length > 1.5)]) * wave
    x, z = np.sin(angle) * width, 0.38 - np.cos(angle) * width * 0.85
    y = np.broadcast_to(8.05 - down * (0.75 + length * 0.62), x.shape)
    points = np.stack([x, y, z], -1).reshape(-1, 3).astype(np.float32)
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    squares = np.stack([corner, corner + 1, corner + columns + 1, corner + columns], 1)
    return points, np.concatenate([squares[:, [0, 1, 2]], squares[:, [0, 2, 3]]])


def _background(size: int, view: View) -> np.ndarray:
    """A soft out-of-focus backdrop (size, size, 3), linear RGB."""
    rng = np.random.default_rng(view.background_seed)
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size)), -1)
    direction = rng.normal(size=2)
    mix = 0.5 + 0.35 * (grid @ (direction / np.linalg.norm(direction)))
    for _ in range(rng.integers(0, 5)):
        centre, radius = rng.uniform(-1, 1, 2), rng.uniform(0.15, 0.7)
        mix += rng.uniform(-0.5, 0.5) * smoothstep(
            radius, radius * 0.6, np.linalg.norm(grid - centre, axis=-1)
        )
    low, high = linear(view.background[0]), linear(view.background[1])
    return (low + np.clip(mix, 0, 1)[..., None] * (high - low)).astype(np.float32)


@dataclass(frozen=True)
class HeadMesh:
    """A head with its expression, not turned yet, and its hair.

    `rest_pose` (n, 3) and `moved` (n, 3) are the model's vertices without and with the
    expression.
    `points` (k, 3) holds `moved`, then the hair's; `triangles` (m, 3) index it and `kind` (m,) says
    what each shows. `attributes` (k, 9): template coordinates, normal, lips, inside of mouth, sky.
    """

    rest_pose: np.ndarray
    moved: np.ndarray
    points: np.ndarray
    attributes: np.ndarray
    triangles: np.ndarray
    kind: np.ndarray


def head_mesh(face: Face, rest_pose: np.ndarray | None = None) -> HeadMesh:
    """The mesh of a face. `rest_pose`: what `HeadModel.neutral` gives for its identity."""
    model, look = head_model(), face.look
    if rest_pose is None:
        rest_pose = model.neutral(face.identity)
    units = unit_weights(face.left, face.right)
    _, gaze_pitch = face.view.gaze
    units["eyeLookDownLeft"] = units["eyeLookDownRight"] = max(0.0, -gaze_pitch / 25)
    units["eyeLookUpLeft"] = units["eyeLookUpRight"] = max(0.0, gaze_pitch / 25)
    moved = model.move(rest_pose, units)
    normals = vertex_normals(moved)

    shell, shell_triangles = _hair_shell(moved, normals, look)
    sheet, sheet_triangles = _curtain(moved, look)
    count = len(moved)
    parts_of_triangle = model.part[model.triangles[:, 0]]
    triangles = np.concatenate(
        [model.triangles, shell_triangles + count, sheet_triangles + 2 * count]
    )
    kind = np.concatenate(
        [
            parts_of_triangle,
            np.full(len(shell_triangles), HAIR),
            np.full(len(sheet_triangles), CURTAIN),
        ]
    )
    sheet_normals = sheet - np.array([0, 7.2, 0.38], np.float32)
    sheet_normals /= np.linalg.norm(sheet_normals, axis=1, keepdims=True) + 1e-9
    points = np.concatenate([moved, shell, sheet])
    attributes = np.concatenate(
        [
            np.concatenate([model.template, model.template, sheet]),
            np.concatenate([normals, normals, sheet_normals]),
            np.stack(
                [
                    np.concatenate([m, m, np.ones(len(sheet), np.float32)])
                    for m in (model.masks["lips"], model.masks["inside_mouth"], model.masks["sky"])
                ],
                1,
            ),
        ],
        1,
    ).astype(np.float32)
    return HeadMesh(rest_pose, moved, points, attributes, triangles, kind)


def render(
    face: Face, size: int = 96, supersample: float = 1.5, rest_pose: np.ndarray | None = None
) -> Render:
    """Draw `face` at `size` x `size` pixels from supersample^2 rays a pixel. `rest_pose` as in
    `head_mesh`: frames of one person share it."""
    view, mesh = face.view, head_mesh(face, rest_pose)
    count, triangles = len(mesh.moved), mesh.triangles

    turn = rotation(view.yaw, view.pitch, view.roll)
    placed = (mesh.points - FACE_CENTRE) @ turn.T
    scene = rtcore_scene.EmbreeScene()
    mesh_construction.TriangleMesh(scene, placed.astype(np.float32), triangles.astype(np.int32))

    # A pinhole camera on the z axis, far enough to see 2.5 dm / zoom at the face's depth.
    tangent = np.tan(np.radians(FIELD_OF_VIEW / 2))
    distance = np.float32(1.16 / view.zoom / tangent)
    wide = round(size * supersample)
    axis = (np.arange(wide, dtype=np.float32) + 0.5) / wide * 2 - 1
    columns, rows = np.meshgrid(axis - 2 * view.shift[0], -axis + 2 * view.shift[1])
    directions = np.stack([columns * tangent, rows * tangent, -np.ones_like(columns)], -1)
    directions = directions.reshape(-1, 3).astype(np.float32)
    origins = np.zeros_like(directions)
    origins[:, 2] = distance
    hit, triangle, u, v, where = cast(scene, origins, directions)
    attributes = interpolate(mesh.attributes, triangles[triangle], u, v)
    colour = shade_head(face, attributes, where, mesh.kind[triangle], turn, placed, scene)

    picture = _background(wide, view).reshape(-1, 3)
    picture[hit] = colour
    part = np.full(wide * wide, -1, np.int8)
    part[hit] = mesh.kind[triangle]
    pixels = placed[:count, :2] / (tangent * (distance - placed[:count, 2:3]))
    pixels = ((pixels * [1, -1] + 1) / 2 + np.array(view.shift) * [1, 1]) * size
    image, jpeg = develop(picture.reshape(wide, wide, 3), size, view)
    nearest = ((np.arange(size) + 0.5) * wide / size).astype(int)
    return Render(
        image=image,
        jpeg=jpeg,
        vertices=placed[:count],
        rest_pose=mesh.rest_pose,
        moved=mesh.moved,
        pixels=pixels.astype(np.float32),
        part=part.reshape(wide, wide)[np.ix_(nearest, nearest)],
    )


def cast(
    scene: rtcore_scene.EmbreeScene, origins: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Which of n rays meet something, (n,) bool; of those k that do: the triangle (k,), where in it
    (k, 1), (k, 1), and where in space (k, 3)."""
    hits = scene.run(origins, directions, output=True)
    hit = hits["primID"] >= 0
    where = origins[hit] + directions[hit] * hits["tfar"][hit][:, None]
    return hit, hits["primID"][hit], hits["u"][hit][:, None], hits["v"][hit][:, None], where


def interpolate(
    attributes: np.ndarray, corners: np.ndarray, u: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """Vertex attributes (n, c) at the places u, v (k, 1) of triangles with `corners` (k, 3)."""
    return (
        attributes[corners[:, 0]] * (1 - u - v)
        + attributes[corners[:, 1]] * u
        + attributes[corners[:, 2]] * v
    )


def key_direction(view: View) -> np.ndarray:
    """The unit vector (3,) towards the key light."""
    return np.array(view.light, np.float32) / np.float32(np.linalg.norm(view.light))


def key_shadow(
    scene: rtcore_scene.EmbreeScene, where: np.ndarray, normal: np.ndarray, key: np.ndarray
) -> np.ndarray:
    """What is left of the key light (k,) at points with their normals: less where it is blocked."""
    lit = scene.run(
        (where + normal * np.float32(0.02)).astype(np.float32),
        np.tile(key, (len(where), 1)),
        query="OCCLUDED",
    )
    return np.where(lit == -1, 1.0, 0.45).astype(np.float32)


def light_on(view: View, normal: np.ndarray, key: np.ndarray, shadow: np.ndarray) -> np.ndarray:
    """The light (k, 3), linear RGB, that falls on points with their normals (k, 3)."""
    facing = normal @ key
    wrap = np.float32(0.3)
    diffuse = np.clip((facing + wrap) / (1 + wrap), 0, None) * shadow
    fill_from = np.array([-key[0], 0.15, 0.8], np.float32)
    fill = np.clip(normal @ (fill_from / np.linalg.norm(fill_from)), 0, None)
    above = 0.5 + 0.5 * normal[:, 1]
    return (
        (view.key * diffuse)[:, None] * linear(view.key_colour)
        + (view.fill * fill)[:, None]
        + (view.ambient * (0.6 + 0.4 * above))[:, None]
    )


def shade_head(
    face: Face,
    attributes: np.ndarray,
    where: np.ndarray,
    kind: np.ndarray,
    turn: np.ndarray,
    placed: np.ndarray,
    scene: rtcore_scene.EmbreeScene,
) -> np.ndarray:
    """Linear colour (k, 3) of the points that rays met."""
    look, view, model = face.look, face.view, head_model()
    template, normal = attributes[:, :3], attributes[:, 3:6]
    lips, inside, sky = attributes[:, 6], attributes[:, 7], attributes[:, 8]
    normal = normal @ turn.T
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    normal = np.where((normal[:, 2:3] < -0.2) & (kind[:, None] >= HAIR), -normal, normal)

    albedo = np.empty_like(template)
    gloss = np.full(len(attributes), 0.05, np.float32)
    skin = kind == 0
    albedo[skin], relief = _skin(face, template[skin], lips[skin], inside[skin])
    gloss[skin] = 0.055 + 0.09 * lips[skin]
    for eye in (LEFT_EYE, RIGHT_EYE):
        on = kind == eye
        if on.any():
            centre = model.eye_centre(placed[: len(model.template)], eye)
            out = where[on] - centre
            out /= np.linalg.norm(out, axis=1, keepdims=True)
            albedo[on] = _eye(out @ _gaze_direction(view, turn), look)
            normal[on], gloss[on] = out, 0.9
    teeth = (kind == UPPER_TEETH) | (kind == UPPER_TEETH + 1)
    albedo[teeth] = linear((0.93, 0.90, 0.83))
    gloss[teeth] = 0.25
    albedo[kind == TONGUE] = linear((0.70, 0.36, 0.34))
    hair = kind >= HAIR
    albedo[hair] = _hair(template[hair], kind[hair], look)
    gloss[hair] = 0.10
    sky = np.where(hair, 0.85, sky)
    visible = smoothstep(1.15, 1.40, template[:, 2]) * smoothstep(
        0.26, 0.12, np.abs(template[:, 0])
    )
    sky = np.where(teeth, 0.15 + 0.70 * visible, sky)
    sky = np.where((kind == LEFT_EYE) | (kind == RIGHT_EYE), np.maximum(sky, 0.62), sky)

    key = key_direction(view)
    shadow = key_shadow(scene, where, normal, key)
    shadow[(kind >= LEFT_EYE) & (kind <= TONGUE)] = 0.85
    light = light_on(view, normal, key, shadow)
    # Blood under thin skin keeps the terminator red.
    glow = np.zeros_like(light)
    glow[:, 0] = 0.10 * view.key * bump(normal @ key, 0.35) * (kind == 0)
    light = (light + glow) * (0.25 + 0.75 * sky)[:, None]
    half = key + np.array([0, 0, 1], np.float32)
    half /= np.linalg.norm(half)
    power = np.where((kind == LEFT_EYE) | (kind == RIGHT_EYE), 90, np.where(hair, 14, 22))
    shine = gloss * np.power(np.clip(normal @ half, 0, 1), power) * shadow * view.key
    colour = albedo * light + (shine * sky)[:, None]
    shade = np.ones(len(attributes), np.float32)
    shade[skin] = np.clip(1 + 0.42 * relief, 0.30, 1.25)
    return colour * shade[:, None]


def _gaze_direction(view: View, turn: np.ndarray) -> np.ndarray:
    """The unit vector (3,) of the gaze, for a head that is rotated by `turn`."""
    yaw, pitch = np.radians(view.gaze)
    gaze = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    return (turn @ gaze).astype(np.float32)


def _skin(
    face: Face, template: np.ndarray, lips: np.ndarray, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Albedo (k, 3) and wrinkle relief (k,) of skin points."""
    look = face.look
    x, y, z = np.abs(template[:, 0]), template[:, 1], template[:, 2]
    base = skin_tone = paint.skin_colour(look.tone, look.warmth)
    mottle = (
        noise(template, 7.0, look.texture_seed) * 0.035
        + noise(template, 30.0, look.texture_seed + 1) * 0.025
    )
    albedo = base * (1 + mottle)[:, None]
    flush = 0.9 * bump(np.hypot(x - 0.42, y - 6.95), 0.22) + 0.7 * bump(np.hypot(x, y - 6.93), 0.13)
    flush = flush + 0.35 * bump(np.hypot(x - 0.31, y - 7.28), 0.2)
    albedo *= 1 + flush[:, None] * np.array([0.06, -0.06, -0.05], np.float32) * (1.3 - look.tone)
    socket = bump(np.hypot(x - 0.31, y - 7.29), 0.16) * (z > 0.9)
    albedo *= (1 - 0.12 * socket)[:, None]
    # Beard and stubble: the lower face, up to the cheek line, not the lips.
    area = (
        smoothstep(6.86, 6.70, y - 0.10 * smoothstep(0.3, 0.7, x))
        * smoothstep(5.98, 6.12, y)
        * (z > 0.25)
    )
    area = (
        area * smoothstep(0.03, 0.10, np.abs(y - 6.60) + 0.4 * np.clip(x - 0.22, 0, 1)) * (1 - lips)
    )
    grain = 0.88 + 0.12 * noise(template, 60.0, look.texture_seed + 5)
    hair = linear(paint.HAIR_COLOURS[look.hair_colour])
    cover = np.clip(area * (0.30 * look.stubble + 0.85 * look.beard) * grain, 0, 1)[:, None]
    albedo = albedo * (1 - cover) + hair * cover
    # Lips.
    rouge = linear((0.72, 0.36, 0.36)) * (0.35 + 0.65 * np.power(skin_tone[0], 0.6))
    blend = np.clip(lips * (0.55 + 0.4 * look.lip_tint), 0, 1)[:, None]
    albedo = albedo * (1 - blend) + rouge * blend
    cavity = np.clip(inside - lips * 0.5, 0, 1)[:, None]
    albedo = albedo * (1 - cavity) + linear((0.42, 0.15, 0.15)) * cavity
    # Brows, lash line, hair roots, cloth.
    alpha = paint.brow_alpha(template, look)[:, None]
    albedo = albedo * (1 - alpha) + hair * 0.8 * alpha
    for centre_x in (0.3078, -0.3078):
        out = np.sqrt((template[:, 0] - centre_x) ** 2 + (y - 7.284) ** 2 + (z - 1.2454) ** 2)
        lash = bump(out - 0.150, 0.014) * (0.45 + 0.5 * (y > 7.27)) * (z > 1.25)
        albedo *= (1 - np.clip(lash, 0, 0.85))[:, None]
    style = paint.HAIR_STYLES[look.hair_style]
    if style[0]:
        roots = smoothstep(-0.03, 0.06, paint.hair_amount(template, style[2]))[:, None] * 0.85
        albedo = albedo * (1 - roots) + hair * roots
    collar = smoothstep(5.93, 5.90, y + 0.22 * bump(x, 0.35) * (z > 0.2))[:, None]
    albedo = albedo * (1 - collar) + linear(look.cloth) * collar
    left = template[:, 0] > 0
    strengths = {
        au: np.where(left, np.float32(face.left.get(au, 0.0)), np.float32(face.right.get(au, 0.0)))
        for au in set(face.left) | set(face.right)
    }
    relief = paint.wrinkles(template, strengths, look.age)
    return albedo.astype(np.float32), relief * (1 - np.clip(lips + inside, 0, 1)) * (
        1 - alpha[:, 0] * 0.7
    )


def _eye(cosine: np.ndarray, look: Appearance) -> np.ndarray:
    """Albedo (k, 3) of eyeball points from the cosine of their angle to the gaze axis."""
    angle = np.arccos(np.clip(cosine, -1, 1))
    iris = smoothstep(0.52, 0.46, angle)[:, None]
    pupil = smoothstep(0.22, 0.17, angle)[:, None]
    ring = (bump(angle - 0.47, 0.06) * 0.5)[:, None]
    colour = (
        linear((0.94, 0.92, 0.90)) * (1 - iris) + linear(paint.EYE_COLOURS[look.eye_colour]) * iris
    )
    return colour * (1 - ring) * (1 - 0.95 * pupil)


def _hair(template: np.ndarray, kind: np.ndarray, look: Appearance) -> np.ndarray:
    """Albedo (k, 3) of hair points, with strands running from the crown."""
    base = linear(paint.HAIR_COLOURS[look.hair_colour])
    around = np.arctan2(template[:, 0], template[:, 2] - 0.35)
    strands = np.sin(around * 70 + 3 * noise(template, 3.0, look.texture_seed))
    clumps = noise(template, 16.0 if look.hair_style == "curly" else 6.0, look.texture_seed + 2)
    if look.hair_style == "curly":
        strands = noise(template, 30.0, look.texture_seed + 3)
    fade = np.where(kind == CURTAIN, 0.75, 1.0)
    return base * (fade * np.clip(1 + 0.22 * strands + 0.2 * clumps, 0.3, 1.8))[:, None]


def develop(picture: np.ndarray, size: int, view: View) -> tuple[np.ndarray, bytes]:
    """Linear picture to an uint8 image and its JPEG file: tone curve, scale, blur, sensor noise."""
    picture = np.clip(picture, 0, 1.6)
    exposed = np.power(picture / (1 + 0.18 * picture), 1 / 2.2)
    image = Image.fromarray((np.clip(exposed, 0, 1) * 255).astype(np.uint8))
    image = image.resize((size, size), Image.Resampling.BOX)
    if view.blur > 0:
        image = image.filter(ImageFilter.GaussianBlur(view.blur * size / 96))
    if view.noise > 0:
        seed = view.background_seed + 1 if view.noise_seed is None else view.noise_seed
        rng = np.random.default_rng(seed)
        noisy = np.asarray(image, np.float32) + rng.normal(0, view.noise, (size, size, 3))
        image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=view.jpeg)
    return np.asarray(Image.open(buffer).convert("RGB")), buffer.getvalue()
