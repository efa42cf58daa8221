"""The figures of a build: what its card, its page and summary.json say."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlmface import __version__, data
from vlmface.label_spaces import LabelSpace
from vlmface.rationale.self_training import VOTED, asked_with
from vlmface.rationale.verify import REASONS

if TYPE_CHECKING:
    import datasets

    from vlmface.rationale.self_training import Local, Remote
    from vlmface.rationale.teacher import Teacher
    from vlmface.rationale.types import BuildSettings, Written


def summarise(
    settings: BuildSettings,
    space: LabelSpace,
    rows: datasets.Dataset,
    left_out: Mapping[str, int],
    written: Sequence[Written],
    twins: int,
    teacher: Teacher | None,
    model: Local | Remote | None,
) -> dict[str, Any]:
    """Figures and facts, ready for JSON. `twins` is the number of near duplicates; `teacher`
    or `model` is who wrote, both None for the rule writer."""
    kept = [w for w in written if w.verdict.kept]
    sent_back = [w for w in written if "first" in w.record]
    requests = [w.record for w in written if w.record]
    writer: dict[str, Any] = {"writer": "rules", "style": settings.style, "seed": settings.seed}
    if teacher is not None:
        writer = {
            "writer": "teacher",
            "model": settings.model,
            "prompt": teacher.prompt.id,
            "prompt_version": teacher.prompt.version,
            "prompt_sha": teacher.prompt.sha(space, settings.limits),
            "saw_aus": teacher.prompt.saw_aus,
        }
    if model is not None:
        writer = {
            "writer": "model",
            "model": settings.model,
            **asked_with(settings, model.prompt),
            "saw_aus": bool(settings.saw_label),
        }
    return {
        "vlmface": __version__,
        "source": {
            "name": settings.data,
            **data.describe(settings.data),
            "split": settings.split,
            "options": settings.option,
            "fingerprint": data.fingerprint(rows),
        },
        "writer": writer,
        "request": {} if teacher is None else teacher.endpoint.request,
        "saw_label": bool(settings.saw_label)
        if model
        else teacher is None or teacher.prompt.saw_label,
        "vote": None if model is None else _vote(written, settings),
        "label_space": {"id": space.id, "sha": space.sha},
        "aus": Counter(w.truth.source for w in written),
        "limits": dataclasses.asdict(settings.limits)
        | {"similarity": settings.similarity, "duplicates": settings.duplicates},
        "counts": {
            "rows": len(rows),
            "left_out": dict(left_out),
            "written": len(written),
            "kept": len(kept),
            "rejected": len(written) - len(kept),
            "rejected_by": _by_reason(w.verdict.reasons for w in written),
            "sent_back": len(sent_back),
            "sent_back_by": _by_reason(w.record["first_reasons"] for w in sent_back),
            "repaired": sum(w.verdict.kept for w in sent_back),
            # Before near duplicates are rejected, if they are.
            "passed": sum(set(w.verdict.reasons) <= {"near_duplicate", "surplus"} for w in written),
            "near_duplicates": twins,
        },
        "labels": dict(sorted(Counter(w.truth.label for w in kept).items())),
        "quality": {
            "au_precision": _mean(w.verdict.precision for w in kept),
            "au_recall": _mean(w.verdict.recall for w in kept),
            "words": _mean(len(w.verdict.body.split()) for w in kept),
            "distinct": len({w.verdict.body for w in kept}),
        },
        "cost": _cost(requests, settings) if settings.endpoint else None,
    }


def _vote(written: Sequence[Written], settings: BuildSettings) -> dict[str, Any]:
    """How the answers agreed, and how often what they voted was annotated so, where it is known."""
    found: dict[str, Any] = {
        "samples": settings.samples,
        "temperature": settings.temperature,
        "min_agreement": settings.min_agreement,
        "balance": settings.balance,
        "labels": Counter(w.record["label"] for w in written if w.verdict.kept),
    }
    answered = [w for w in written if w.record]
    for name, chosen in (("all", answered), ("kept", [w for w in written if w.verdict.kept])):
        checked = [w for w in chosen if w.record["label"] == VOTED and w.record["known"]]
        found[name] = {
            "agreement": _mean(w.record["agreement"] for w in chosen),
            "checked": len(checked),
            "right": _mean(w.truth.label == w.record["known"] for w in checked),
        }
    return found


def _by_reason(found: Iterable[Iterable[str]]) -> dict[str, int]:
    """Faces by reason; a face with several faults counts under each."""
    counts = Counter(reason for reasons in found for reason in set(reasons))
    return {reason: counts[reason] for reason in REASONS if counts[reason]}


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return round(sum(listed) / len(listed), 4) if listed else None


def _cost(records: Sequence[Mapping[str, Any]], settings: BuildSettings) -> dict[str, Any]:
    """Tokens, and what they cost at the user's prices per million."""
    total = {
        name: sum(record[name] for record in records)
        for name in ("requests", "prompt_tokens", "completion_tokens", "uncounted")
    }
    prices = (settings.price_in, settings.price_out)
    if None in prices:
        return {**total, "price": None}
    spent = total["prompt_tokens"] * prices[0] + total["completion_tokens"] * prices[1]
    return {**total, "price": round(spent / 1e6, 6), "prices_per_million": prices}
