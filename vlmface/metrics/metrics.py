"""What is measured, from prediction rows to the `metrics.json` shape. Pure numpy.

One rule holds for every number: a row without a valid answer is wrong. It stays in every
denominator, as a miss of its true class, and it is a prediction of no class.

    accuracy   share of rows answered right (called WAR, weighted average recall, in FER papers)
    uar        unweighted average recall: mean recall of the classes that occur in the truth
               (Schuller et al., Interspeech 2009)
    f1_macro   labels: mean F1 of the classes that occur in the truth;
               AUs: mean binary F1 of the AUs that are present at least once in the truth
    f1_micro   F1 of the hits, false alarms and misses pooled over all AUs of the set
    labels     of a space with several labels a face: see `multilabel`
    affect     valence and arousal, where rows have them: see `affect`
    ece        expected calibration error, 15 equal-width bins (Guo et al., ICML 2017)
    ci95       95 % intervals, over people if every row names its subject (`clusters` {"unit",
               "n"} then holds their number): of a share, such as accuracy, the exact binomial one
               at the effective number of rows (`shares`), of other scores a bootstrap
    no_ci95    why scores have no interval, such as too few people
    groups     accuracy of the labels among the faces of one gender, age group, race, with `gaps`,
               `equalised_odds` and `intersections`: see `groups`
    consistency  share of the answered rows whose own AUs support their own label (facs.supports)

A row is a line of `predictions.jsonl`: `id`, `truth` {`emotion`, `aus` {"4": intensity} or null,
`annotated_aus`, `attributes`}, `label`, `status`, `aus`, `probabilities` {label: p} or null, and
`subject`, a name for the person in the picture, null or left out if it is not known; of several
labels a face also `labels` and `truth.labels`. In
`truth.aus` an intensity of 0 means absent and null means present but not graded; an AU that is
not in `annotated_aus` says nothing and is not scored (null there: the whole AU set is annotated).
The AUs that a text names are scored whether or not the text also gives a valid label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmface import facs
from vlmface.answers import STATUSES
from vlmface.errors import UserError
from vlmface.label_spaces import EMOTIONS, LabelSpace
from vlmface.metrics import affect, groups, measures, multilabel
from vlmface.metrics.measures import binary_scores, mean_where, ratio
from vlmface.metrics.measures import multilabel_scores as au_scores
from vlmface.metrics.shares import paired_share, share_interval, too_few
from vlmface.metrics.statistics import (
    Array,
    Score,
    Shift,
    align,
    bootstrap,
    paired_bootstrap,
    reweighted,
)
from vlmface.schema import AFFECT

Row = Mapping[str, Any]

EQUAL = "no interval: all resamples give the same value"
BLOCKS = ("emotion", "attributes", "labels", "au", "affect")  # of metrics.json, those with scores


@dataclass(frozen=True)
class Counted:
    """One kind of truth that rows have.

    Attributes:
        path: its place in metrics.json.
        counts: (rows, D1, D2) what each row adds to the sums.
        score: the scores of such sums.
        shares: the scores that are shares of rows, {name: counts -> (hits, totals) of each row}.
        shift: see `statistics.Shift`.
    """

    path: tuple[str, ...]
    counts: Array
    score: Score
    shares: Mapping[str, Callable[[Array], tuple[Array, Array]]] = field(default_factory=dict)
    shift: Shift | None = None

    def intervals(self, subjects: Sequence[str] | None) -> dict[str, Any]:
        """{"ci95": {score: [low, high]}} of the rows or, where they are named, the `subjects`, with
        "clusters" and, where scores have none, the reason as "no_ci95"."""
        units = _units(self.counts, subjects)
        reason = too_few(units, subjects is not None)
        found: dict[str, list[float]] = {}
        if reason is None:
            found = bootstrap(self.counts, self.score, clusters=subjects, shift=self.shift)
        for name, parts in self.shares.items():
            interval = share_interval(*parts(self.counts), clusters=subjects)
            if interval is not None:
                found[name] = interval
        estimated = _finite(self.score(self.counts.sum(0))).keys() <= found.keys()
        reason = reason or (None if estimated else EQUAL)
        return {
            "ci95": found,
            **_clusters(subjects),
            **({"no_ci95": reason} if reason else {}),
        }

    def changes(self, after: Array, subjects: Sequence[str] | None) -> dict[str, dict[str, Any]]:
        """{score: {"difference", "ci95", and "p" of a share}} of another run's counts, `after`, on
        the same rows. Of too few people "ci95" and "p" are missing, "no_ci95" says why."""
        reason = too_few(_units(self.counts, subjects), subjects is not None)
        found = paired_bootstrap(
            self.counts, after, self.score, clusters=subjects, shift=self.shift
        )
        for name, parts in self.shares.items():
            (first, totals), (second, _) = parts(self.counts), parts(after)
            if name in found:
                found[name] = paired_share(first, second, totals, clusters=subjects)
        if reason is not None:
            found = {
                name: {k: v for k, v in change.items() if k == "difference" or name in self.shares}
                for name, change in found.items()
            }
        return {
            name: change
            | _clusters(subjects)
            | ({} if "ci95" in change else {"no_ci95": reason or EQUAL})
            for name, change in found.items()
        }


def summarise(
    rows: Sequence[Row],
    space: LabelSpace,
    au_set: Sequence[int],
    *,
    benchmark: str,
    model: str,
    prompt: Mapping[str, str],
    mode: str,
    wall_s: float,
    peak_rss_gib: float,
    ci: bool = True,
) -> dict[str, Any]:
    """The content of `metrics.json` for one evaluation; blocks that do not apply are left out.

    `au_set` lists the AUs to score, empty if the model was not asked for any. `prompt` is its
    {"id", "sha"}, empty for a model without one. `ci` adds 95 % bootstrap intervals. Raises
    UserError on no rows, on a truth outside `space`, and on an unknown status, naming the row.
    """
    if not rows:
        raise UserError("there are no predictions to score: check the split and n")
    blocks: dict[str, Any] = {}
    for kind in _scored(rows, space, au_set):
        total = kind.counts.sum(0)
        block = _finite(kind.score(total))
        if ci:
            found = kind.intervals(_subjects(rows))
            found["ci95"] = {k: v for k, v in found["ci95"].items() if k in block}
            block |= found
        if kind.score is au_scores:
            details = _per_au(total, au_set)
        elif kind.score is affect.scores:
            details = {"n": int(total[0, 0])}
        elif kind.score is multilabel.scores:
            table = _table(multilabel.per_label(total), space.labels)
            details = {"n": int(total[-1, -1]), "per_label": table}
        else:
            details = _per_class(total, space) | _by_group(rows, space, kind.counts, ci)
        _place(blocks, kind.path, block | details)
    if space.several and (ranked := _ranked(rows, space, ci)):
        blocks["labels"] = _with_ranking(blocks.get("labels", {}), ranked)
    if au_set and set(space.labels) <= set(EMOTIONS):
        answered = [row for row in rows if answer(row) is not None]
        if answered:
            agree = [facs.supports(row["aus"] or (), row["label"]) for row in answered]
            blocks["consistency"] = float(np.mean(agree))
    if calibration := _calibration(rows, space):
        blocks["calibration"] = calibration
    return {
        "schema": 1,
        "benchmark": benchmark,
        "model": model,
        **({"prompt": {"id": prompt["id"], "sha": prompt["sha"]}} if prompt else {}),
        "label_space": space.id,
        "n": len(rows),
        "mode": mode,
        **blocks,
        "parse": _parse_shares(rows),
        "wall_s": wall_s,
        "peak_rss_gib": peak_rss_gib,
    }


def merge(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One `metrics.json` of several prompts' summaries of the same images: a lone one as it is;
    else the blocks side by side, each with its calibration, `prompts` instead of `prompt`, parse
    shares over all answers, `wall_s` in all."""
    first, *others = summaries
    if not others:
        return first
    merged = {k: first[k] for k in ("schema", "benchmark", "model")}
    merged["prompts"] = [s["prompt"] | {"label_space": s["label_space"]} for s in summaries]
    merged |= {"n": first["n"], "mode": first["mode"]}
    for summary in summaries:
        blocks = {k: summary[k] for k in BLOCKS if k in summary}
        for block in [summary.get("emotion"), *summary.get("attributes", {}).values()]:
            if block and "calibration" in summary:
                block["calibration"] = summary["calibration"]
        for name, block in blocks.items():
            merged[name] = merged.get(name, {}) | block
    shares = [summary["parse"] for summary in summaries]
    merged["parse"] = {k: sum(share[k] for share in shares) / len(shares) for k in STATUSES}
    merged["wall_s"] = round(sum(summary["wall_s"] for summary in summaries), 2)
    merged["peak_rss_gib"] = max(summary["peak_rss_gib"] for summary in summaries)
    return merged


def compare(
    before: Sequence[Row], after: Sequence[Row], space: LabelSpace, au_set: Sequence[int]
) -> dict[str, Any]:
    """after - before of every score on the same images, with 95 % paired intervals: {"n",
    "emotion": {"accuracy": {"difference", "ci95", "p"}, "uar": {"difference", "ci95"}, ...}, "au":
    {...}}. See `Counted.changes`.

    Rows are matched by id; their subjects may be named by either run. Raises UserError if the two
    runs did not answer the same images, or what `summarise` raises.
    """
    after = align(before, after)
    subjects = _subjects(before) or _subjects(after)
    result: dict[str, Any] = {"n": len(before)}
    known = {kind.path: kind.counts for kind in _scored(after, space, au_set)}
    for kind in _scored(before, space, au_set):
        if kind.path in known:  # valence, say, may be known of one of the two only
            _place(result, kind.path, kind.changes(known[kind.path], subjects))
    if space.several and (change := _ranked_change(before, after, space)):
        result.setdefault("labels", {})["map"] = change | _clusters(subjects)
    return result


def point_scores(
    rows: Sequence[Row], space: LabelSpace, au_set: Sequence[int]
) -> dict[tuple[str, ...], dict[str, float]]:
    """{place in metrics.json: scores, without intervals} of what the rows hold."""
    return {
        kind.path: _finite(kind.score(kind.counts.sum(0))) for kind in _scored(rows, space, au_set)
    }


def label_block(rows: Sequence[Row], space: LabelSpace) -> dict[str, Any]:
    """{"n", "accuracy", "uar", "f1_macro", "ci95", and "calibration" where there are
    probabilities} of the labels alone."""
    kind = _labels((), count_labels(rows, space))
    block: dict[str, Any] = {
        "n": int(kind.counts.sum()),
        **_finite(label_scores(kind.counts.sum(0))),
        **kind.intervals(_subjects(rows)),
    }
    if calibration := _calibration(rows, space):
        block["calibration"] = calibration
    return block


def block_of(scores: Mapping[str, Any], space: LabelSpace) -> dict[str, Any] | None:
    """The block of `summarise` that scores the labels of the space."""
    if space.field == "emotion":
        return scores.get("emotion")
    return scores.get("attributes", {}).get(space.field)


def answer(row: Row) -> str | None:
    """The label that counts: only a `strict` or `lenient` answer has one."""
    return row["label"] if row["status"] in ("strict", "lenient") else None


def truth(row: Row, space: LabelSpace) -> str | None:
    """The true label in `space`, or None if the row is not annotated for it."""
    if space.field == "emotion":
        return row["truth"].get("emotion")
    return (row["truth"].get("attributes") or {}).get(space.field)


def true_aus(row: Row, au_set: Sequence[int]) -> tuple[set[int], set[int]] | None:
    """(present, annotated) AUs among `au_set`, or None if the row has no AU annotation."""
    aus = row["truth"].get("aus")
    if aus is None:
        return None
    annotated = row["truth"].get("annotated_aus")
    present = {int(au) for au, intensity in aus.items() if intensity is None or intensity > 0}
    known = set(au_set) if annotated is None else set(au_set) & set(annotated)
    return present & known, known


def count_labels(rows: Sequence[Row], space: LabelSpace) -> Array:
    """What each row adds to the confusion matrix: (rows, K, K + 1), truth by answer, the last
    column for no valid answer; all 0 for a row that is not annotated."""
    index = {label: i for i, label in enumerate(space.labels)}
    true = [truth(row, space) for row in rows]
    for row, label in zip(rows, true, strict=True):
        if label is not None and label not in index:
            raise UserError(
                f"row {row['id']!r} has the true {space.field} {label!r}, which label space "
                f"{space.id} lacks ({', '.join(space.labels)}): choose the benchmark's own space"
            )
    said = [index.get(answer(row) or "", len(index)) for row in rows]
    counts = np.zeros((len(rows), len(index), len(index) + 1))
    found = [(i, index[t], s) for i, (t, s) in enumerate(zip(true, said, strict=True)) if t]
    if found:
        counts[tuple(np.array(found).T)] = 1
    return counts


def count_aus(rows: Sequence[Row], au_set: Sequence[int]) -> Array:
    """(rows, AUs, 3): hit, false alarm, miss of each row and AU; all 0 where not annotated."""
    place = {au: j for j, au in enumerate(au_set)}
    found: list[tuple[int, int, int]] = []
    for i, row in enumerate(rows):
        if (labels := true_aus(row, au_set)) is None:
            continue
        present, known = labels
        said = known.intersection(row["aus"] or ())
        found += [(i, place[au], 0 if au in present else 1) for au in said]
        found += [(i, place[au], 2) for au in present if au not in said]
    counts = np.zeros((len(rows), len(au_set), 3))
    if found:
        counts[tuple(np.array(found).T)] = 1
    return counts


def label_scores(confusion: Array) -> dict[str, Array]:
    """accuracy, uar, f1_macro of confusion matrices (..., K, K + 1); nan without any row."""
    parts = class_scores(confusion)
    hits = np.trace(confusion, axis1=-2, axis2=-1)
    present = parts["support"] > 0
    return {
        "accuracy": ratio(hits, confusion.sum((-2, -1))),
        "uar": mean_where(parts["recall"], present),
        "f1_macro": mean_where(parts["f1"], present),
    }


def class_scores(confusion: Array) -> dict[str, Array]:
    """f1, precision, recall, support of each class: (..., K); nan where undefined."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    support = confusion.sum(-1)
    predicted = confusion[..., :-1].sum(-2)
    return {
        "f1": ratio(2 * hits, np.where(support > 0, support + predicted, 0)),
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, support),
        "support": support,
    }


def _scored(rows: Sequence[Row], space: LabelSpace, au_set: Sequence[int]) -> list[Counted]:
    """Each kind of truth that the rows have."""
    kinds: list[Counted] = []
    if not space.several:
        path = ("emotion",) if space.field == "emotion" else ("attributes", space.field)
        kinds.append(_labels(path, count_labels(rows, space)))
    elif multilabel.was_written(rows):
        exact = {"exact_match": lambda counts: (counts[:, -1, 1], counts[:, -1, 2])}
        counts = multilabel.counts(rows, space)
        kinds.append(Counted(("labels",), counts, multilabel.scores, exact, multilabel.shift))
    kinds.append(Counted(("au",), count_aus(rows, au_set), au_scores, shift=measures.shift_tally))
    for name in AFFECT:
        signs = {"sagr": lambda counts: (counts[:, 0, -1], counts[:, 0, 0])}
        kinds.append(Counted(("affect", name), affect.sums(rows, name), affect.scores, signs))
    return [
        kind
        for kind in kinds
        if any(np.isfinite(value) for value in kind.score(kind.counts.sum(0)).values())
    ]


def _labels(path: tuple[str, ...], counts: Array) -> Counted:
    return Counted(path, counts, label_scores, {"accuracy": right_and_known}, shift_confusion)


def right_and_known(counts: Array) -> tuple[Array, Array]:
    """(rows,) whether each row of `count_labels` is right, and whether it is annotated."""
    return np.trace(counts, axis1=1, axis2=2), counts.sum((1, 2))


def shift_confusion(confusion: Array, share: float) -> Array:
    """A confusion matrix (K, K + 1) with `share` of each class's errors made right or, below 0, of
    its right answers spread over the other answers."""
    moved = confusion.copy()
    for k, line in enumerate(moved):
        right = line[k]
        if share >= 0:
            line *= 1 - share
            line[k] = right + share * (confusion[k].sum() - right)
        else:
            line += -share * right / (len(line) - 1)
            line[k] = right * (1 + share)
    return moved


def _annotated(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if multilabel.true(row) is not None]


def _ranked(rows: Sequence[Row], space: LabelSpace, ci: bool) -> dict[str, Any] | None:
    """{"n", "map", "ci95", "per_label": {label: {"support", "ap"}}} of several labels a face; None
    if the rows do not rank them, or none is annotated."""
    known = _annotated(rows)
    if not known or (values := multilabel.ranking(known, space)) is None:
        return None
    flags = multilabel.present(known, space)
    if not flags.any():
        return None
    (found,) = multilabel.average_precisions(values, flags, np.ones((1, len(known))))
    block: dict[str, Any] = {"n": len(known), "map": float(np.nanmean(found))}
    if ci:
        subjects = _subjects(known)
        reason = too_few(len(set(subjects or range(len(known)))), subjects is not None)
        score = multilabel.map_of(values, flags)
        block["ci95"] = {} if reason else reweighted(score, len(known), clusters=subjects)
        reason = reason or (None if block["ci95"] else EQUAL)
        block |= _clusters(subjects) | ({"no_ci95": reason} if reason else {})
    columns = {"support": flags.sum(0), "ap": found}
    return block | {"per_label": _table(columns, space.labels)}


def _with_ranking(block: dict[str, Any], ranked: dict[str, Any]) -> dict[str, Any]:
    """The block of what was said and that of the ranking as one."""
    both = block | ranked
    for name in ("ci95", "per_label"):
        if name in ranked:
            both[name] = block.get(name, {}) | ranked[name]
    if "per_label" in block:
        said = block["per_label"]
        both["per_label"] = {k: said[k] | ranked["per_label"][k] for k in said}
    return both


def _ranked_change(
    before: Sequence[Row], after: Sequence[Row], space: LabelSpace
) -> dict[str, Any] | None:
    """{"difference", "ci95"} of mAP of the same annotated rows, or "no_ci95" for "ci95"; None
    unless both rank them."""
    known = [_annotated(before), _annotated(after)]
    if not known[0]:
        return None
    ranks = [multilabel.ranking(rows, space) for rows in known]
    if ranks[0] is None or ranks[1] is None:
        return None
    flags = multilabel.present(known[0], space)
    if not flags.any():
        return None
    first, second = (multilabel.map_of(values, flags) for values in ranks if values is not None)

    def change(weights: Array) -> dict[str, Array]:
        return {"map": second(weights)["map"] - first(weights)["map"]}

    subjects = _subjects(known[0]) or _subjects(known[1])
    difference = {"difference": float(change(np.ones((1, len(known[0]))))["map"][0])}
    if reason := too_few(len(set(subjects or range(len(known[0])))), subjects is not None):
        return difference | {"no_ci95": reason}
    intervals = reweighted(change, len(known[0]), clusters=subjects)
    return difference | ({"ci95": intervals["map"]} if intervals else {"no_ci95": EQUAL})


def _subjects(rows: Sequence[Row]) -> list[str] | None:
    """The subject of each row; None unless all rows name one."""
    names = [row.get("subject") for row in rows]
    return None if None in names else [str(name) for name in names]


def _units(counts: Array, subjects: Sequence[str] | None) -> int:
    """How many people, or rows of unknown people, add anything to the counts."""
    counted = np.flatnonzero(counts.any((1, 2)))
    return len(counted) if subjects is None else len({subjects[i] for i in counted.tolist()})


def _clusters(subjects: Sequence[str] | None) -> dict[str, Any]:
    """What a block says of its interval beside it; nothing if rows were drawn."""
    return {"clusters": {"unit": "subject", "n": len(set(subjects))}} if subjects else {}


def _place(tree: dict[str, Any], path: tuple[str, ...], block: Mapping[str, Any]) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = block


def _per_class(confusion: Array, space: LabelSpace) -> dict[str, Any]:
    answered = confusion[:, :-1].sum()
    return {
        "n": int(confusion.sum()),
        "answered": {
            "share": float(answered / confusion.sum()),
            "accuracy": float(np.trace(confusion) / answered) if answered else None,
        },
        "labels": list(space.labels),
        "confusion": confusion.astype(int).tolist(),
        "per_class": _table(class_scores(confusion), space.labels),
    }


def _by_group(rows: Sequence[Row], space: LabelSpace, counts: Array, ci: bool) -> dict[str, Any]:
    """What `groups.by_group` says of the annotated attributes that are not the label itself."""
    attributes = {
        name: [(row["truth"].get("attributes") or {}).get(name) for row in rows]
        for name in groups.GROUPED
        if name != space.field
    }

    def interval(inside: NDArray[np.bool_]) -> dict[str, Any]:
        subjects = _subjects([row for row, here in zip(rows, inside, strict=True) if here])
        interval = share_interval(*right_and_known(counts[inside]), clusters=subjects)
        if interval is None:
            reason = too_few(_units(counts[inside], subjects), subjects is not None)
            return {"no_ci95": reason, **_clusters(subjects)}
        return {"ci95": interval, **_clusters(subjects)}

    return groups.by_group(attributes, counts, space.labels, interval if ci else None)


def _per_au(tally: Array, au_set: Sequence[int]) -> dict[str, Any]:
    return {"per_au": _table(binary_scores(tally), [facs.name(au) for au in au_set])}


def _table(columns: Mapping[str, Array], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{name: {column: value}}; an undefined value is null, and support is a whole number."""
    table: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(names):
        values = {key: column[i] for key, column in columns.items()}
        table[name] = {k: float(v) if np.isfinite(v) else None for k, v in values.items()}
        table[name]["support"] = int(values["support"])
    return table


def _parse_shares(rows: Sequence[Row]) -> dict[str, float]:
    for row in rows:
        if row["status"] not in STATUSES:
            raise UserError(
                f"row {row['id']!r} has status {row['status']!r}: use one of {', '.join(STATUSES)}"
            )
    return {s: sum(row["status"] == s for row in rows) / len(rows) for s in STATUSES}


def _calibration(rows: Sequence[Row], space: LabelSpace) -> dict[str, Any] | None:
    """What the probabilities of the labels are worth, over the annotated rows that have them: {"n",
    "ece", "bins", "nll" in nats, "brier", "top2", "reliability": [{"count", "confidence",
    "accuracy"}, ...] of each bin}; None if there are none."""
    known = [row for row in rows if row.get("probabilities") and truth(row, space) is not None]
    if not known or space.several:
        return None
    table = [[row["probabilities"].get(label, 0.0) for label in space.labels] for row in known]
    true = [space.labels.index(str(truth(row, space))) for row in known]
    confidence, right = measures.top_label(table, true)
    bins = measures.reliability(confidence, right)
    return {
        "n": len(known),
        "ece": measures.expected_calibration_error(confidence, right),
        "bins": measures.ECE_BINS,
        "nll": measures.negative_log_likelihood(table, true),
        "brier": measures.brier_score(table, true),
        "top2": measures.top_k_accuracy(table, true, 2),
        "reliability": [
            {"count": int(count)} | _finite({"confidence": sure, "accuracy": accuracy})
            for count, sure, accuracy in zip(*bins.values(), strict=True)
        ],
    }


def _finite(scores: Mapping[str, Array]) -> dict[str, Any]:
    return {name: float(value) for name, value in scores.items() if np.isfinite(value)}
