"""The head: a neutral mesh, what makes an identity, and how action units move it.

Coordinates are the mesh's own: decimetres, x to the left of the face, y up, z forward. Positions
on the *template* (the mesh before any target is applied) serve as texture coordinates everywhere,
because a point on the brow stays on the brow for every person and expression.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

ANCESTRIES = ("african", "asian", "caucasian")
LEFT_EYE, RIGHT_EYE, UPPER_TEETH, LOWER_TEETH, TONGUE = 1, 2, 3, 4, 5

# Action unit -> ARKit face units with their weights at full intensity. {} stands for Left and
# Right.
AU_UNITS: dict[int, dict[str, float]] = {
    1: {"browInnerUp": 1.45},
    2: {"browOuterUp{}": 1.4},
    4: {"browDown{}": 1.4},
    5: {"eyeWide{}": 1.7},
    6: {"cheekSquint{}": 1.25, "eyeSquint{}": 0.35},
    7: {"eyeSquint{}": 1.45, "eyeBlink{}": 0.10},
    9: {"noseSneer{}": 1.7, "browDown{}": 0.25},
    10: {"mouthUpperUp{}": 1.5, "noseSneer{}": 0.25},
    12: {"mouthSmile{}": 1.0},
    14: {"mouthDimple{}": 1.7, "mouthSmile{}": 0.12},
    15: {"mouthFrown{}": 1.6},
    16: {"mouthLowerDown{}": 1.7},
    17: {"mouthShrugLower": 1.5, "mouthShrugUpper": 0.35},
    18: {"mouthPucker": 1.2},
    20: {"mouthStretch{}": 1.7},
    22: {"mouthFunnel": 1.3},
    23: {"mouthRollLower": 0.75, "mouthRollUpper": 0.55, "mouthPucker": 0.45},
    24: {"mouthPress{}": 0.8, "mouthFrown{}": 0.35, "mouthRollUpper": 0.35, "mouthRollLower": 0.25},
    25: {"mouthLowerDown{}": 0.55, "mouthUpperUp{}": 0.4, "jawOpen": 0.1},
    26: {"jawOpen": 0.5},
    27: {"jawOpen": 1.05},
    28: {"mouthRollLower": 1.15, "mouthRollUpper": 1.0, "jawOpen": 0.08},
    34: {"cheekPuff": 1.35},
    43: {"eyeBlink{}": 1.0},
    46: {"eyeBlink{}": 1.0, "eyeSquint{}": 0.5, "cheekSquint{}": 0.5},
}


@dataclass(frozen=True)
class Identity:
    """What stays when the expression changes.

    `age` is in years, `female` and `weight` lie in 0..1, `ancestry` holds three shares that sum to
    1 (african, asian, caucasian) and `shapes` the weights of local shape targets.
    """

    age: float
    female: float
    weight: float
    ancestry: tuple[float, float, float]
    shapes: Mapping[str, float] = field(default_factory=dict)


class HeadModel:
    """The mesh of `head.npz` and its targets.

    `template` (n, 3) float32, `triangles` (m, 3) int64, `part` (n,) (0 skin, 1/2 eyes, 3/4 teeth,
    5 tongue), `masks` name -> (n,) in 0..1.
    """

    def __init__(self) -> None:
        with np.load(Path(__file__).with_name("head.npz")) as data:
            self.template = data["vertices"]
            self.triangles = data["triangles"].astype(np.int64)
            self.part = data["part"]
            self.masks = {
                name: data[name].astype(np.float32) / 255
                for name in ("lips", "eyelids", "inside_mouth", "ears", "sky")
            }
            names, starts = data["names"], data["starts"]
            indices, deltas, scales = (
                data["indices"].astype(np.int64),
                data["deltas"],
                data["scales"],
            )
        self._targets = {
            str(name): (indices[a:b], deltas[a:b] * scale)
            for name, a, b, scale in zip(names, starts[:-1], starts[1:], scales, strict=True)
        }
        # Teeth and tongue stand a little behind the lips, or they show between closed ones.
        inner = np.isin(self.part, (UPPER_TEETH, LOWER_TEETH, TONGUE))
        self.template[inner, 0] *= 0.88
        self.template[inner, 2] -= 0.06
        self.template[self.part == UPPER_TEETH, 1] -= 0.035
        middle = (np.abs(self.template[:, 0]) < 0.005) & (self.masks["lips"] > 0.9)
        upper = middle & (self.template[:, 1] > 6.607)
        lower = middle & (self.template[:, 1] <= 6.607)
        self._upper_lip = np.flatnonzero(upper)[self.template[upper, 1].argmin()]
        self._lower_lip = np.flatnonzero(lower)[self.template[lower, 1].argmax()]
        self.shape_names = sorted(
            name.removeprefix("shape:") for name in self._targets if name.startswith("shape:")
        )

    def _add(self, vertices: np.ndarray, target: str, weight: float) -> None:
        if weight and target in self._targets:
            indices, deltas = self._targets[target]
            vertices[indices] += np.float32(weight) * deltas

    def neutral(self, identity: Identity) -> np.ndarray:
        """Vertices (n, 3) of an identity at rest, eyes' midpoint at the template's, at its size."""
        age = identity.age
        stages = {
            "child": np.clip((25 - age) / 15, 0, 1),
            "young": np.clip((age - 10) / 15, 0, 1) * np.clip((75 - age) / 45, 0, 1)
            if age > 30
            else np.clip((age - 10) / 15, 0, 1),
            "old": np.clip((age - 30) / 45, 0, 1),
        }
        vertices = self.template.copy()
        for gender, share in (("female", identity.female), ("male", 1 - identity.female)):
            for stage, amount in stages.items():
                for ancestry, part in zip(ANCESTRIES, identity.ancestry, strict=True):
                    self._add(vertices, f"macro:{ancestry}-{gender}-{stage}", share * amount * part)
                extreme = "maxweight" if identity.weight > 0.5 else "minweight"
                self._add(
                    vertices,
                    f"macro:universal-{gender}-{stage}-averagemuscle-{extreme}",
                    share * amount * abs(2 * identity.weight - 1),
                )
        for name, weight in identity.shapes.items():
            self._add(vertices, f"shape:{name}", weight)
        return self.close_lips(self._normalise(vertices))

    def close_lips(self, vertices: np.ndarray) -> np.ndarray:
        """`vertices` with the lips brought together, in place: shape targets may part them, but a
        face at rest has its mouth closed."""
        gap = vertices[self._upper_lip, 1] - vertices[self._lower_lip, 1]
        self._add(vertices, "unit:jawOpen", -max(0.0, float(gap) + 0.006) / 0.34)
        return vertices

    def _normalise(self, vertices: np.ndarray) -> np.ndarray:
        # The macro targets move a whole body: bring the eyes home and give all heads one face
        # height.
        eyes, chin = self.part == LEFT_EYE, self.template[:, 2] > 1.2
        chin = (
            chin
            & (self.template[:, 1] < 6.33)
            & (np.abs(self.template[:, 0]) < 0.12)
            & (self.part == 0)
        )

        def middle(v: np.ndarray) -> np.ndarray:
            return (v[eyes].mean(0) + v[self.part == RIGHT_EYE].mean(0)) / 2

        height = middle(vertices)[1] - vertices[chin, 1].mean()
        target_height = middle(self.template)[1] - self.template[chin, 1].mean()
        return (vertices - middle(vertices)) * np.float32(target_height / height) + middle(
            self.template
        )

    def move(self, vertices: np.ndarray, weights: Mapping[str, float]) -> np.ndarray:
        """Return `vertices` displaced by ARKit face units, name -> weight (0 rest, 1 full)."""
        moved = vertices.copy()
        for name, weight in weights.items():
            self._add(moved, f"unit:{name}", weight)
        return moved

    def eye_centre(self, vertices: np.ndarray, eye: int) -> np.ndarray:
        """Centre (3,) of an eyeball: LEFT_EYE or RIGHT_EYE."""
        return vertices[self.part == eye].mean(0)


def unit_weights(
    left: Mapping[int, float], right: Mapping[int, float] | None = None
) -> dict[str, float]:
    """Turn AU strengths (0..1 a side) into face-unit weights by AU_UNITS."""
    right = left if right is None else right
    weights: dict[str, float] = {}
    for au in sorted(set(left) | set(right)):
        for unit, gain in AU_UNITS[au].items():
            if "{}" in unit:
                sides = {
                    unit.format("Left"): left.get(au, 0.0),
                    unit.format("Right"): right.get(au, 0.0),
                }
            else:
                sides = {unit: (left.get(au, 0.0) + right.get(au, 0.0)) / 2}
            for name, strength in sides.items():
                weights[name] = weights.get(name, 0.0) + gain * strength
    # Corrugator and medial frontalis together slant the brow: its inner end stays up.
    for side, strengths in (("Left", left), ("Right", right)):
        weights[f"browDown{side}"] = weights.get(f"browDown{side}", 0.0) * (
            1 - 0.55 * strengths.get(1, 0.0)
        )
    # The jaw may not open twice, nor a lid close past the cheek.
    for name, most in (("jawOpen", 1.15), ("eyeBlinkLeft", 1.0), ("eyeBlinkRight", 1.0)):
        if name in weights:
            weights[name] = min(weights[name], most)
    return weights


@lru_cache(maxsize=1)
def head_model() -> HeadModel:
    """The head model, loaded once a process."""
    return HeadModel()
