"""`vlmface gateway` as a process of its own: its log, its end, costly pictures."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from helpers.gateway import KEY, wait_for
from helpers.hostile_images import DEAR
from helpers.hostile_requests import ANALYZE, FACE, b64, encoded
from helpers.samples import picture

# --- the command ----------------------------------------------------------------------------------


def rows(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


class Process:
    """`vlmface gateway` as users start it."""

    def __init__(self, *words: str, **environment: str) -> None:
        command = [sys.executable, "-m", "vlmface.cli", "gateway", "--port", "0", *words]
        self.process = subprocess.Popen(
            command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        wait_for(lambda: any('"listening"' in line for line in self.lines) or self.ended, 60)
        assert not self.ended, self.lines
        port = rows(self.lines)[-1]["port"]
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def written(self) -> set[str]:
        """The files that it has open to write."""
        found = set()
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                name, info = os.readlink(link), link.parents[1] / "fdinfo" / link.name
                flags = int(info.read_text().split("flags:")[1].split()[0], 8)
                if flags & os.O_ACCMODE and name.startswith("/") and name != os.devnull:
                    found.add(name)
        return found

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")
def test_the_command_logs_nothing_of_a_picture_writes_nothing_and_drains(
    run_dir: Path, tmp_path: Path
) -> None:
    large = encoded(picture(5, (1600, 1200)).effect_spread(5), "BMP")
    assert len(large) > 5_000_000
    gateway = Process(
        "--model",
        str(run_dir),
        "--client_keys_env",
        "CLIENT_KEYS",
        "--rate",
        "100",
        CLIENT_KEYS=KEY,
        TMPDIR=str(tmp_path),
    )
    try:
        client, key = gateway.client, {"Authorization": f"Bearer {KEY}"}
        before, during = gateway.written(), set[str]()
        watching = threading.Event()

        def watch() -> None:
            while not watching.wait(0.002):
                during.update(gateway.written())

        watcher = threading.Thread(target=watch)
        watcher.start()
        reply = client.post(
            ANALYZE,
            files={"image": ("SECRETNAME.bmp", large)},
            data={"faces": "none"},
            headers={**key, "X-Request-ID": "mine-1"},
        )
        assert reply.status_code == 200 and reply.headers["x-request-id"] == "mine-1"
        refused = client.post(ANALYZE, json={"image": "http://SECRETHOST/a"}, headers=key)
        assert refused.status_code == 422
        assert client.post(ANALYZE, files={"image": FACE}).status_code == 401
        watching.set()
        watcher.join()
        assert not list(tmp_path.iterdir())
        assert not during - before

        with ThreadPoolExecutor(12) as pool:
            begun = [
                pool.submit(client.post, ANALYZE, files={"image": large}, headers=key)
                for _ in range(8)
            ]
            wait_for(lambda: "answering 0.0" not in client.get("/metrics").text)
            gateway.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(httpx2.ConnectError):  # all done already
                wait_for(lambda: client.get("/healthz").json()["status"] == "draining")
                health = client.get("/healthz")
                assert health.status_code == 503
            statuses = [future.result().status_code for future in begun]
        assert set(statuses) <= {200, 503} and statuses.count(200) >= 1, statuses
        assert gateway.process.wait(30) == 0
    finally:
        gateway.process.kill()
        gateway.process.wait()
    said = rows(gateway.lines)
    mine = next(row for row in said if row.get("request_id") == "mine-1")
    assert mine | {"status": 200, "faces": 1, "route": ANALYZE, "reason": None} == mine
    assert mine["bytes"] > len(large)
    link = next(row for row in said if row.get("reason") == "link")
    assert link["status"] == 422 and 0 < link["bytes"] < 100
    assert said[-1]["event"] == "stopped"
    everything = "".join(gateway.lines)
    written = reply.json()["faces"][0]["answers"]["emotion"]["text"]
    for secret in ("SECRETNAME", "SECRETHOST", KEY, b64(large[:60]), written):
        assert secret not in everything


def test_the_command_says_what_is_wrong(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vlmface.cli import main

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["gateway", "--model", str(run_dir), "--port", port]) == 2
    assert "cannot listen at 127.0.0.1" in capsys.readouterr().err
    assert main(["gateway", "--model", str(run_dir), "--client_keys_env", "NOT_SET_KEYS"]) == 2
    assert "NOT_SET_KEYS is not set" in capsys.readouterr().err
    assert main(["gateway", "--model", str(run_dir), "--max_faces", "0"]) == 2
    assert "max_faces is 0" in capsys.readouterr().err


def children(pid: int) -> list[int]:
    """The processes that any thread of a process started."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(i) for task in tasks for i in (task / "children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks into /proc")
def test_a_decoder_that_hangs_does_not_outlive_the_gateway(run_dir: Path) -> None:
    gateway = Process("--model", str(run_dir), "--drain", "1", "--allowed_hosts", "faces.test")
    try:
        client = gateway.client
        assert client.post(ANALYZE, files={"image": FACE}).status_code == 200
        assert client.get("/healthz", headers={"Host": "attacker.test"}).status_code == 403
        assert client.get("/healthz", headers={"Host": "faces.test"}).status_code == 200
        workers = children(gateway.process.pid)
        assert workers
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        with ThreadPoolExecutor(4) as pool:
            for _ in range(4):
                pool.submit(client.post, ANALYZE, files={"image": FACE})
            wait_for(lambda: "answering 0.0" not in client.get("/metrics").text)
            began = time.monotonic()
            gateway.process.send_signal(signal.SIGTERM)
            assert gateway.process.wait(30) == 0
            assert time.monotonic() - began < 25
        wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    finally:
        gateway.process.kill()
        gateway.process.wait()


@pytest.mark.slow
def test_four_costly_pictures_at_a_time_do_not_delay_others(run_dir: Path) -> None:
    gateway = Process("--model", str(run_dir))
    try:
        post, ended = gateway.client.post, threading.Event()

        def attack(name: str) -> set[int]:
            statuses, bomb = set(), DEAR[name]()
            while not ended.is_set():
                statuses.add(post(ANALYZE, files={"image": bomb}).status_code)
            return statuses

        post(ANALYZE, files={"image": FACE})
        with ThreadPoolExecutor(4) as pool:
            costly = ("jpeg_50_scans_without_data", "jpeg_four_colours", "png_24mp", "jpeg2000_8mp")
            attacks = [pool.submit(attack, name) for name in costly]
            seconds = []
            for _ in range(60):
                began = time.monotonic()
                assert post(ANALYZE, files={"image": FACE}).status_code == 200
                seconds.append(time.monotonic() - began)
            ended.set()
            for one in attacks:
                assert one.result() <= {200, 422, 429}
        assert sorted(seconds)[int(0.95 * len(seconds))] < 3
    finally:
        gateway.process.kill()
        gateway.process.wait()
