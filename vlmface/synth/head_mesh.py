"""The mesh of a head with its expression and its hair, not turned yet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vlmface.synth import appearance as paint
from vlmface.synth.appearance import Appearance, noise, smoothstep
from vlmface.synth.face_parameters import Face
from vlmface.synth.head import head_model, unit_weights

HAIR, CURTAIN = 6, 7  # kinds of triangles, in addition to the parts of the model


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
