"""Cells of tables that are opened in a spreadsheet."""

from __future__ import annotations

import unicodedata

_SKIPPED_BEFORE_FORMULA = " \t\r\n\v\f\0\u00a0\u200b\ufeff'\""  # by some spreadsheets


def safe_cell(value: object) -> object:
    """Text that a spreadsheet would evaluate as a formula gets a quote in front, "'=1+1".

    Args:
        value: A cell; values other than text are returned unchanged.
    """
    if isinstance(value, str):
        start = unicodedata.normalize("NFKC", value.lstrip(_SKIPPED_BEFORE_FORMULA)[:1])
        if start in ("=", "+", "-", "@") or value[:1] in ("\t", "\r", "\n"):
            return f"'{value}"
    return value
