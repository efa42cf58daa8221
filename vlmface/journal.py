"""A file of finished answers, one JSON object a line: what a killed build goes on from."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from vlmface.errors import UserError


class Journal:
    """`records` maps ids to what is finished. A record is in the file as soon as `add` returns; a
    last line that a kill has cut off is dropped, so that its id counts as not done."""

    def __init__(self, path: Path) -> None:
        """Raises UserError if another process writes to the file, or if it is damaged."""
        self.file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another process is at work on {path.parent}: wait for it, or stop it"
            ) from None
        self.file.seek(0)
        text = self.file.read()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self.file.truncate(len(whole.encode()))
        self.records: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
                self.records[record["id"]] = record
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{path} line {number} is damaged ({error}): take the line out, its face will "
                    "be asked about again"
                ) from error

    def add(self, record: dict[str, Any]) -> None:
        """Write a record, which has an `id`."""
        self.file.write(json.dumps(record) + "\n")  # ASCII: a model may write lone surrogates
        self.file.flush()
        self.records[record["id"]] = record

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
