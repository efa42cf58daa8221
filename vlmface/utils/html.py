"""HTML and Markdown pages from the templates of the package. Pages load nothing from elsewhere."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).parents[1] / "templates"
MAX_SIDE = 384  # pixels; larger faces are reduced before they go into the page


def template(file: str, filters: Mapping[str, Callable[..., str]] | None = None) -> jinja2.Template:
    """A template of the package, which escapes values if it is HTML.

    Args:
        file: A file in vlmface/templates.
        filters: Filters in addition to `pct`, `ci`, `points` and `plain`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=file.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"pct": _percent, "ci": _interval, "points": _points, "plain": plain}
    environment.filters |= filters or {}
    return environment.get_template(file)


def render(
    file: str, /, *, filters: Mapping[str, Callable[..., str]] | None = None, **values: Any
) -> str:
    """The page of a template; the arguments are those of `template`."""
    return template(file, filters).render(**values)


def stamp(when: datetime | None = None) -> str:
    """When a page was made, or what it shows: now, unless it is said."""
    return f"{when or datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def _percent(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{100 * value:.1f}"


def _interval(ci: Sequence[float] | None) -> str:
    return "" if ci is None else f"{100 * ci[0]:.1f}\N{EN DASH}{100 * ci[1]:.1f}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def plain(text: object) -> str:
    """Text without what breaks a page: lone surrogates, control and direction characters."""
    unsafe = ("Cc", "Cf", "Cs")
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in unsafe else "\N{REPLACEMENT CHARACTER}"
        for c in str(text)
    )
