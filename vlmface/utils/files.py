"""The cache folder, atomic writes, and text that UTF-8 can hold."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import platformdirs

from vlmface.errors import UserError


def cache_dir() -> Path:
    """The user's cache folder for vlmface; `VLMFACE_CACHE` overrides the platform's default."""
    return Path(os.environ.get("VLMFACE_CACHE") or platformdirs.user_cache_dir("vlmface"))


def make_output_folder(folder: Path) -> None:
    """Create the folder of --output_dir with its parents. Raises UserError if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made ({error.strerror}): give another --output_dir"
        ) from error


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Write a file so that it is never incomplete: to a temporary name, which is then renamed.

    Args:
        path: The file; its folder is created.
        content: Text is encoded as UTF-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def without_surrogates(text: str) -> str:
    """Text that can be encoded as UTF-8: surrogate pairs joined, lone ones replaced by U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
