"""One process at a time in a folder: a lock that ends with the process that holds it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from vlmface.errors import UserError

_held: set[int] = set()  # file descriptors of this process's locks


def _close_in_child() -> None:
    """A forked child shares its parent's locks, and would keep them after the parent's death."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def hold(folder: str | Path) -> Iterator[None]:
    """Lock a folder until the block ends.

    The lock is on a file `.NAME.lock` next to the folder, which may not exist yet and may be
    renamed meanwhile. The operating system drops it when the process ends, however it ends.

    Args:
        folder: the folder in which this process will write.

    Raises:
        UserError: another process holds the lock (the message has its process id, its host and
            the time at which it took the lock), or the lock file cannot be written.
    """
    target = Path(folder).resolve()
    path = target.with_name(f".{target.name}.lock")
    created_folders = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path, folder)
    except OSError as error:
        raise UserError(
            f"cannot lock {folder} with {path} ({error.strerror}): write to a folder in "
            "which you may create files"
        ) from error
    _held.add(descriptor)
    try:
        yield
    finally:
        # Removed while it is locked: a process that has opened it already notices.
        path.unlink(missing_ok=True)
        _held.discard(descriptor)
        os.close(descriptor)
        for parent in created_folders:
            with contextlib.suppress(OSError):  # no longer empty
                parent.rmdir()


def _acquire(path: Path, folder: str | Path) -> int:
    """The file descriptor of the locked file. Raises UserError and OSError."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise UserError(
                f"{folder} is in use by {holder or 'another process'}: wait until it ends, stop "
                "it, or use another output folder"
            ) from None
        except OSError as error:
            print(
                f"warning: the file system of {folder} has no locks ({error.strerror}); start no "
                "second process in this folder",
                file=sys.stderr,
            )
        if _is_at(descriptor, path):
            break
        os.close(descriptor)
    holder = f"process {os.getpid()} on {platform.node()}"
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{holder} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC".encode())
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at `path`: the holder before may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
