"""A file of finished answers, one JSON object a line: what a killed build goes on from."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from vlmface.errors import UserError
from vlmface.utils import lock


class Journal:
    """`records` maps ids to what is finished. A record is in the file as soon as `add` returns; a
    last line that a kill has cut off is dropped, so that its id counts as not done."""

    def __init__(self, path: Path) -> None:
        """Raises UserError if another process writes to the file, or if it is damaged."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock.hold(path))
            self.file = stack.enter_context(path.open("a+", encoding="utf-8"))
            self.records = self._read(path)
            self._open = stack.pop_all()

    def _read(self, path: Path) -> dict[str, dict[str, Any]]:
        self.file.seek(0)
        text = self.file.read()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self.file.truncate(len(whole.encode()))
        records: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
                records[record["id"]] = record
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{path} line {number} is damaged ({error}): take the line out, its face will "
                    "be asked about again"
                ) from error
        return records

    def add(self, record: dict[str, Any]) -> None:
        """Write a record, which has an `id`."""
        self.file.write(json.dumps(record) + "\n")  # ASCII: a model may write lone surrogates
        self.file.flush()
        self.records[record["id"]] = record

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
