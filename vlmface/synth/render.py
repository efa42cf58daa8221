"""Ray casting and shading: a face description in, an image out, with nothing but pip packages.

Embree (through `embreex`) computes which triangle each ray meets and which points are in shadow;
everything else is NumPy. `render()` also returns landmarks and parts.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from embreex import mesh_construction, rtcore_scene
from PIL import Image, ImageFilter

from vlmface.synth.appearance import linear, smoothstep
from vlmface.synth.face_parameters import Face, View
from vlmface.synth.head_mesh import head_mesh
from vlmface.synth.meshes import rotation
from vlmface.synth.shading import PosedHead, shade_head

FIELD_OF_VIEW = 22.0  # degrees
FACE_CENTRE = np.array([0.0, 7.13, 0.75], np.float32)


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

    wide = round(size * supersample)
    origins, directions = camera_rays(view, wide)
    hits = cast(scene, origins, directions)
    attributes = interpolate(mesh.attributes, triangles[hits.triangle], hits.u, hits.v)
    kind = mesh.kind[hits.triangle]

    picture = _background(wide, view).reshape(-1, 3)
    picture[hits.hit] = shade_head(
        PosedHead(face, turn, placed, scene), attributes, hits.where, kind
    )
    part = np.full(wide * wide, -1, np.int8)
    part[hits.hit] = kind
    image, jpeg = develop(picture.reshape(wide, wide, 3), size, view)
    nearest = ((np.arange(size) + 0.5) * wide / size).astype(int)
    return Render(
        image=image,
        jpeg=jpeg,
        vertices=placed[:count],
        rest_pose=mesh.rest_pose,
        moved=mesh.moved,
        pixels=project(placed[:count], view, size),
        part=part.reshape(wide, wide)[np.ix_(nearest, nearest)],
    )


def _pinhole(view: View, field_of_view: float) -> tuple[float, np.float32]:
    """(tangent, distance) of a camera on the z axis, far enough to see 2.5 dm / zoom at the face's
    depth; `field_of_view` in degrees."""
    tangent = np.tan(np.radians(field_of_view / 2))
    return tangent, np.float32(1.16 / view.zoom / tangent)


def camera_rays(
    view: View, wide: int, field_of_view: float = FIELD_OF_VIEW
) -> tuple[np.ndarray, np.ndarray]:
    """Origins and directions (wide * wide, 3) of the rays through a picture, row by row."""
    tangent, distance = _pinhole(view, field_of_view)
    axis = (np.arange(wide, dtype=np.float32) + 0.5) / wide * 2 - 1
    columns, rows = np.meshgrid(axis - 2 * view.shift[0], -axis + 2 * view.shift[1])
    directions = np.stack([columns * tangent, rows * tangent, -np.ones_like(columns)], -1)
    directions = directions.reshape(-1, 3).astype(np.float32)
    origins = np.zeros_like(directions)
    origins[:, 2] = distance
    return origins, directions


def project(
    points: np.ndarray, view: View, size: int, field_of_view: float = FIELD_OF_VIEW
) -> np.ndarray:
    """The places (n, 2) of points (n, 3) in a picture, in pixels."""
    tangent, distance = _pinhole(view, field_of_view)
    pixels = points[:, :2] / (tangent * (distance - points[:, 2:3]))
    pixels = ((pixels * [1, -1] + 1) / 2 + np.array(view.shift) * [1, 1]) * size
    return pixels.astype(np.float32)


@dataclass(frozen=True)
class Hits:
    """What rays met.

    Attributes:
        hit: bool (n,): which of the n rays met something; k of them did.
        triangle: (k,) the triangle that each of those met.
        u, v: (k, 1) where in the triangle.
        where: (k, 3) where in space.
    """

    hit: np.ndarray
    triangle: np.ndarray
    u: np.ndarray
    v: np.ndarray
    where: np.ndarray


def cast(scene: rtcore_scene.EmbreeScene, origins: np.ndarray, directions: np.ndarray) -> Hits:
    """Follow rays with `origins` and `directions` (n, 3)."""
    hits = scene.run(origins, directions, output=True)
    hit = hits["primID"] >= 0
    where = origins[hit] + directions[hit] * hits["tfar"][hit][:, None]
    return Hits(hit, hits["primID"][hit], hits["u"][hit][:, None], hits["v"][hit][:, None], where)


def interpolate(
    attributes: np.ndarray, corners: np.ndarray, u: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """Vertex attributes (n, c) at the places u, v (k, 1) of triangles with `corners` (k, 3)."""
    return (
        attributes[corners[:, 0]] * (1 - u - v)
        + attributes[corners[:, 1]] * u
        + attributes[corners[:, 2]] * v
    )


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
    return encode_jpeg(image, view.jpeg)


def encode_jpeg(image: Image.Image, quality: int) -> tuple[np.ndarray, bytes]:
    """What a JPEG file of the picture shows, uint8 (h, w, 3), and the file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB")), buffer.getvalue()
