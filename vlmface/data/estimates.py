"""Estimated action units next to a data set: a JSONL file that `vlmface data add-aus` writes.

Its first record describes the estimator; each other one is of a row, by id. Loaded rows carry them
in `meta`, under `FIELD`, and never in `aus`, which holds annotations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import facs
from vlmface.data.rows import Rows
from vlmface.errors import UserError

if TYPE_CHECKING:
    import datasets

FIELD = "estimated_aus"  # of a row's `meta`, and of a data set's YAML file
HEADER = ""  # id of the record that describes the estimator
MAX_BYTES = 2**30


def read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The content of a file of estimates.

    Returns:
        What describes the estimator, and {id of a row: its record}.

    Raises:
        UserError: the file is missing, damaged, or not of this kind.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is larger than {MAX_BYTES:,} bytes: it is not read")
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(
            f"the estimates {path} cannot be read ({error.strerror}): run vlmface data add-aus, or "
            f"remove {FIELD} from the YAML file"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8, so it is not a file of estimates") from error
    records = {}
    for number, line in enumerate(lines, 1):
        if line:
            record = _record(path, number, line)
            records[record["id"]] = record
    header = records.pop(HEADER, None)
    if header is None:
        raise UserError(f"{path} does not name its estimator: write it with vlmface data add-aus")
    return header, records


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        valid = isinstance(record, dict) and isinstance(record.get("id"), str)
        if valid and record["id"] != HEADER and record.get("aus") is not None:
            valid = all(
                int(au) in facs.AUS and math.isfinite(x) and 0 <= x <= 5
                for au, x in record["aus"].items()
            )
    except (ValueError, TypeError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise UserError(
            f"{path} line {number} is not an estimate ({line[:60]!r}): expected an object with id "
            "and aus, AU numbers with intensities from 0 to 5; delete the line and run vlmface "
            "data add-aus"
        )
    return record


def add_to_rows(rows: Rows | datasets.Dataset, path: Path) -> Rows | datasets.Dataset:
    """The rows with their estimates in `meta`; rows without an estimate stay as they are.

    Raises:
        UserError: as `read`.
    """
    header, records = read(path)
    estimator = {name: header.get(name) for name in ("estimator", "sha256")}
    ids: Sequence[str] = _column(rows, "id")
    metas = [
        _with_estimate(meta, records.get(id), estimator)
        for id, meta in zip(ids, _column(rows, "meta"), strict=True)
    ]
    if isinstance(rows, Rows):
        return Rows(rows.columns | {"meta": metas}, rows.skipped)
    feature = rows.features["meta"]
    return rows.remove_columns("meta").add_column("meta", metas, feature=feature)


def _column(rows: Rows | datasets.Dataset, name: str) -> list[Any]:
    values: Any = rows.columns.get(name) if isinstance(rows, Rows) else rows[name][:]
    if values is None:
        return [None] * len(rows)
    return values.to_pylist() if hasattr(values, "to_pylist") else list(values)


def _with_estimate(
    meta: str | None, record: Mapping[str, Any] | None, estimator: Mapping[str, Any]
) -> str:
    if record is None or record.get("aus") is None:
        return meta or "{}"
    estimate = {**estimator, "aus": record["aus"], "confidence": record.get("confidence", {})}
    return json.dumps(json.loads(meta or "{}") | {FIELD: estimate}, sort_keys=True)
