"""The figures of a build, for its card, its page and summary.json."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlmface import __version__, data
from vlmface.rationale.self_training import VOTED_LABEL, prompt_facts
from vlmface.rationale.verify import REASONS

if TYPE_CHECKING:
    from vlmface.rationale.self_training import Sampler
    from vlmface.rationale.teacher import Teacher
    from vlmface.rationale.types import BuildContext, BuildSettings, WrittenRationale


def build_summary(
    context: BuildContext,
    rationales: Sequence[WrittenRationale],
    near_duplicates: int,
    writer: Teacher | Sampler | None,
) -> dict[str, Any]:
    """The facts and figures of a build, ready for JSON.

    Args:
        context: Of the build.
        rationales: All rationales.
        near_duplicates: How many nearly repeat an earlier text.
        writer: The teacher or the trained model, None for the rule writer.
    """
    from vlmface.rationale.teacher import Teacher

    settings = context.settings
    teacher = writer if isinstance(writer, Teacher) else None
    sampler = None if isinstance(writer, Teacher) else writer
    rationale_saw_label = teacher is None or teacher.prompt.shows_label
    if sampler:
        rationale_saw_label = bool(settings.show_label)
    limits = {
        "duplicate_threshold": settings.duplicate_threshold,
        "duplicates": settings.duplicates,
    }
    accepted = [r for r in rationales if r.verdict.kept]
    return {
        "vlmface": __version__,
        "source": _source(context),
        "writer": _writer_facts(context, teacher, sampler),
        "request": {} if teacher is None else teacher.endpoint.request,
        "rationale_saw_label": rationale_saw_label,
        "vote": None if sampler is None else _vote_figures(rationales, settings),
        "label_space": {"id": context.space.id, "sha": context.space.sha},
        "aus": Counter(r.truth.source for r in rationales),
        "limits": dataclasses.asdict(settings.limits) | limits,
        "counts": _counts(context, rationales, near_duplicates),
        "labels": dict(sorted(Counter(r.truth.label for r in accepted).items())),
        "quality": {
            "au_precision": _mean(r.verdict.precision for r in accepted),
            "au_recall": _mean(r.verdict.recall for r in accepted),
            "words": _mean(len(r.verdict.body.split()) for r in accepted),
            "distinct": len({r.verdict.body for r in accepted}),
        },
        "cost": _cost([r.record for r in rationales if r.record], settings)
        if settings.endpoint
        else None,
    }


def _source(context: BuildContext) -> dict[str, Any]:
    settings = context.settings
    return {
        "name": settings.dataset,
        **data.describe(settings.dataset),
        "split": settings.dataset_split,
        "options": settings.dataset_options,
        "fingerprint": data.fingerprint(context.rows),
    }


def _writer_facts(
    context: BuildContext, teacher: Teacher | None, sampler: Sampler | None
) -> dict[str, Any]:
    settings = context.settings
    if teacher is not None:
        return {
            "writer": "teacher",
            "model": settings.model,
            "prompt": teacher.prompt.id,
            "prompt_version": teacher.prompt.version,
            "prompt_sha": teacher.prompt.sha(context.space, settings.limits),
            "shows_aus": teacher.prompt.shows_aus,
        }
    if sampler is not None:
        return {
            "writer": "model",
            "model": settings.model,
            **prompt_facts(settings, sampler.prompt),
            "shows_aus": bool(settings.show_label),
        }
    return {"writer": "rules", "style": settings.style, "seed": settings.seed}


def _counts(
    context: BuildContext, rationales: Sequence[WrittenRationale], near_duplicates: int
) -> dict[str, Any]:
    accepted = sum(r.verdict.kept for r in rationales)
    retried = [r for r in rationales if "first" in r.record]
    passed = [set(r.verdict.reasons) <= {"near_duplicate", "surplus"} for r in rationales]
    return {
        "rows": len(context.rows),
        "skipped": dict(context.skipped),
        "written": len(rationales),
        "kept": accepted,
        "rejected": len(rationales) - accepted,
        "rejected_by": _by_reason(r.verdict.reasons for r in rationales),
        "retried": len(retried),
        "retried_by": _by_reason(r.record["first_reasons"] for r in retried),
        "repaired": sum(r.verdict.kept for r in retried),
        "passed": sum(passed),  # before near duplicates are rejected, if they are
        "near_duplicates": near_duplicates,
    }


def _vote_figures(
    rationales: Sequence[WrittenRationale], settings: BuildSettings
) -> dict[str, Any]:
    """How the answers agreed, and how often a voted label was the annotated one, if it is known."""
    accepted = [r for r in rationales if r.verdict.kept]
    figures: dict[str, Any] = {
        "samples": settings.num_samples,
        "temperature": settings.temperature,
        "min_agreement": settings.min_agreement,
        "max_label_ratio": settings.max_label_ratio,
        "labels": Counter(r.record["label"] for r in accepted),
    }
    for name, group in (("all", [r for r in rationales if r.record]), ("kept", accepted)):
        checked = [r for r in group if r.record["label"] == VOTED_LABEL and r.record["known_label"]]
        figures[name] = {
            "agreement": _mean(r.record["agreement"] for r in group),
            "checked": len(checked),
            "right": _mean(r.truth.label == r.record["known_label"] for r in checked),
        }
    return figures


def _by_reason(reasons_by_face: Iterable[Iterable[str]]) -> dict[str, int]:
    """Faces by reason; a face with several faults counts for each."""
    counts = Counter(reason for reasons in reasons_by_face for reason in set(reasons))
    return {reason: counts[reason] for reason in REASONS if counts[reason]}


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return round(sum(numbers) / len(numbers), 4) if numbers else None


def _cost(records: Sequence[Mapping[str, Any]], settings: BuildSettings) -> dict[str, Any]:
    """Tokens, and their cost at the user's prices per million."""
    names = ("requests", "prompt_tokens", "completion_tokens", "requests_without_usage")
    total = {name: sum(record[name] for record in records) for name in names}
    if settings.price_in is None or settings.price_out is None:
        return {**total, "price": None}
    prices = (settings.price_in, settings.price_out)
    price = total["prompt_tokens"] * prices[0] + total["completion_tokens"] * prices[1]
    return {**total, "price": round(price / 1e6, 6), "prices_per_million": prices}
