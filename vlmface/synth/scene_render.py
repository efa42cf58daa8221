"""Renders scenes: the head of `render.py` on a body, in the surroundings of `scene_geometry.py`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from embreex import mesh_construction, rtcore_scene

from vlmface.synth import props, scene_geometry
from vlmface.synth.appearance import smoothstep
from vlmface.synth.face_parameters import Face, View
from vlmface.synth.head import head_model
from vlmface.synth.head_mesh import HeadMesh, head_mesh
from vlmface.synth.meshes import Part, rotation
from vlmface.synth.render import cast, develop, interpolate
from vlmface.synth.shading import PosedHead, key_direction, key_shadow, light_on, shade_head

# What a ray met, in addition to the kinds of `head_mesh.py` (0 to 7).
ROOM, BODY, OBJECT, NUISANCE = 8, 9, 10, 11
NECK = np.array([0.0, 6.2, 0.25], np.float32)  # where the head turns on the body
DOME = np.array([(0.62, 0.75, 0.2), (-0.62, 0.75, 0.2), (0.1, 0.8, 0.6), (0.0, 0.9, -0.45)])


@dataclass(frozen=True)
class Camera:
    """A pinhole at `place` that looks `down` and to the `side` by so many degrees and sees `field`
    degrees, across and from top to bottom."""

    position: tuple[float, float, float]
    side: float
    down: float
    field: float

    def project(self, points: np.ndarray, size: int) -> np.ndarray:
        """Pixels (n, 2) of points (n, 3) in a picture of `size` x `size`."""
        camera_points = (points - np.asarray(self.position)) @ rotation(self.side, -self.down, 0)
        flat = camera_points[:, :2] / -camera_points[:, 2:3] / np.tan(np.radians(self.field / 2))
        return (flat * [1, -1] + 1) / 2 * size

    def rays(self, wide: int) -> tuple[np.ndarray, np.ndarray]:
        """Origins and directions (wide * wide, 3), from the top left."""
        axis = (np.arange(wide, dtype=np.float32) + 0.5) / wide * 2 - 1
        columns, rows = np.meshgrid(axis, -axis)
        tangent = np.float32(np.tan(np.radians(self.field / 2)))
        ahead = np.stack([columns * tangent, rows * tangent, -np.ones_like(columns)], -1)
        directions = (ahead.reshape(-1, 3) @ rotation(self.side, -self.down, 0).T).astype(
            np.float32
        )
        origins = np.tile(np.asarray(self.position, np.float32), (len(directions), 1))
        return origins, directions


@dataclass(frozen=True)
class Scene:
    """All that makes one picture. `face.view` holds the turn of the head, its gaze, the light and
    the picture's quality; `seed` draws the surroundings."""

    face: Face
    camera: Camera
    object: str
    seed: int


@dataclass(frozen=True)
class Assembly:
    """A scene's geometry. `head` is not turned yet; `placed` (k, 3) are its points where they are,
    `attributes` (k, 9) the head's with normals for `shade_head`, `turn` the head's rotation.
    `parts` are all other things with a kind each; `around` names what stands around."""

    head: HeadMesh
    placed: np.ndarray
    attributes: np.ndarray
    turn: np.ndarray
    parts: list[Part]
    kinds: list[int]
    around: list[str]

    def points(self, kind: int) -> np.ndarray:
        """The points (n, 3) of all parts of a kind."""
        pairs = zip(self.parts, self.kinds, strict=True)
        return np.concatenate([part.mesh.points for part, its in pairs if its == kind])


@dataclass(frozen=True)
class SceneRender:
    """`image` uint8 (size, size, 3) and the `jpeg` file it was decoded from; `part` int8 (size,
    size): kinds of `head_mesh.py`, then ROOM, BODY, OBJECT, NUISANCE."""

    image: np.ndarray
    jpeg: bytes
    part: np.ndarray


@lru_cache(maxsize=1)
def face_vertices() -> np.ndarray:
    """Numbers (k,) of the head's vertices from brow to chin and from ear to ear."""
    model = head_model()
    _, y, z = model.template.T
    skin = (model.part == 0) & (model.masks["inside_mouth"] < 0.5)
    front = (z > 0.55) & (y > 6.62) & (y < 7.62)
    jaw = (z > 1.0 - 0.35 * (y - 6.1)) & (y > 6.1) & (y <= 6.62)
    return np.flatnonzero(skin & (front | jaw | (model.masks["ears"] > 0.5)))


def assemble(scene: Scene) -> Assembly:
    """Put the scene together."""
    model, face, view = head_model(), scene.face, scene.face.view
    head = head_mesh(face)
    # The neck bends: what is below stays with the body.
    template = head.attributes[:, :3]
    chin = 0.35 * smoothstep(0.7, 1.1, template[:, 2])
    share = smoothstep(5.75, 6.2, template[:, 1] + chin)[:, None]
    hair = np.arange(len(head.points)) >= len(head.moved)
    share[hair] = np.maximum(share[hair], smoothstep(5.6, 5.9, template[hair, 1:2]))
    turn = rotation(view.yaw, view.pitch, view.roll)
    turned = (head.points - NECK) @ turn.T + NECK
    normals = head.attributes[:, 3:6]
    normals = normals @ turn.T * share + normals * (1 - share)
    attributes = head.attributes.copy()
    attributes[:, 3:6] = normals @ turn  # shade_head turns them

    rng = np.random.default_rng([71, scene.seed])
    behind = scene_geometry.room(rng) + scene_geometry.desk(rng)
    around, objects = scene_geometry.nuisance(rng)
    # Of its own numbers: with another object, everything else stays as it is.
    prop = props.OBJECTS[scene.object](np.random.default_rng([73, scene.seed]))
    person = scene_geometry.body(head.rest_pose, model.template, face.look)
    person += scene_geometry.arms(head.rest_pose, model.template, face.look, prop)
    layers = ((ROOM, behind), (BODY, person), (OBJECT, prop.parts), (NUISANCE, objects))
    return Assembly(
        head=head,
        placed=(head.points * (1 - share) + turned * share).astype(np.float32),
        attributes=attributes,
        turn=turn,
        parts=[part for _, parts in layers for part in parts],
        kinds=[kind for kind, parts in layers for _ in parts],
        around=around,
    )


def outlines(scene: Scene, assembly: Assembly, size: int) -> dict[str, np.ndarray]:
    """The pixels (n, 2) of the vertices of "face" (brow to chin, ear to ear, no hair), "person"
    (head and body) and "object"; they may lie outside of the picture."""
    head, used = assembly.placed, np.unique(assembly.head.triangles)
    points = {
        "face": head[face_vertices()],
        "person": np.concatenate([head[used], assembly.points(BODY)]),
        "object": assembly.points(OBJECT),
    }
    return {name: scene.camera.project(where, size) for name, where in points.items()}


def box(pixels: np.ndarray, size: int) -> list[float]:
    """[x0, y0, x1, y1] around pixels (n, 2), as far as it lies in the picture."""
    low, high = np.clip(pixels.min(0), 0, size), np.clip(pixels.max(0), 0, size)
    return [round(float(x), 1) for x in (*low, *high)]


def render_scene(
    scene: Scene, size: int = 192, supersample: float = 1.5, assembly: Assembly | None = None
) -> SceneRender:
    """Draw a scene at `size` x `size` pixels from supersample^2 rays a pixel. `assembly`: what
    `assemble` gives, if known."""
    built = assembly or assemble(scene)
    head, parts, first = built.head, built.parts, len(built.placed)
    mesh = scene_geometry.whole(parts)
    counts = [len(part.mesh.triangles) for part in parts]
    triangles = np.concatenate([head.triangles, mesh.triangles + first])
    of_part = np.concatenate(
        [np.full(len(head.triangles), -1), np.repeat(np.arange(len(parts)), counts)]
    )
    kind = np.concatenate([head.kind, np.repeat(built.kinds, counts)])
    points = np.concatenate([built.placed, mesh.points]).astype(np.float32)
    world = rtcore_scene.EmbreeScene()
    mesh_construction.TriangleMesh(world, points, triangles.astype(np.int32))

    wide = round(size * supersample)
    origins, directions = scene.camera.rays(wide)
    hits = cast(world, origins, directions)
    triangle, u, v, where = hits.triangle, hits.u, hits.v, hits.where
    colour = np.empty((len(triangle), 3), np.float32)
    on_head = of_part[triangle] < 0
    attributes = interpolate(built.attributes, triangles[triangle[on_head]], u[on_head], v[on_head])
    posed = PosedHead(scene.face, built.turn, built.placed, world)
    colour[on_head] = shade_head(posed, attributes, where[on_head], kind[triangle[on_head]])
    other = ~on_head
    corners = triangles[triangle[other]] - first
    surface = interpolate(np.concatenate([mesh.normals, mesh.uv], 1), corners, u[other], v[other])
    others = SurfacePoints(
        part=of_part[triangle[other]],
        normal=surface[:, :3],
        uv=surface[:, 3:],
        where=where[other],
        ray=directions[hits.hit][other],
    )
    colour[other] = _shade(scene.face.view, parts, others, world)
    picture = np.zeros((wide * wide, 3), np.float32)
    picture[hits.hit] = colour
    part = np.full(wide * wide, ROOM, np.int8)
    part[hits.hit] = kind[triangle]
    nearest = ((np.arange(size) + 0.5) * wide / size).astype(int)
    image, jpeg = develop(picture.reshape(wide, wide, 3), size, scene.face.view)
    return SceneRender(image, jpeg, part.reshape(wide, wide)[np.ix_(nearest, nearest)])


@dataclass(frozen=True)
class SurfacePoints:
    """Points that rays met and that are not the head's.

    Attributes:
        part: (k,) number of the part that each is on.
        normal: (k, 3) of the surface, of any length.
        uv: (k, 2) place on the part's texture.
        where: (k, 3) place in space.
        ray: (k, 3) direction of the ray.
    """

    part: np.ndarray
    normal: np.ndarray
    uv: np.ndarray
    where: np.ndarray
    ray: np.ndarray


def _shade(
    view: View, parts: list[Part], points: SurfacePoints, world: rtcore_scene.EmbreeScene
) -> np.ndarray:
    """The linear colour (k, 3) of points."""
    uv, where, directions = points.uv, points.where, points.ray
    normal = points.normal / (np.linalg.norm(points.normal, axis=1, keepdims=True) + 1e-9)
    normal = np.where((normal * directions).sum(1, keepdims=True) > 0, -normal, normal)
    albedo, gloss = np.empty((len(uv), 3), np.float32), np.empty(len(uv), np.float32)
    order = np.argsort(points.part, kind="stable")
    numbers, starts = np.unique(points.part[order], return_index=True)
    for number, some in zip(numbers, np.split(order, starts[1:]), strict=True):
        albedo[some] = scene_geometry.colour_of(parts[number], uv[some])
        gloss[some] = parts[number].gloss
    key = key_direction(view)
    shadow = key_shadow(world, where, normal, key)
    light = light_on(view, normal, key, shadow)
    # What of a coarse sky dome each point sees, so that things stand on the desk.
    raised = (where + normal * np.float32(0.03)).astype(np.float32)
    coverage, most = np.zeros(len(where), np.float32), np.zeros(len(where), np.float32)
    for ray in (DOME / np.linalg.norm(DOME, axis=1, keepdims=True)).astype(np.float32):
        cosine = np.clip(normal @ ray, 0, None)
        free = world.run(raised, np.tile(ray, (len(raised), 1)), query="OCCLUDED") == -1
        coverage += cosine * free
        most += cosine
    sky = np.where(most > 0, coverage / np.maximum(most, 1e-6), 1)
    light *= (0.45 + 0.55 * sky)[:, None]
    half = key - directions / np.linalg.norm(directions, axis=1, keepdims=True)
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    shine = gloss * np.power(np.clip((normal * half).sum(1), 0, 1), 20) * shadow * view.key
    return albedo * light + shine[:, None]
