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
