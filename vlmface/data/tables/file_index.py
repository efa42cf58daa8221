"""Find pictures by their names alone, wherever they are below a folder."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from vlmface.data.tables.cells import BadCellError
from vlmface.errors import UserError
from vlmface.utils.images import SUFFIXES, without_suffix

MAX_FILES = 2_000_000  # pictures below a folder


class FileIndex:
    """The pictures in a folder and those below it, by name.

    Args:
        folder: To look in. Hidden files and folders are left out.
        stems: Whether endings are ignored on both sides, as for ids; a number is then also found
            with zeros before it.
    """

    def __init__(self, folder: Path, *, stems: bool) -> None:
        self._folder, self._stems = folder, stems
        self._paths: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        self._numbers: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        count = 0
        for parent, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if not is_system_file(name))
            for name in sorted(names):
                if not name.lower().endswith(SUFFIXES) or is_system_file(name):
                    continue
                count += 1
                if count > MAX_FILES:
                    raise UserError(
                        f"{folder} holds more than {MAX_FILES:,} pictures: name a folder below it, "
                        "images="
                    )
                parts = (*Path(parent).relative_to(folder).parts, name)
                key = self._key(name)
                self._paths[key].append(parts)
                if stems and key.isascii() and key.isdigit():
                    self._numbers[key.lstrip("0")].append(parts)

    def find(self, cell: str) -> str | None:
        """The path of the picture that a cell names; None if there is none.

        Args:
            cell: A name, or a path of any system, whose folders only choose between several
                pictures of one name.

        Raises:
            BadCellError: Several pictures may be meant.
        """
        parts = PureWindowsPath(cell).parts  # both \\ and / part them
        if not parts:
            return None
        key = self._key(parts[-1])
        paths = self._paths.get(key, [])
        if not paths and self._stems and key.isascii() and key.isdigit():
            paths = self._numbers.get(key.lstrip("0"), [])
        if not paths:
            return None
        common = [_common_end(parts[:-1], path[:-1]) for path in paths]
        best = [path for path, n in zip(paths, common, strict=True) if n == max(common)]
        if len(best) > 1:
            both = " and ".join("/".join(path) for path in best[:2])
            raise BadCellError(f"the name of one picture below {self._folder}, and not of {both}")
        return str(self._folder.joinpath(*best[0]))

    def has(self, cell: str) -> bool:
        """Whether a cell names a picture, or several."""
        try:
            return self.find(cell) is not None
        except BadCellError:
            return True

    def _key(self, name: str) -> str:
        folded = unicodedata.normalize("NFC", name).casefold()
        return without_suffix(folded) if self._stems else folded


def missing_path(folder: Path, cell: str) -> str:
    """The path that messages name for a cell without a picture."""
    return str(folder / (PureWindowsPath(cell).name or "?"))


def is_system_file(name: str) -> bool:
    """Whether a file or folder is hidden, or one that macOS or Windows adds to folders."""
    return name.startswith(".") or name.casefold() in ("__macosx", "thumbs.db", "desktop.ini")


def _common_end(a: Sequence[str], b: Sequence[str]) -> int:
    """How many of the last folders are the same."""
    n = 0
    while n < min(len(a), len(b)) and a[-1 - n].casefold() == b[-1 - n].casefold():
        n += 1
    return n
