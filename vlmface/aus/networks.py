"""The space of the inputs and the networks, trained with PyTorch on measured faces."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmface.aus import features
from vlmface.aus.model import HEADS, Layers, Space
from vlmface.aus.rendered_faces import UNITS, MeasuredFaces

if TYPE_CHECKING:
    import torch

SHAPES, PICTURES = 60, 80  # principal components of the points, and of the gradients
HIDDEN = (128, 96)


@dataclass(frozen=True)
class FitSettings:
    """How the networks are trained.

    Attributes:
        networks: that are averaged.
        epochs: over the rendered faces.
        batch_size: faces in a step.
        learning_rate, weight_decay: of AdamW.
        noise: standard deviation that is added to the standardised inputs.
        drop_picture: share of the faces that are trained on without what the picture shows.
        photograph_weight: of a photograph, next to a rendered face's 1.
        seed: of everything that is drawn.
    """

    networks: int = 3
    epochs: int = 30
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    noise: float = 0.2
    drop_picture: float = 0.2
    photograph_weight: float = 5.0
    seed: int = 0


@dataclass(frozen=True)
class Targets:
    """What is known of n faces.

    Attributes:
        present: (n, units) 0 or 1, nan where it is not known.
        grade, left, right: (n, units) intensities 0..5, nan where they are not known.
        weight: (n,) of a face.
    """

    present: np.ndarray
    grade: np.ndarray
    left: np.ndarray
    right: np.ndarray
    weight: np.ndarray

    def mirrored(self) -> Targets:
        """The same of the mirror images."""
        return Targets(self.present, self.grade, self.right, self.left, self.weight)


def join(parts: Sequence[Any]) -> Any:
    """Dataclasses of arrays, one after the other."""
    kind = type(parts[0])
    names = [field.name for field in fields(kind)]
    return kind(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})


def take(faces: Any, index: np.ndarray) -> Any:
    """The rows `index` of a dataclass of arrays."""
    kind = type(faces)
    return kind(**{field.name: getattr(faces, field.name)[index] for field in fields(kind)})


def rendered_targets(faces: MeasuredFaces) -> Targets:
    """The targets of rendered faces, of which everything is known."""
    present = (faces.grade > 0).astype(np.float32)
    return Targets(present, faces.grade, faces.left, faces.right, np.ones(len(present), np.float32))


def photograph_targets(labels: np.ndarray, weight: float) -> Targets:
    """The targets of photographs.

    Args:
        labels: (n, units) 1 present, 0 absent, nan not known.
        weight: of a photograph.
    """
    absent = np.where(labels == 0, 0.0, np.nan).astype(np.float32)
    weights = np.full(len(labels), weight, np.float32)
    return Targets(labels.astype(np.float32), absent, absent, absent, weights)


# --- the space of the inputs ----------------------------------------------------------------------


def mean_face(points: np.ndarray) -> np.ndarray:
    """The symmetric mean (478, 3) of meshes (n, 478, 3), by generalised Procrustes analysis."""
    reference = points[:500].mean(0)
    for _ in range(5):
        reference = reference - reference.mean(0)
        reference = features.align(points, reference)[0].mean(0)
    reference = reference - reference.mean(0)
    order = features.mirrored_order(reference)
    return ((reference + features.mirror_points(reference, order)) / 2).astype(np.float32)


def fit_space(faces: MeasuredFaces) -> Space:
    """The space of the inputs, from the pictures and their mirror images."""
    points, patches = (np.concatenate([a[:, 0], a[:, 1]]) for a in (faces.points, faces.patch))
    blendshapes = np.concatenate([faces.blendshapes[:, 0], faces.blendshapes[:, 1]])
    reference = mean_face(faces.points[:, 0])
    aligned = features.align(points, reference)[0].reshape(len(points), -1)
    shape_mean, shape_basis = _components(aligned, SHAPES)
    picture_mean, picture_basis = _components(features.gradients(patches), PICTURES)
    scalar_one = np.ones(1, np.float32)
    parts = (reference, shape_mean, shape_basis, picture_mean, picture_basis)
    raw, _ = Space(*parts, scalar_one, scalar_one).raw(points, blendshapes, patches)
    return Space(*parts, raw.mean(0), raw.std(0) + 1e-4)


def _components(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    mean = values.mean(0)
    centred = (values - mean).astype(np.float64)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return mean, vectors[:, ::-1][:, :count].astype(np.float32)


def inputs_of(
    space: Space, points: np.ndarray, blendshapes: np.ndarray, patch: np.ndarray
) -> np.ndarray:
    """The inputs (n, 2, inputs) of faces and of their mirror images."""
    views = [space.inputs(points[:, v], blendshapes[:, v], patch[:, v])[0] for v in (0, 1)]
    return np.stack(views, 1)


# --- training -------------------------------------------------------------------------------------


def train_networks(
    inputs: np.ndarray, targets: Targets, pictures: int, settings: FitSettings, networks: int
) -> list[Layers]:
    """Networks that differ by their seeds.

    Args:
        inputs: (n, 2, inputs) of the faces and of their mirror images.
        targets: of the same faces.
        pictures: how many of the inputs, the last ones, are of the picture.
        settings: of the training.
        networks: how many.
    """
    values = np.concatenate([inputs[:, 0], inputs[:, 1]])
    both = join([targets, targets.mirrored()])
    return [
        _train(values, both, pictures, settings, settings.seed * 1000 + number)
        for number in range(networks)
    ]


def _train(
    values: np.ndarray, targets: Targets, pictures: int, settings: FitSettings, seed: int
) -> Layers:
    import torch

    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = _network(values.shape[1])
    all_targets = np.concatenate([targets.present, targets.grade, targets.left, targets.right], 1)
    x, y = torch.from_numpy(values), torch.from_numpy(np.nan_to_num(all_targets))
    mask = torch.from_numpy(~np.isnan(all_targets) * targets.weight[:, None])
    optimizer = torch.optim.AdamW(
        network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    batches = len(x) // settings.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.epochs * batches, pct_start=0.1
    )
    for _ in range(settings.epochs):
        order = torch.randperm(len(x), generator=generator)
        for rows in order[: batches * settings.batch_size].reshape(batches, -1):
            batch = x[rows]
            batch = batch + settings.noise * torch.randn(batch.shape, generator=generator)
            without = torch.rand(len(rows), generator=generator) < settings.drop_picture
            batch[without, -pictures:] = 0
            loss = _loss(network(batch), y[rows], mask[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    linear = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
    return [(layer.weight.detach().numpy().T, layer.bias.detach().numpy()) for layer in linear]


def _network(inputs: int) -> torch.nn.Sequential:
    import torch

    sizes = (inputs, *HIDDEN, len(HEADS) * len(UNITS))
    layers: list[torch.nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(sizes)):
        layers += [torch.nn.Linear(before, after)]
        if number < len(HIDDEN):
            layers += [torch.nn.ReLU(), torch.nn.Dropout(0.1)]
    return torch.nn.Sequential(*layers)


def _loss(outputs: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of presence, and squared errors of the intensities, a quarter of it each."""
    import torch

    units = len(UNITS)
    presence = torch.nn.functional.binary_cross_entropy_with_logits(
        outputs[:, :units], targets[:, :units], reduction="none"
    )
    errors = 0.25 * (outputs[:, units:] - targets[:, units:]) ** 2
    return (torch.cat([presence, errors], 1) * mask).sum() / len(outputs) / units
