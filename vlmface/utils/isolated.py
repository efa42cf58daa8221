"""Decode untrusted images in worker processes, with limits on memory and time.

A decoder cannot be interrupted in a thread, and some files make it run for minutes or take
gigabytes. Here each of a few threads owns a worker process, which limits itself: it ends when a
picture takes too much processor time or its parent is gone. Only the picture whose worker ended
fails; the next one gets a new worker.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from vlmface.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

WORKERS = 8  # at most; they are started when they are needed
CPU_S = 1.5  # processor time for a picture of _USUAL_PIXELS or fewer
WAIT_S = 60.0  # for an answer, on a machine that is busy with other work
BYTES_PER_PIXEL = 12.5  # of the limit on pixels: 300 MB for 24 megapixels
LEAST_BYTES = 1 << 24  # Python and the decoders take some memory whatever the size of an image
_USUAL_PIXELS = 24_000_000
_STRIP = 1 << 21  # pixels sent at once
_BUFFER = 1 << 22  # bytes on their way
_REQUEST = struct.Struct(">QIQ")  # limit on pixels, bytes of the name, bytes of the file
_REPLY = struct.Struct(">?II")  # decoded; width, height, or 0 and the length of a message

_threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="decoding")
_thread_state = threading.local()
_workers: set[Worker] = set()


def submit(content: bytes, name: str, max_pixels: int) -> Future[Image.Image]:
    """Start to decode a file.

    Args:
        content: The encoded picture.
        name: What messages call it.
        max_pixels: Larger pictures are refused; the limits on memory and time grow with it.

    Returns:
        The future upright RGB picture. Its result raises UserError as `open_image` does, and if
        the picture takes more memory or time than its pixels justify.
    """
    return _threads.submit(_decode, content, name, max_pixels)


@atexit.register
def close() -> None:
    """End all workers at once. What they were decoding fails; a later `submit` starts new ones."""
    for worker in list(_workers):
        worker.kill()


def _decode(content: bytes, name: str, max_pixels: int) -> Image.Image:
    worker: Worker | None = getattr(_thread_state, "worker", None)
    if worker is not None and not worker.alive:
        worker.kill()
        worker = None
    if worker is None:
        worker = _thread_state.worker = Worker()
    try:
        return worker.decode(content, name, max_pixels)
    except (EOFError, OSError):  # it ended, or did not answer
        worker.kill()
        raise UserError(
            f"{name} takes more memory or time to decode than a picture of its size should, or is "
            "damaged. Open it in an image editor and save it again as JPEG or PNG"
        ) from None


class Worker:
    """A worker process and the connection to it. For one thread, but `kill` may come from any."""

    def __init__(self) -> None:
        self._connection, other = socket.socketpair()
        for end in (self._connection, other):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        with other:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-c",
                    f"from vlmface.utils.isolated import serve; serve({other.fileno()})",
                ],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libtiff and others write there what files hold
                env={**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
            )
        _workers.add(self)

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._process.pid

    def kill(self) -> None:
        """End its process."""
        self._process.kill()
        self._process.wait()
        _workers.discard(self)
        with contextlib.suppress(OSError):  # ends a wait for an answer
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def decode(self, content: bytes, name: str, max_pixels: int) -> Image.Image:
        """Raises UserError, and EOFError or OSError if the worker ends or takes too long."""
        from PIL import Image

        until = time.monotonic() + WAIT_S
        title = name.encode("utf-8", "replace")
        self._connection.settimeout(WAIT_S)
        self._connection.sendall(_REQUEST.pack(max_pixels, len(title), len(content)) + title)
        self._connection.sendall(content)
        decoded, width, height = _REPLY.unpack(self._receive(_REPLY.size, until))
        if not decoded:
            raise UserError(str(self._receive(height, until), "utf-8"))
        strips = (
            Image.frombytes("RGB", (width, rows), self._receive(width * rows * 3, until))
            for rows in _strips(width, height)
        )
        if height <= _rows(width):
            return next(strips)
        image, top = Image.new("RGB", (width, height)), 0
        for strip in strips:
            image.paste(strip, (0, top))
            top += strip.height
        return image

    def _receive(self, size: int, until: float) -> bytearray:
        self._connection.settimeout(max(0.01, until - time.monotonic()))
        return _receive(self._connection, size)


def _receive(connection: socket.socket, size: int) -> bytearray:
    content = bytearray(size)
    view = memoryview(content)
    while view:
        count = connection.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return content


def _rows(width: int) -> int:
    """The most rows of a strip in which a picture is sent."""
    return max(1, _STRIP // width)


def _strips(width: int, height: int) -> list[int]:
    """The rows of each strip."""
    full, remainder = divmod(height, _rows(width))
    return [_rows(width)] * full + [remainder] * (remainder > 0)


# --- the worker process ---------------------------------------------------------------------------


def serve(descriptor: int) -> None:
    """Decode what arrives on a socket until its other end is closed."""
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # threads count as processor time and as memory
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group: the parent decides
        signal.signal(number, signal.SIG_IGN)
    # An ignored or blocked signal is inherited from the parent, and would disable the time limit.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    connection = socket.socket(fileno=descriptor)
    with contextlib.suppress(EOFError, OSError):
        while True:
            max_pixels, length, size = _REQUEST.unpack(_receive(connection, _REQUEST.size))
            name = str(_receive(connection, length), "utf-8")
            _answer(connection, bytes(_receive(connection, size)), name, max_pixels)


def _answer(connection: socket.socket, content: bytes, name: str, max_pixels: int) -> None:
    from vlmface.utils.image_decoding import decode

    _limit_memory(max(LEAST_BYTES, int(BYTES_PER_PIXEL * max_pixels)))
    # At the end of the time the signal ends the process, inside a decoder too.
    signal.setitimer(signal.ITIMER_PROF, CPU_S * max(1, max_pixels / _USUAL_PIXELS))
    try:
        image = decode(content, name, max_pixels)
    except UserError as error:
        message = str(error).encode("utf-8", "replace")
        connection.sendall(_REPLY.pack(False, 0, len(message)) + message)
        return
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    connection.sendall(_REPLY.pack(True, *image.size))
    top = 0
    for rows in _strips(*image.size):
        strip = image if rows == image.height else image.crop((0, top, image.width, top + rows))
        connection.sendall(strip.tobytes())
        top += rows


def _limit_memory(size: int) -> None:
    """Allow so many bytes more than are in use. Where the system does not count them (not Linux),
    only the time is limited."""
    status = Path("/proc/self/status")
    if status.exists():
        used = int(status.read_text().split("VmData:")[1].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (used + size, resource.RLIM_INFINITY))
