"""The folder of uploads: how much may be in it, and for how long.

Gradio deletes finished uploads after a while, and leaves those that were broken off.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

MAX_BYTES = 2**30  # of all files
MAX_REQUEST_BYTES = 300 * 2**20  # of one upload, which may have several files
MAX_AT_ONCE = 8
KEEP_S = 1800.0
UPLOAD_S = 120.0  # for an upload to arrive
_SWEEP_S = 30.0


class Uploads:
    """`folder` holds them, and the files that `kept` names, which are the demo's own."""

    def __init__(
        self,
        folder: Path,
        kept: Callable[[], set[str]] = set,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder, self.kept, self._clock = folder, kept, clock
        self.at_once = self.arriving = 0  # uploads, and their bytes so far
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Delete old files again and again, until `close`."""
        self._thread = threading.Thread(target=self._sweep_often, name="uploads", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def problem(self) -> str | None:
        """Why no upload is taken now, None if one is."""
        if self.at_once >= MAX_AT_ONCE:
            return "Too many files are arriving: try again in a moment"
        if self.arriving + self.size > MAX_BYTES:
            return "There is no room for more files now: try again in half an hour"
        return None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size, _ in self._files())

    def sweep(self) -> None:
        """Delete files that are too old: of whole uploads, and of those that were broken off, which
        Gradio leaves in the folder itself."""
        now = self._clock()
        for path, _, changed in list(self._files()):
            broken_off = path.parent == self.folder and now - changed > UPLOAD_S
            if broken_off or now - changed > KEEP_S:
                with contextlib.suppress(OSError):  # Gradio was faster
                    path.unlink()

    def _sweep_often(self) -> None:
        while not self._closed.wait(_SWEEP_S):
            self.sweep()

    def _files(self) -> Iterator[tuple[Path, int, float]]:
        """(path, bytes, time of the last change) of each upload."""
        kept = self.kept()
        for root, _, names in os.walk(self.folder):
            for name in names:
                path = Path(root, name)
                if str(path) in kept:
                    continue
                with contextlib.suppress(OSError):
                    stat = path.stat()
                    yield path, stat.st_size, stat.st_mtime
