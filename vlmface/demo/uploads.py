"""Limits on the folder of uploads: its size, and how long files are kept.

Gradio deletes finished uploads after a while, but not those that were interrupted.
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
    """The uploads in a folder.

    Args:
        folder: Gradio's folder for uploads.
        protected: Returns the paths of the demo's own files, which are never deleted.
        clock: The current time in seconds.
    """

    def __init__(
        self,
        folder: Path,
        protected: Callable[[], set[str]] = set,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder, self.protected, self._clock = folder, protected, clock
        self.at_once = self.arriving = 0  # uploads in progress, and their bytes so far
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start to delete old files periodically, until `close`."""
        self._thread = threading.Thread(target=self._sweep_loop, name="uploads", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop deleting old uploads."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def problem(self) -> str | None:
        """Why an upload cannot be accepted now, None if it can."""
        if self.at_once >= MAX_AT_ONCE:
            return "Too many files are arriving: try again in a moment"
        if self.arriving + self.size > MAX_BYTES:
            return "No room for more files now: try again in half an hour"
        return None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size, _ in self._files())

    def sweep(self) -> None:
        """Delete old files: finished uploads, and interrupted ones, which Gradio leaves in the
        folder itself."""
        now = self._clock()
        for path, _, changed in list(self._files()):
            interrupted = path.parent == self.folder and now - changed > UPLOAD_S
            if interrupted or now - changed > KEEP_S:
                with contextlib.suppress(OSError):  # Gradio has deleted it already
                    path.unlink()

    def _sweep_loop(self) -> None:
        while not self._closed.wait(_SWEEP_S):
            self.sweep()

    def _files(self) -> Iterator[tuple[Path, int, float]]:
        """(path, bytes, time of the last change) of each upload."""
        protected = self.protected()
        for root, _, names in os.walk(self.folder):
            for name in names:
                path = Path(root, name)
                if str(path) in protected:
                    continue
                with contextlib.suppress(OSError):
                    stat = path.stat()
                    yield path, stat.st_size, stat.st_mtime
