"""The mesh of a head of version 2: the model, its hair, beard and glasses."""

from __future__ import annotations

import threading

import numpy as np

from vlmface.synth.appearance import smoothstep
from vlmface.synth.head import head_model, unit_weights
from vlmface.synth.head_mesh import HAIR, HeadMesh, vertex_normals
from vlmface.synth.v2 import beard, glasses, hair
from vlmface.synth.v2.layers import Layer, Scalp
from vlmface.synth.v2.parameters import PhotoFace

_last = threading.local()  # the face at rest that was made last: faces of a person are in a row


def rest_pose(face: PhotoFace) -> np.ndarray:
    """Vertices (n, 3) of the person at rest; not to be changed."""
    key = (face.identity, face.look.rest)
    if getattr(_last, "key", None) != key:
        model = head_model()
        vertices = model.move(model.neutral(face.identity), face.look.rest)
        _last.vertices = _shrink_mouth(model.close_lips(vertices))
        _last.key = key
    return _last.vertices


def _shrink_mouth(vertices: np.ndarray) -> np.ndarray:
    """`vertices` with the mouth smaller inside, in place: shapes of the face move the skin alone,
    and the back of the mouth must not show through the cheeks."""
    model = head_model()
    deep = model.masks["inside_mouth"] * (1 - model.masks["lips"])
    deep = deep * smoothstep(1.50, 1.25, model.template[:, 2])
    middle = vertices[model.masks["lips"] > 0.5].mean(0) * np.array([1, 1, 0], np.float32)
    shrunk = (vertices - middle) * np.array([0.65, 0.6, 1], np.float32) + middle
    shrunk[:, 2] -= 0.06
    vertices += deep[:, None] * (shrunk - vertices)
    return vertices


def facing(mesh: HeadMesh, placed: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """The numbers of the triangles that the `camera` (3,) may see: of closed surfaces those whose
    front looks to it. What they hide stays hidden, and they cast the same shadows, since light
    comes from the camera's side; half of the triangles take half of the time."""
    corners = placed[mesh.triangles]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    front = ((camera - corners[:, 0]) * across).sum(1) > 0
    return np.flatnonzero(front | (mesh.kind > HAIR))


def head_mesh(face: PhotoFace) -> HeadMesh:
    """The mesh of a face, not turned yet; `HeadMesh.kind` as in `layers`."""
    model, look = head_model(), face.look
    rest = rest_pose(face)
    units = unit_weights(face.left, face.right)
    _, gaze_pitch = face.view.gaze
    for side in ("Left", "Right"):
        units[f"eyeLookDown{side}"] = max(0.0, -gaze_pitch / 25)
        units[f"eyeLookUp{side}"] = max(0.0, gaze_pitch / 25)
        # The lids of one person close as far as those of another, whatever they do at rest.
        shut = f"eyeBlink{side}"
        if shut in units:
            units[shut] = min(units[shut], 1.0 - look.rest.get(shut, 0.0))
    moved = model.move(rest, units)
    normals = vertex_normals(moved)
    scalp = Scalp(moved, normals, face)
    head = Layer(
        moved,
        np.concatenate(
            [
                model.template,
                normals,
                np.stack([model.masks[name] for name in ("lips", "inside_mouth", "sky")], 1),
            ],
            1,
        ),
        model.triangles,
        model.part[model.triangles[:, 0]],
    )
    layers = [head, *hair.layers(scalp), *beard.layers(scalp), *glasses.layers(scalp)]
    starts = np.cumsum([0] + [len(layer.points) for layer in layers])
    return HeadMesh(
        rest,
        moved,
        np.concatenate([layer.points for layer in layers]).astype(np.float32),
        np.concatenate([layer.attributes for layer in layers]).astype(np.float32),
        np.concatenate([layer.triangles + k for layer, k in zip(layers, starts, strict=False)]),
        np.concatenate([layer.kind for layer in layers]).astype(np.int8),
    )
