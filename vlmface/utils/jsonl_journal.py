"""An append-only JSONL store used to resume interrupted jobs."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from vlmface.errors import UserError
from vlmface.utils import lock


class Journal:
    """A file of finished records. A record is in the file as soon as `add` returns; an incomplete
    last line is deleted, so that its job is repeated.

    Args:
        path: The file.

    Attributes:
        records: {id: record}.

    Raises:
        UserError: Another process writes to the file, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock.hold(path))
            self.file = stack.enter_context(path.open("a+", encoding="utf-8"))
            self.records = self._read(path)
            self._open = stack.pop_all()

    def _read(self, path: Path) -> dict[str, dict[str, Any]]:
        self.file.seek(0)
        text = self.file.read()
        complete = text[: text.rfind("\n") + 1]
        if complete != text:
            self.file.truncate(len(complete.encode()))
        records: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(complete.splitlines(), 1):
            try:
                record = json.loads(line)
                records[record["id"]] = record
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{path} line {number} is damaged ({error}): delete the line, and its face is "
                    "processed again"
                ) from error
        return records

    def add(self, record: dict[str, Any]) -> None:
        """Append a record, which has an `id`."""
        self.file.write(json.dumps(record) + "\n")  # ASCII: a model may write lone surrogates
        self.file.flush()
        self.records[record["id"]] = record

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
