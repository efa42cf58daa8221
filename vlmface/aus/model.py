"""The model: from measurements to intensities, in NumPy. `fitting` makes its file."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmface.aus import features, photograph_expert
from vlmface.aus.photograph_expert import PhotographExpert
from vlmface.errors import UserError

if TYPE_CHECKING:
    from vlmface.aus.measurement import Measurement

FILE = Path(__file__).with_name("landmarks.npz")
SHA256 = "f6b4682466b3b927c1d0cc0792a5c1ee26dcdea8d85e1384b218fa430e277e2c"
MAX_BYTES = 4 * 2**20
UNCHECKED = 0.6  # factor of the logits of AUs that were not checked on photographs
CLIP = 5.0  # standard deviations that a feature may lie from its mean
HEADS = ("presence", "grade", "left", "right")  # outputs of the networks, each of all units


@dataclass(frozen=True)
class Estimates:
    """What the model says about n faces.

    Attributes:
        intensity: float64 (n, units) 0..5; from 1 on an AU is present.
        left, right: float64 (n, sided units) 0..5.
        probability: float64 (n, units) 0..1, that an AU is present.
        yaw, pitch: (n,) in degrees.
        photographed: (n,) 0..1, how likely the face is photographed and not rendered.
        finite: bool (n,), False where the measurement was not numbers.
    """

    intensity: np.ndarray
    left: np.ndarray
    right: np.ndarray
    probability: np.ndarray
    yaw: np.ndarray
    pitch: np.ndarray
    photographed: np.ndarray
    finite: np.ndarray


@dataclass(frozen=True)
class Space:
    """How a measurement becomes the input of the networks.

    Attributes:
        reference: (478, 3), the mean face from the front.
        shape_mean, shape_basis: (1434,) and (1434, k) of the aligned points.
        picture_mean, picture_basis: (cells,) and (cells, k) of `features.gradients`.
        mean, scale: of all inputs.
    """

    reference: np.ndarray
    shape_mean: np.ndarray
    shape_basis: np.ndarray
    picture_mean: np.ndarray
    picture_basis: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    @property
    def pictures(self) -> int:
        """How many inputs are of the picture; they are the last ones."""
        return self.picture_basis.shape[1]

    def raw(
        self, points: np.ndarray, blendshapes: np.ndarray, patches: np.ndarray
    ) -> tuple[np.ndarray, features.Pose]:
        """The inputs (n, inputs) before they are standardised, and the poses."""
        aligned, pose = features.align(points, self.reference)
        shape = _by_row(aligned.reshape(len(points), -1) - self.shape_mean, self.shape_basis)
        turned = np.stack([pose.yaw, pose.pitch, pose.roll], 1) / 30
        gradients = features.gradients(patches) - self.picture_mean
        picture = _by_row(gradients, self.picture_basis)
        parts = (shape, features.log_blendshapes(blendshapes[:, 1:]), turned, picture)
        return np.concatenate(parts, 1), pose

    def inputs(
        self, points: np.ndarray, blendshapes: np.ndarray, patches: np.ndarray
    ) -> tuple[np.ndarray, features.Pose]:
        """The inputs of the networks, float32 (n, inputs), and the poses."""
        raw, pose = self.raw(points, blendshapes, patches)
        return np.clip((raw - self.mean) / self.scale, -CLIP, CLIP).astype(np.float32), pose


Layers = list[tuple[np.ndarray, np.ndarray]]  # weights (in, out) and biases (out,) of each layer


@dataclass(frozen=True)
class Model:
    """The parts of the file.

    Attributes:
        about: id; units, all AUs of the networks; told, those that the model can tell; sided, those
            whose sides it can tell; checked, those that were compared with labels of photographs.
        space: of the inputs.
        networks: their layers.
        threshold: (units,) of the presence's logit, from which on an AU is present in a rendered
            face.
        slope: (units,) of the logit that makes it a probability.
        expert: of photographs.
        sha256: of the file.
    """

    about: Mapping[str, Any]
    space: Space
    networks: Sequence[Layers]
    threshold: np.ndarray
    slope: np.ndarray
    expert: PhotographExpert
    sha256: str = ""

    @property
    def id(self) -> str:
        """Of the model, such as landmarks-2."""
        return str(self.about["id"])

    @property
    def all_units(self) -> list[int]:
        """The AUs that the networks have outputs for."""
        return list(self.about["units"])

    @property
    def units(self) -> list[int]:
        """The AUs that the model can tell."""
        return list(self.about["told"])

    @property
    def sided(self) -> list[int]:
        """The AUs whose sides the model can tell apart."""
        return list(self.about["sided"])

    @classmethod
    def load(cls, path: Path = FILE, sha256: str | None = SHA256) -> Model:
        """Read a model's file.

        Args:
            path: of the file.
            sha256: that the file must have; None: any.

        Raises:
            UserError: the file is missing or has another hash.
        """
        try:
            content = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
        except OSError as error:
            raise UserError(f"the AU model {path} cannot be read: {error.strerror}") from error
        digest = hashlib.sha256(content).hexdigest()
        if sha256 is not None and digest != sha256:
            raise UserError(
                f"the AU model {path} was changed: its sha256 is {digest}, expected {sha256}; "
                "install vlmface again"
            )
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as data:
                arrays = {name: data[name] for name in data.files}
            return _from_arrays(arrays, digest)
        except (ValueError, KeyError, OSError) as error:
            raise UserError(f"{path} is not an AU model ({error})") from error

    def save(self, path: Path) -> str:
        """Write the file, with weights of one byte; returns its sha256."""
        from vlmface.utils.files import atomic_write

        arrays: dict[str, np.ndarray] = {
            "about": np.frombuffer(json.dumps(self.about, sort_keys=True).encode(), np.uint8),
            "reference": self.space.reference.astype(np.float32),
            "shape_mean": self.space.shape_mean.astype(np.float32),
            "picture_mean": self.space.picture_mean.astype(np.float16),
            "mean": self.space.mean.astype(np.float32),
            "scale": self.space.scale.astype(np.float32),
            "threshold": self.threshold.astype(np.float32),
            "slope": self.slope.astype(np.float32),
            "photograph_threshold": self.expert.threshold.astype(np.float32),
            "photograph_net_threshold": self.expert.net_threshold.astype(np.float32),
            "gate": self.expert.gate.astype(np.float32),
        }
        arrays |= _quantized("shape_basis", self.space.shape_basis)
        arrays |= _quantized("picture_basis", self.space.picture_basis)
        for i, layers in enumerate(self.networks):
            for j, (weights, biases) in enumerate(layers):
                arrays |= _quantized(f"net{i}_layer{j}", weights)
                arrays[f"net{i}_bias{j}"] = biases.astype(np.float32)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        atomic_write(path, buffer.getvalue())
        return hashlib.sha256(buffer.getvalue()).hexdigest()

    # --- estimates --------------------------------------------------------------------------------

    def estimate(self, faces: Sequence[Measurement]) -> Estimates:
        """The AUs of measured faces."""
        return self.estimate_arrays(
            np.stack([face.points for face in faces]),
            np.stack([face.blendshapes for face in faces]),
            np.stack([face.patch for face in faces]),
        )

    def estimate_arrays(
        self, points: np.ndarray, blendshapes: np.ndarray, patches: np.ndarray
    ) -> Estimates:
        """`estimate` from arrays: (n, 478, 3), (n, 52) and uint8 (n, side, side)."""
        finite = np.isfinite(points).all((1, 2)) & np.isfinite(blendshapes).all(1)
        points = np.where(finite[:, None, None], points, self.space.reference)
        blendshapes = np.where(finite[:, None], blendshapes, 0)
        inputs, pose = self.space.inputs(points, blendshapes, patches)
        heads = self.heads_of(inputs)
        photographed = self.expert.photographed(inputs)[:, None]
        reading = _mixed(
            self._as_rendered(heads), self._as_photographed(heads, blendshapes), photographed
        )
        columns = [self.all_units.index(au) for au in self.units]
        sided = [self.all_units.index(au) for au in self.sided]
        probability = reading.probability
        present = probability >= 0.5
        intensity = np.where(
            present, np.maximum(reading.intensity, 1.0), np.minimum(reading.intensity, 0.99)
        )
        intensity = np.clip(intensity, 0, 5)  # a mean of fives may be a little more
        left, right = self._sides(heads, blendshapes, intensity)
        return Estimates(
            intensity[:, columns],
            left[:, sided],
            right[:, sided],
            probability[:, columns],
            pose.yaw,
            pose.pitch,
            photographed[:, 0],
            finite,
        )

    def _as_rendered(self, heads: Mapping[str, np.ndarray]) -> _Reading:
        logit = self.slope * (heads["presence"] - self.threshold)
        grade = np.clip(heads["grade"], 0, 5)
        grade = np.where(logit >= 0, np.maximum(grade, 1), np.minimum(grade, 0.99))
        return _Reading(_sigmoid(logit), grade)

    def _as_photographed(
        self, heads: Mapping[str, np.ndarray], blendshapes: np.ndarray
    ) -> _Reading:
        scores = photograph_expert.blendshape_scores(blendshapes)
        strength = self.expert.strength(scores, heads["presence"])
        # AUs that were not compared with labels of photographs are trusted less.
        checked = np.isin(self.all_units, self.about["checked"])
        probability = _sigmoid(strength * np.where(checked, 1.0, UNCHECKED))
        return _Reading(probability, np.clip(1 + strength, 0, 5))

    def _sides(
        self, heads: Mapping[str, np.ndarray], blendshapes: np.ndarray, intensity: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The intensities of both sides, (n, all units) each, from pairs of blendshapes where there
        are any. The stronger side is as strong as the face."""
        paired = np.isin(self.all_units, list(photograph_expert.PAIRS))
        left, right = (
            np.where(paired, np.clip(1 + self.expert.blendshape_strength(score), 0, 5), heads[name])
            for score, name in zip(
                photograph_expert.side_scores(blendshapes), ("left", "right"), strict=True
            )
        )
        stronger = np.maximum(left, right)
        has_stronger = stronger > 0
        shares = (
            np.where(has_stronger, side / np.where(has_stronger, stronger, 1), 1)
            for side in (left, right)
        )
        left, right = (np.clip(share, 0, 1) * intensity for share in shares)
        return left, right

    def heads_of(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """{head: (n, all units)}, the mean outputs of the networks for inputs (n, inputs)."""
        outputs = np.split(self._forward(inputs), len(HEADS), axis=1)
        return dict(zip(HEADS, outputs, strict=True))

    def _forward(self, inputs: np.ndarray) -> np.ndarray:
        total = np.zeros((len(inputs), len(HEADS) * len(self.all_units)))
        for layers in self.networks:
            hidden = inputs
            for number, (weights, biases) in enumerate(layers):
                hidden = _by_row(hidden, weights) + biases
                if number < len(layers) - 1:
                    hidden = np.maximum(hidden, 0)
            total += hidden
        return total / len(self.networks)


@dataclass(frozen=True)
class _Reading:
    """Of n faces, each (n, all units): probability 0..1 and intensity 0..5."""

    probability: np.ndarray
    intensity: np.ndarray


def _mixed(rendered: _Reading, photographed: _Reading, share: np.ndarray) -> _Reading:
    """The mean of two readings; `share` (n, 1) of the second."""
    return _Reading(
        (1 - share) * rendered.probability + share * photographed.probability,
        (1 - share) * rendered.intensity + share * photographed.intensity,
    )


def _by_row(values: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`values @ matrix`, in which a face's numbers do not depend on how many other faces there are:
    libraries sum a matrix product in an order that depends on its size."""
    return np.stack([row @ matrix for row in values])


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logit, -30, 30)))


def _quantized(name: str, matrix: np.ndarray) -> dict[str, np.ndarray]:
    """A matrix (in, out) in bytes, with a scale for each output."""
    scale = np.maximum(np.abs(matrix).max(0), 1e-12) / 127
    return {
        name: np.round(matrix / scale).astype(np.int8),
        f"{name}_scale": scale.astype(np.float32),
    }


def _restored(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return arrays[name].astype(np.float32) * arrays[f"{name}_scale"]


def _from_arrays(arrays: Mapping[str, np.ndarray], sha256: str) -> Model:
    about = json.loads(arrays["about"].tobytes())
    space = Space(
        reference=arrays["reference"],
        shape_mean=arrays["shape_mean"],
        shape_basis=_restored(arrays, "shape_basis"),
        picture_mean=arrays["picture_mean"].astype(np.float32),
        picture_basis=_restored(arrays, "picture_basis"),
        mean=arrays["mean"],
        scale=arrays["scale"],
    )
    networks: list[Layers] = []
    while f"net{len(networks)}_layer0" in arrays:
        i = len(networks)
        layers: Layers = []
        while f"net{i}_layer{len(layers)}" in arrays:
            j = len(layers)
            layers.append((_restored(arrays, f"net{i}_layer{j}"), arrays[f"net{i}_bias{j}"]))
        networks.append(layers)
    if not networks:
        raise ValueError("it has no networks")
    expert = PhotographExpert(
        arrays["photograph_threshold"], arrays["photograph_net_threshold"], arrays["gate"]
    )
    return Model(about, space, networks, arrays["threshold"], arrays["slope"], expert, sha256)
