"""Files of JSON records, and copies of them that went wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from miniatures import text


def write_json(path: Path, content: Any) -> Path:
    """Write a JSON file."""
    return text(path, json.dumps(content, ensure_ascii=False))


def write_lines(path: Path, *records: Any) -> Path:
    """Write a JSON lines file."""
    return text(path, *(json.dumps(record, ensure_ascii=False) for record in records))


def presence(rows: Any) -> list[dict[int, bool] | None]:
    """{AU: present} of each row, None where no action units are annotated."""
    return [
        None if units is None else {unit["au"]: unit["present"] for unit in units}
        for units in rows["aus"]
    ]


# Files that are no JSON of records, with what is said of each.
NOT_RECORDS = [
    (b"[" * 200000, "nested too deeply"),
    (b'[{"id": ' + b"9" * 5000 + b"}]", "not JSON"),
    (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
]
