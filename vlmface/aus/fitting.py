"""Fits the model on measured faces: rendered ones, whose AUs are known, and labelled photographs.

Photographs are optional. Each has labels of some AUs; those that it has no label for do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmface.aus import photograph_expert
from vlmface.aus.figures import auc, best_threshold, fit_slope, photograph_figures
from vlmface.aus.model import HEADS, Layers, Model, Space
from vlmface.aus.networks import (
    FitSettings,
    fit_space,
    inputs_of,
    join,
    photograph_targets,
    rendered_targets,
    take,
    train_networks,
)
from vlmface.aus.photograph_expert import PhotographExpert
from vlmface.aus.rendered_faces import UNITS, MeasuredFaces
from vlmface.synth.sharded_dataset import PER_IDENTITY

if TYPE_CHECKING:
    from vlmface.aus.photographs import Photographs

ID = "landmarks-2"  # of the model; raise whenever another one is shipped
GROUPS = 3  # of people; each threshold comes from networks that were fitted on the other groups
LEAST_AUC = 0.95  # on rendered people that were not fitted on; AUs below it are not told
LEAST_SIDE = 0.6  # correlation of the difference of both sides, from which on they are told
LEAST_SIDED = 20  # varied faces with an AU, from which on that is measured
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
        inputs, targets = self.inputs[rendered], take(self.targets, rendered)
        if len(photographs):
            inputs = np.concatenate([inputs, self.photo_inputs[photographs]])
            targets = join([targets, take(self.photo_targets, photographs)])
        return train_networks(inputs, targets, self.space.pictures, self.settings, count)

    def _all_photographs(self) -> np.ndarray:
        return np.arange(0 if self.photos is None else len(self.photos.subject))

    def _draft(self, networks: Sequence[Layers]) -> Model:
        count = len(UNITS)
        about = {
            "id": "draft",
            "units": list(UNITS),
            "told": list(UNITS),
            "sided": [],
            "checked": [],
        }
        expert = PhotographExpert(np.zeros(count), np.zeros(count), _closed_gate(self.space))
        return Model(about, self.space, networks, np.zeros(count), np.ones(count), expert)

    def model(self) -> Model:
        """The model, with thresholds from faces that its networks were not fitted on."""
        outputs, rows = self.held_out
        faces = take(self.faces, rows)
        plain = rows < self.plain
        count = len(UNITS)
        threshold, slope, reported = np.zeros(count), np.ones(count), []
        for k, au in enumerate(UNITS):
            logit, present = outputs["presence"][:, k], faces.grade[:, k] > 0
            threshold[k] = best_threshold(logit[plain], present[plain])
            slope[k] = fit_slope(logit[plain] - threshold[k], present[plain])
            if auc(logit[plain], present[plain]) >= LEAST_AUC:
                reported.append(au)
        everything = np.arange(len(self.faces.index))
        networks = self._networks(everything, self._all_photographs(), self.settings.networks)
        expert, checked = self._expert()
        sided = [au for au in self._sided() if au in reported]
        about = {
            "id": ID,
            "units": list(UNITS),
            "told": reported,
            "sided": sided,
            "checked": checked,
        }
        return Model(about, self.space, networks, threshold, slope, expert)

    def _sided(self) -> list[int]:
        """The AUs whose sides the landmarker's blendshapes tell apart on varied faces, which are
        the only ones that are drawn on one side."""
        varied = take(self.faces, np.arange(self.plain, len(self.faces.index)))
        left, right = photograph_expert.side_scores(varied.blendshapes[:, 0])
        sided = []
        for au in photograph_expert.PAIRS:
            k = UNITS.index(au)
            rows = varied.grade[:, k] > 0
            truth = varied.left[rows, k] - varied.right[rows, k]
            if rows.sum() >= LEAST_SIDED and _correlation(
                left[rows, k] - right[rows, k], truth
            ) >= (LEAST_SIDE):
                sided.append(au)
        return sided

    @cached_property
    def held_out(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """({head: outputs}, row numbers) of all rendered faces, from networks of other people."""
        person = self.faces.index // PER_IDENTITY
        person = np.where(np.arange(len(person)) < self.plain, person, person + 10**7)
        parts, rows = [], []
        for number in range(GROUPS):
            group = np.flatnonzero(person % GROUPS == number)
            others = np.flatnonzero(person % GROUPS != number)
            networks = self._networks(others, self._all_photographs(), 1)
            parts.append(self._draft(networks).heads_of(self.inputs[group, 0]))
            rows.append(group)
        return {head: np.concatenate([p[head] for p in parts]) for head in HEADS}, np.concatenate(
            rows
        )

    @cached_property
    def photograph_logits(self) -> np.ndarray:
        """(n, 2, units) of the photographs and their mirror images, each from networks without its
        person."""
        everything = np.arange(len(self.faces.index))
        logits = np.zeros((len(self.folds), 2, len(UNITS)))
        for number in range(FOLDS):
            networks = self._networks(everything, np.flatnonzero(self.folds != number), 1)
            held_out = np.flatnonzero(self.folds == number)
            draft = self._draft(networks)
            for view in (0, 1):
                heads = draft.heads_of(self.photo_inputs[held_out, view])
                logits[held_out, view] = heads["presence"]
        return logits

    @cached_property
    def folds(self) -> np.ndarray:
        """The number (n,) of the fold of each photograph; a person is in one fold."""
        assert self.photos is not None
        people = self.photos.subject.tolist()
        names = sorted(set(people))
        return np.array([names.index(name) % FOLDS for name in people])

    def _expert(self, photographs: np.ndarray | None = None) -> tuple[PhotographExpert, list[int]]:
        """The expert of some photographs (by default all), and the AUs that labels set."""
        if self.photos is None:
            return self._draft([]).expert, []
        rows = self._all_photographs() if photographs is None else photographs
        labels = self.photos.labels[rows]
        at_rest = (self.photos.completed_labels[rows] == 0).all(1)
        threshold, net_threshold = photograph_expert.fit_expert(
            photograph_expert.blendshape_scores(np.concatenate(self.photos.blendshapes[rows])),
            np.concatenate(self.photograph_logits[rows]),
            np.repeat(labels, 2, axis=0),
            np.repeat(at_rest, 2),
        )
        gate = photograph_expert.fit_gate(self.inputs[:, 0], self.photo_inputs[rows, 0])
        checked = [
            au
            for k, au in enumerate(UNITS)
            if min((labels[:, k] == 1).sum(), (labels[:, k] == 0).sum())
            >= photograph_expert.LEAST_LABELLED
        ]
        return PhotographExpert(threshold, net_threshold, gate), checked

    def cross_validate(self) -> dict[str, Any]:
        """The figures of photographs, each read by an expert that was fitted without its person:
        {AU: auc, balanced accuracy, positives, negatives}, the same of the mirror images, and the
        share of photographs that the gate takes for photographs."""
        assert self.photos is not None
        logits = self.photograph_logits
        strength, photographed = np.zeros(logits.shape), np.zeros(len(logits))
        for number in range(FOLDS):
            expert, _ = self._expert(np.flatnonzero(self.folds != number))
            rows = np.flatnonzero(self.folds == number)
            for view in (0, 1):
                blendshapes = self.photos.blendshapes[rows, view]
                scores = photograph_expert.blendshape_scores(blendshapes)
                strength[rows, view] = expert.strength(scores, logits[rows, view])
            photographed[rows] = expert.photographed(self.photo_inputs[rows, 0])
        figures: dict[str, Any] = photograph_figures(strength[:, 0], self.photos.labels)
        figures["mirrored"] = photograph_figures(strength[:, 1], self.photos.labels)
        at_rest = (self.photos.completed_labels == 0).all(1)
        present = (strength[at_rest, 0] >= 0).mean(0)
        figures["present_at_rest"] = {
            f"AU{au}": round(float(share), 3) for au, share in zip(UNITS, present, strict=True)
        }
        return figures | {"photographed": float((photographed > 0.5).mean())}


def _closed_gate(space: Space) -> np.ndarray:
    """A gate that takes every face for a rendered one."""
    return np.append(np.zeros(len(space.mean)), -30.0)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])
