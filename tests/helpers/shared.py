"""Folders that are built once for all workers of a test run, and handed out as copies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock


class SharedFolders:
    """What the first test that needs it builds, in whichever worker; the other workers wait."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        temporary = factory.getbasetemp()
        in_worker = "PYTEST_XDIST_WORKER" in os.environ  # whose folder is one of several
        self.root = (temporary.parent if in_worker else temporary) / "shared"
        self.root.mkdir(exist_ok=True)
        self.factory = factory

    def build(self, name: str, build: Callable[[Path], Any]) -> Path:
        """The folder `name`, which `build(folder)` fills. It is not to be written to: `copy` is for
        that."""
        folder, finished = self.root / name, self.root / f"{name}.finished"
        with FileLock(self.root / f"{name}.lock"):
            if not finished.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a build that failed
                build(folder)
                finished.touch()
        return folder

    def copy(self, name: str, build: Callable[[Path], Any]) -> Path:
        """A copy of that folder, for a test file of its own."""
        return Path(shutil.copytree(self.build(name, build), self.factory.mktemp("copy") / name))
