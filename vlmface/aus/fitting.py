"""Fits the model on measured faces: rendered ones, whose AUs are known, and labelled photographs.

Photographs are optional. Each has labels of some AUs; those that it has no label for do not count.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmface.aus import features
from vlmface.aus.model import HEADS, Inputs, Layers, Model, Space
from vlmface.aus.rendered_faces import SIDED, UNITS, MeasuredFaces
from vlmface.metrics.measures import intraclass_correlation
from vlmface.synth.sharded_dataset import PER_IDENTITY

if TYPE_CHECKING:
    import torch

    from vlmface.aus.photographs import Photographs

ID = "landmarks-1"  # of the model; raise whenever another one is shipped

SHAPES, PICTURES = 60, 80  # principal components of the points, and of the gradients
HIDDEN = (128, 96)
GROUPS = 3  # of people; each threshold comes from networks that were fitted on the other groups


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
    epochs: int = 40
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    noise: float = 0.15
    drop_picture: float = 0.15
    photograph_weight: float = 3.0
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
    one = np.ones(1, np.float32)
    parts = (reference, shape_mean, shape_basis, picture_mean, picture_basis)
    raw, _ = Space(*parts, one, one).raw(points, blendshapes, patches)
    return Space(*parts, raw.mean(0), raw.std(0) + 1e-4)


def _components(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    mean = values.mean(0)
    centred = (values - mean).astype(np.float64)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return mean, vectors[:, ::-1][:, :count].astype(np.float32)


def inputs_of(
    space: Space, points: np.ndarray, blendshapes: np.ndarray, patch: np.ndarray
) -> Inputs:
    """The inputs of faces that were measured in both views."""
    views = [space.inputs(points[:, v], blendshapes[:, v], patch[:, v])[0] for v in (0, 1)]
    return Inputs(*views)


# --- training -------------------------------------------------------------------------------------


def train_networks(
    inputs: Inputs, targets: Targets, pictures: int, settings: FitSettings, networks: int
) -> list[Layers]:
    """Networks that differ by their seeds.

    Args:
        inputs: of the faces.
        targets: of the same faces.
        pictures: how many of the inputs, the last ones, are of the picture.
        settings: of the training.
        networks: how many.
    """
    values = np.concatenate([inputs.picture, inputs.mirror])
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
    known = np.concatenate([targets.present, targets.grade, targets.left, targets.right], 1)
    x, y = torch.from_numpy(values), torch.from_numpy(np.nan_to_num(known))
    mask = torch.from_numpy(~np.isnan(known) * targets.weight[:, None])
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
            shown = x[rows]
            shown = shown + settings.noise * torch.randn(shown.shape, generator=generator)
            without = torch.rand(len(rows), generator=generator) < settings.drop_picture
            shown[without, -pictures:] = 0
            loss = _loss(network(shown), y[rows], mask[rows])
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


# --- thresholds and figures -----------------------------------------------------------------------


def best_threshold(scores: np.ndarray, present: np.ndarray) -> float:
    """The score from which on "present" gives the best F1; the middle of the best ones."""
    order = np.argsort(-scores)
    hits = np.cumsum(present[order])
    f1 = 2 * hits / (np.arange(1, len(scores) + 1) + present.sum())
    smooth = np.convolve(f1, np.ones(5) / 5, mode="same")
    best = int(smooth.argmax())
    following = order[min(best + 1, len(order) - 1)]
    return float((scores[order[best]] + scores[following]) / 2)


def fit_slope(logits: np.ndarray, present: np.ndarray) -> float:
    """The factor of the logits that makes them probabilities, by likelihood."""
    slopes = np.linspace(0.2, 2.0, 37)[:, None]
    z = slopes * logits
    losses = (np.logaddexp(0, z) - z * present).mean(1)
    return float(slopes[losses.argmin(), 0])


def auc(scores: np.ndarray, present: np.ndarray) -> float:
    """The area under the ROC curve, ties counted half; nan if one class is missing."""
    positive, negative = scores[present], np.sort(scores[~present])
    if not len(positive) or not len(negative):
        return float("nan")
    below = np.searchsorted(negative, positive, "left")
    not_above = np.searchsorted(negative, positive, "right")
    return float((below + not_above).mean() / 2 / len(negative))


def f1_score(predicted: np.ndarray, present: np.ndarray) -> float:
    """F1 of a binary decision; 0 if nothing is present or predicted."""
    hits = np.sum(predicted & present)
    return float(2 * hits / max(1, predicted.sum() + present.sum()))


def rendered_figures(model: Model, faces: MeasuredFaces) -> dict[int, dict[str, float]]:
    """{AU: auc, f1, icc, share} of all units of a model, on rendered faces."""
    told = Model(
        {**model.about, "told": model.all_units, "sided": []},
        model.space,
        model.networks,
        model.threshold,
        model.slope,
    )
    outputs, _, _ = told.outputs(faces.points, faces.blendshapes, faces.patch)
    estimates = told.estimate_arrays(faces.points, faces.blendshapes, faces.patch)
    figures = {}
    for k, au in enumerate(model.all_units):
        present, intensity = faces.grade[:, k] > 0, estimates.intensity[:, k]
        figures[au] = {
            "auc": auc(outputs["presence"][:, k], present),
            "f1": f1_score(intensity >= 1, present),
            "icc": intraclass_correlation(np.stack([intensity, faces.grade[:, k]], 1)),
            "share": float(present.mean()),
        }
    return figures


def means(figures: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """The means of `rendered_figures` over the units."""
    return {
        name: float(np.mean([row[name] for row in figures.values()]))
        for name in ("auc", "f1", "icc")
    }


# --- the whole fit --------------------------------------------------------------------------------

LEAST_AUC = 0.9  # on rendered people that were not fitted on; AUs below it are not told
LEAST_SIDE = 0.6  # correlation of the difference of both sides, from which on they are told
FOLDS = 5  # of the people of photographs


class Fit:
    """Measured faces, and what is fitted on them.

    Args:
        train: faces of `synth`.
        varied: further faces; None for none.
        photos: labelled photographs; None for none.
        settings: of the training.
    """

    def __init__(
        self,
        train: MeasuredFaces,
        varied: MeasuredFaces | None,
        photos: Photographs | None,
        settings: FitSettings,
    ) -> None:
        self.settings, self.photos = settings, photos
        self.faces = train if varied is None else join([train, varied])
        self.plain = len(train.index)  # faces of `synth`, which come first
        self.space = fit_space(self.faces)
        faces = self.faces
        self.inputs = inputs_of(self.space, faces.points, faces.blendshapes, faces.patch)
        self.targets = rendered_targets(faces)
        if photos is not None:
            self.photo_inputs = inputs_of(
                self.space, photos.points, photos.blendshapes, photos.patch
            )
            self.photo_targets = photograph_targets(
                photos.completed_labels, settings.photograph_weight
            )

    def _networks(self, rendered: np.ndarray, photographs: np.ndarray, count: int) -> list[Layers]:
        """Networks that are fitted on some of the faces and photographs, by their row numbers."""
        inputs, targets = take(self.inputs, rendered), take(self.targets, rendered)
        if len(photographs):
            inputs = join([inputs, take(self.photo_inputs, photographs)])
            targets = join([targets, take(self.photo_targets, photographs)])
        return train_networks(inputs, targets, self.space.pictures, self.settings, count)

    def _all_photographs(self) -> np.ndarray:
        return np.arange(0 if self.photos is None else len(self.photos.subject))

    def _draft(self, networks: Sequence[Layers]) -> Model:
        count = len(UNITS)
        about = {"id": "draft", "units": list(UNITS), "told": list(UNITS), "sided": []}
        return Model(about, self.space, networks, np.zeros(count), np.ones(count))

    def model(self) -> Model:
        """The model, with thresholds from faces that its networks were not fitted on."""
        outputs, rows = self._held_out_outputs()
        faces = take(self.faces, rows)
        plain = rows < self.plain
        count = len(UNITS)
        threshold, slope, told, sided = np.zeros(count), np.ones(count), [], []
        for k, au in enumerate(UNITS):
            logit, present = outputs["presence"][:, k], faces.grade[:, k] > 0
            threshold[k] = best_threshold(logit[plain], present[plain])
            slope[k] = fit_slope(logit[plain] - threshold[k], present[plain])
            if auc(logit[plain], present[plain]) >= LEAST_AUC:
                told.append(au)
                difference = outputs["left"][:, k] - outputs["right"][:, k]
                truth = faces.left[:, k] - faces.right[:, k]
                if (
                    au in SIDED
                    and np.corrcoef(difference[present], truth[present])[0, 1] >= LEAST_SIDE
                ):
                    sided.append(au)
        everything = np.arange(len(self.faces.index))
        networks = self._networks(everything, self._all_photographs(), self.settings.networks)
        about = {"id": ID, "units": list(UNITS), "told": told, "sided": sided}
        return Model(about, self.space, networks, threshold, slope)

    def _held_out_outputs(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """({head: outputs}, row numbers) of all faces, from networks of other people."""
        person = self.faces.index // PER_IDENTITY
        person = np.where(np.arange(len(person)) < self.plain, person, person + 10**7)
        group = person % GROUPS
        parts, rows = [], []
        for number in range(GROUPS):
            held_out = np.flatnonzero(group == number)
            networks = self._networks(np.flatnonzero(group != number), self._all_photographs(), 1)
            parts.append(self._draft(networks).heads_of(take(self.inputs, held_out)))
            rows.append(held_out)
        return {head: np.concatenate([p[head] for p in parts]) for head in HEADS}, np.concatenate(
            rows
        )

    def cross_validate(self) -> dict[str, dict[str, float]]:
        """{AU: auc, balanced accuracy at the thresholds of rendered faces, positives, negatives} of
        photographs, each from networks that were fitted without its person."""
        assert self.photos is not None
        names = sorted(set(self.photos.subject.tolist()))
        fold = np.array([names.index(name) % FOLDS for name in self.photos.subject.tolist()])
        scores = np.zeros((len(fold), len(UNITS)))
        outputs, rows = self._held_out_outputs()
        present = self.faces.grade[rows] > 0
        plain = rows < self.plain
        threshold = np.array(
            [
                best_threshold(outputs["presence"][plain, k], present[plain, k])
                for k in range(len(UNITS))
            ]
        )
        everything = np.arange(len(self.faces.index))
        for number in range(FOLDS):
            networks = self._networks(everything, np.flatnonzero(fold != number), 1)
            held_out = np.flatnonzero(fold == number)
            heads = self._draft(networks).heads_of(take(self.photo_inputs, held_out))
            scores[held_out] = heads["presence"] - threshold
        return photograph_figures(scores, self.photos.labels)


def photograph_figures(scores: np.ndarray, labels: np.ndarray) -> dict[str, dict[str, float]]:
    """The figures of `Fit.cross_validate`, of AUs with positives and negatives."""
    figures = {}
    for k, au in enumerate(UNITS):
        known = ~np.isnan(labels[:, k])
        present, score = labels[known, k] == 1, scores[known, k]
        if 1 < present.sum() < len(present) - 1:
            sensitivity, specificity = (score[present] >= 0).mean(), (score[~present] < 0).mean()
            figures[f"AU{au}"] = {
                "auc": round(auc(score, present), 4),
                "balanced_accuracy": round(float(sensitivity + specificity) / 2, 4),
                "positives": int(present.sum()),
                "negatives": int((~present).sum()),
            }
    return figures
