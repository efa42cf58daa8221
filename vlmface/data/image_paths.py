"""Image files as a list spells them, and as the disk does.

A list that was made on Windows or on a Mac may separate folders with backslashes, write accents in
another Unicode form, or a letter case that those systems do not distinguish.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict


class Folders:
    """Listings of folders, each read once."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}
        self._spellings: dict[str, dict[str, list[str]]] = {}
        self._folders: dict[str, str | None] = {}

    def has(self, path: str) -> bool:
        """Whether there is a file or folder of that very name."""
        folder, name = _parted(path)
        return name in self._listed(folder)

    def find(self, path: str) -> str | None:
        """The path of the file on disk: `path` itself if it exists, else the one that differs from
        it in separators, Unicode form or letter case alone. None if there is none, or several."""
        for spelling in (path, path.replace("\\", "/")):
            if self.has(spelling):
                return spelling
            if len(near := self.near(spelling)) == 1:
                return near[0]
        return None

    def near(self, path: str) -> list[str]:
        """The files whose path differs from `path` in its Unicode form, or else in letter case."""
        head, name = _parted(path)
        folder = self._folder(head)
        if folder is None:
            return []
        if folder not in self._spellings:
            spellings = defaultdict(list)
            for other in sorted(self._listed(folder)):
                spellings[_folded(other)].append(other)
            self._spellings[folder] = spellings
        near = self._spellings[folder].get(_folded(name), [])
        form = unicodedata.normalize("NFC", name)
        same = [other for other in near if unicodedata.normalize("NFC", other) == form]
        return [os.path.join(folder, other) for other in same or near]

    def _folder(self, path: str) -> str | None:
        """A folder as it is spelled on disk; None if there is none, or several."""
        if path not in self._folders:
            self._folders[path] = path if os.path.isdir(path or ".") else self.find(path)
        return self._folders[path]

    def _listed(self, folder: str) -> set[str]:
        if folder not in self._names:
            try:
                with os.scandir(folder or ".") as entries:
                    self._names[folder] = {entry.name for entry in entries}
            except OSError:
                self._names[folder] = set()
        return self._names[folder]


def _parted(path: str) -> tuple[str, str]:
    """(folder, name)."""
    folder, slash, name = path.rpartition(os.sep)
    return folder or slash, name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())
