"""What people read of a build: its data card, and a page of faces with their rationales."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import facs
from vlmface.rationale.verify import REASONS
from vlmface.utils import html
from vlmface.utils.files import atomic_write

if TYPE_CHECKING:
    from PIL import Image

    from vlmface.rationale.types import Written

SIDE = 256  # pixels of a face on the page


def data_uri(image: Image.Image, side: int) -> str:
    """The picture as an inline JPEG, reduced if a side exceeds `side` pixels. Only its pixels: what
    a camera notes in a file (place, time) does not go along."""
    picture = image.convert("RGB")
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_card(path: Path, summary: Mapping[str, Any]) -> None:
    """Write the data card (README.md) of a build from its summary."""
    atomic_write(path, _render("rationale_card.md.j2", summary))


def write_page(
    path: Path,
    summary: Mapping[str, Any],
    written: Sequence[Written],
    pictures: Callable[[int], Image.Image | None],
    faces: int,
) -> None:
    """Write rationale.html: up to `faces` kept and as many rejected rationales beside their faces,
    in the order of the data, every label, or reason of rejection, in turn. It loads nothing."""
    groups = []
    for kept in (True, False):
        found = [w for w in written if w.verdict.kept is kept]
        turn = _in_turn(found, lambda w: w.truth.label if w.verdict.kept else w.verdict.reasons[0])
        cards = [_card(w, pictures(w.index)) for w, _ in zip(turn, range(faces), strict=False)]
        groups.append({"kept": kept, "of": len(found), "cards": cards})
    atomic_write(path, _render("rationale.html.j2", summary, groups=groups))


def _render(template: str, summary: Mapping[str, Any], **more: Any) -> str:
    filters = {
        "pct": lambda share: f"{100 * share:.1f}",
        "share": lambda share: "-" if share is None else f"{100 * share:.1f} %",
    }
    return html.render(template, filters=filters, **summary, reasons=REASONS, **more)


def _card(w: Written, image: Image.Image | None) -> dict[str, Any]:
    said = set(w.verdict.answer.aus)
    present = set(w.truth.aus)
    chips = []
    for au in facs.top_down(present | said):
        intensity = w.truth.aus.get(au)
        kind = ("found" if au in said else "missed") if au in present else "extra"
        how = "" if intensity is None else f", {facs.GRADES[facs.grade(intensity) - 1]}"
        chips.append(
            {"au": facs.name(au), "kind": kind, "title": f"{facs.AUS[au].name}{how}: {kind}"}
        )
    return {
        "image": data_uri(image, SIDE) if image else None,
        "id": w.id,
        "label": w.truth.label or "none",
        "agreement": w.record.get("agreement"),
        "known": w.record.get("known"),
        "answer": w.verdict.answer.label,
        "chips": chips,
        "text": w.verdict.body or w.text,
        "faults": [{"reason": f.reason, "message": f.message} for f in w.verdict.faults],
        "first": w.record.get("first"),
        "first_reasons": w.record.get("first_reasons", []),
    }


def _in_turn(found: Sequence[Written], key: Callable[[Written], str]) -> Iterator[Written]:
    """The first of each key, then the second of each, and so on."""
    queues: dict[str, list[Written]] = {}
    for w in found:
        queues.setdefault(key(w), []).append(w)
    for row in zip_longest(*(queues[name] for name in sorted(queues))):
        yield from (w for w in row if w is not None)
