"""A build's data card, and a page of faces with their rationales."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import facs
from vlmface.rationale.verify import REASONS
from vlmface.utils import html
from vlmface.utils.files import atomic_write
from vlmface.utils.images import data_uri

if TYPE_CHECKING:
    from PIL import Image

    from vlmface.rationale.types import ImageLoader, WrittenRationale

SIDE = 256  # pixels of a face on the page
JPEG_QUALITY = 92


def inline_jpeg(image: Image.Image, side: int) -> str:
    """A picture as a data URI, reduced if a side exceeds `side` pixels."""
    return data_uri(image, max_side=side, quality=JPEG_QUALITY)


def write_card(path: Path, summary: Mapping[str, Any]) -> None:
    """Write the data card (README.md) of a build.

    Args:
        path: The file.
        summary: From `build_summary`.
    """
    atomic_write(path, _render("rationale_card.md.j2", summary))


def write_page(
    path: Path,
    summary: Mapping[str, Any],
    rationales: Sequence[WrittenRationale],
    load_image: ImageLoader,
    faces: int,
) -> None:
    """Write rationale.html, which loads nothing.

    Args:
        path: The file.
        summary: From `build_summary`.
        rationales: All rationales, in the order of the data.
        load_image: Reads the picture of a row.
        faces: How many kept and how many rejected rationales are shown, alternating between labels
            or reasons of rejection.
    """
    groups = []
    for accepted in (True, False):
        group = [r for r in rationales if r.verdict.kept is accepted]
        ordered = _round_robin(
            group, lambda r: r.truth.label if r.verdict.kept else r.verdict.reasons[0]
        )
        cards = [_card(r, load_image(r.index)) for r, _ in zip(ordered, range(faces), strict=False)]
        groups.append({"kept": accepted, "of": len(group), "cards": cards})
    atomic_write(path, _render("rationale.html.j2", summary, groups=groups))


def _render(template: str, summary: Mapping[str, Any], **values: Any) -> str:
    filters = {
        "pct": lambda share: f"{100 * share:.1f}",
        "share": lambda share: "-" if share is None else f"{100 * share:.1f} %",
    }
    return html.render(template, filters=filters, **summary, reasons=REASONS, **values)


def _card(rationale: WrittenRationale, image: Image.Image | None) -> dict[str, Any]:
    predicted = set(rationale.verdict.answer.aus)
    present = set(rationale.truth.aus)
    chips = []
    for au in facs.top_down(present | predicted):
        intensity = rationale.truth.aus.get(au)
        kind = ("found" if au in predicted else "missed") if au in present else "extra"
        grade = "" if intensity is None else f", {facs.GRADES[facs.grade(intensity) - 1]}"
        chips.append(
            {"au": facs.name(au), "kind": kind, "title": f"{facs.AUS[au].name}{grade}: {kind}"}
        )
    record, verdict = rationale.record, rationale.verdict
    return {
        "image": inline_jpeg(image, SIDE) if image else None,
        "id": rationale.id,
        "label": rationale.truth.label or "none",
        "agreement": record.get("agreement"),
        "known_label": record.get("known_label"),
        "answer": verdict.answer.label,
        "chips": chips,
        "text": verdict.body or rationale.text,
        "faults": [{"reason": f.reason, "message": f.message} for f in verdict.faults],
        "first": record.get("first"),
        "first_reasons": record.get("first_reasons", []),
    }


def _round_robin(
    rationales: Sequence[WrittenRationale], key: Callable[[WrittenRationale], str]
) -> Iterator[WrittenRationale]:
    """The first of each key, then the second of each, and so on."""
    queues: dict[str, list[WrittenRationale]] = {}
    for rationale in rationales:
        queues.setdefault(key(rationale), []).append(rationale)
    for row in zip_longest(*(queues[name] for name in sorted(queues))):
        yield from (rationale for rationale in row if rationale is not None)
