"""Draws a face of version 2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from embreex import mesh_construction, rtcore_scene

from vlmface.synth.meshes import rotation
from vlmface.synth.render import FACE_CENTRE, Render, camera_rays, cast, interpolate, project
from vlmface.synth.v2 import backgrounds, camera, mesh, shading, visibility
from vlmface.synth.v2.glasses import Fit
from vlmface.synth.v2.layers import Scalp
from vlmface.synth.v2.parameters import PhotoFace


@dataclass(frozen=True)
class PhotoRender(Render):
    """A rendered face of version 2.

    Attributes:
        shares: (AUs, 2) as of `visibility.visible_shares`.
    """

    shares: np.ndarray

    @property
    def visible(self) -> dict[int, visibility.Sides]:
        """AU -> whether its left and its right can be seen."""
        return visibility.visible_sides(self.shares)


def render(face: PhotoFace, size: int = 96, supersample: float = 1.8) -> PhotoRender:
    """Draw a face at `size` x `size` pixels from supersample^2 rays a pixel."""
    view, head = face.view, mesh.head_mesh(face)
    count = len(head.moved)
    turn = rotation(view.yaw, view.pitch, view.roll)
    placed = ((head.points - FACE_CENTRE) @ turn.T).astype(np.float32)
    wide = round(size * supersample)
    origins, directions = camera_rays(view, wide, view.field_of_view)
    facing = mesh.facing(head, placed, origins[0])
    triangles = head.triangles[facing].astype(np.int32)
    scene = rtcore_scene.EmbreeScene()
    mesh_construction.TriangleMesh(scene, placed, triangles)
    hits = cast(scene, origins, directions)
    kind = head.kind[facing][hits.triangle]
    attributes = interpolate(head.attributes, triangles[hits.triangle], hits.u, hits.v)
    posed = shading.Posed(face, turn, placed[:count], scene)
    picture = backgrounds.draw(wide, view).reshape(-1, 3)
    picture[hits.hit] = shading.shade(posed, attributes, hits, kind)
    normals = head.attributes[:count, 3:6]
    if face.look.glasses is not None:
        fit = Fit(Scalp(head.moved, normals, face), face.look.glasses)
        shading.add_lenses(picture, fit, posed, origins @ turn + FACE_CENTRE, directions @ turn)
    image, jpeg = camera.develop(picture.reshape(wide, wide, 3), size, view)

    pixels = project(placed[:count], view, size, view.field_of_view)
    inside = np.all((pixels >= 0) & (pixels < size), axis=1)
    shares = visibility.visible_shares(scene, placed[:count], normals @ turn.T, origins[0], inside)
    part = np.full(wide * wide, -1, np.int8)
    part[hits.hit] = kind
    nearest = ((np.arange(size) + 0.5) * wide / size).astype(int)
    return PhotoRender(
        image=image,
        jpeg=jpeg,
        vertices=placed[:count],
        rest_pose=head.rest_pose,
        moved=head.moved,
        pixels=pixels,
        part=part.reshape(wide, wide)[np.ix_(nearest, nearest)],
        shares=shares,
    )
