"""`vlmface gateway` under load: many clients at once, against the same model asked one by one.

    python tests/perf/gateway_load.py [--seconds 60] [--clients N] [--bombs 0] [--model RUN]
                                      [--json FILE]

Without --model it asks a small LLaVA of random weights, which is not trained. First the model
answers one picture after the other in this process, for a third of the time. Then the real command
serves it in a process of its own, and every client sends the next picture as soon as the last one
is answered (after a 429 it waits as long as it is told). Statuses must be 200 or 429, and every
request must be answered. By default there are 64 clients, which is more than the
model can answer at once: each waits for the others. With --bombs there are 8, and so many more
clients that send pictures that cost as much to decode as the gateway allows; 95 % of the requests
of the 8 must still be answered within three seconds. The gateway's memory is read twice a second
(Linux): after ten seconds it may not grow.
"""

from __future__ import annotations

import asyncio
import collections
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import httpx2

ROOT = harness.ROOT
PICTURES = 32
WARM_S = 10.0  # after which memory may not grow
RATIO, GROWTH = 1.5, 0.05  # the bars
BESIDE_BOMBS_S = 3.0  # the bar for the time to answer, 95 %
BOMBS = ("jpeg_50_scans_without_data", "jpeg_four_colours", "png_24mp", "jpeg2000_8mp")


def build(folder: Path) -> None:
    from helpers.checkpoints import llava_sizes

    from vlmface import families, prompts

    corpus = [str(prompts.load("face_cot").messages()), "USER: ASSISTANT:"] * 20
    sizes = llava_sizes(112, vision=(64, 2), language=(128, 2, 256))
    families.get("llava").build_tiny(folder, corpus, **sizes)


def one_by_one(model: str, how: dict[str, str], images: list[Any], seconds: float) -> float:
    """Pictures a second of one who asks in this process."""
    from vlmface.infer.predictor import Predictor

    with Predictor.load(model, **how) as predictor:
        predictor.predict(images[:1], faces="none")  # warms up
        began, n = time.perf_counter(), 0
        while (passed := time.perf_counter() - began) < seconds:
            predictor.predict(images[n % len(images)], faces="none")
            n += 1
    return n / passed


class Gateway:
    """The real command."""

    def __init__(self, model: str, how: dict[str, str]) -> None:
        words = [word for name, value in how.items() for word in (f"--{name}", value)]
        command = [sys.executable, "-m", "vlmface.cli", "gateway", "--model", model, "--port", "0"]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self.process = subprocess.Popen(
            [*command, *words],
            cwd=ROOT,
            stderr=self.log,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.url = f"http://127.0.0.1:{self._port()}"

    def _port(self) -> int:
        while self.process.poll() is None:
            self.log.seek(0)
            for line in self.log:
                if '"listening"' in line:
                    return int(json.loads(line)["port"])
            time.sleep(0.2)
        self.log.seek(0)
        raise SystemExit(f"the gateway ended: {self.log.read()}")

    def rss_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self.log.close()
        return code


async def load(
    gateway: Gateway, bodies: list[bytes], clients: int, seconds: float, bombs: Sequence[bytes] = ()
) -> tuple[dict[str, int], int, list[tuple[float, float]], list[float]]:
    """({status: how many}, requests without any answer, [(seconds, MB of memory)], seconds of each
    200) of those that were answered in time; what is begun then is awaited, and counts as lost if
    nothing comes."""
    statuses: collections.Counter[str] = collections.Counter()
    memory: list[tuple[float, float]] = []
    latencies: list[float] = []
    lost = 0
    began = time.perf_counter()

    async def client(http: httpx2.AsyncClient, number: int) -> None:
        nonlocal lost
        n = number
        while time.perf_counter() - began < seconds:
            sent = time.perf_counter()
            try:
                body: Any = {"files": {"image": bodies[n % len(bodies)]}}
                reply = await http.post("/v1/analyze", data={"faces": "none"}, **body)
            except httpx2.TransportError as error:
                print(f"lost: {type(error).__name__} {error}")
                lost += 1
                continue
            now = time.perf_counter()
            late = " (late)" if now - began > seconds else ""
            statuses[f"{reply.status_code}{late}"] += 1
            if reply.status_code == 429:
                await asyncio.sleep(int(reply.headers["retry-after"]))
            elif reply.status_code == 200 and not late:
                latencies.append(now - sent)
            n += 1

    async def attacker(http: httpx2.AsyncClient, bomb: bytes) -> None:
        """Sends one picture again and again. It may be refused, but not crash anything."""
        while time.perf_counter() - began < seconds:
            reply = await http.post("/v1/analyze", files={"image": bomb})
            assert reply.status_code in (200, 422, 429), reply.text
            if reply.status_code == 429:
                await asyncio.sleep(int(reply.headers["retry-after"]))

    async def watch() -> None:
        while True:
            memory.append((round(time.perf_counter() - began, 1), round(gateway.rss_mb(), 1)))
            await asyncio.sleep(0.5)

    most = clients + len(bombs)
    limits = httpx2.Limits(max_connections=most, max_keepalive_connections=most)
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=120, limits=limits) as http:
        watcher = asyncio.create_task(watch())
        await asyncio.gather(
            *(client(http, i) for i in range(clients)), *(attacker(http, bomb) for bomb in bombs)
        )
        watcher.cancel()
    return dict(statuses), lost, memory, latencies


def growth_of(memory: list[tuple[float, float]]) -> float:
    """Of the last third against the first, after WARM_S: of the largest value or of the median,
    whichever has grown more. In between it rises and falls with every batch."""
    after = [mb for when, mb in memory if when >= WARM_S]
    third = len(after) // 3
    if not third:
        return 0.0
    first, last = after[:third], after[-third:]
    return max(measure(last) / measure(first) - 1 for measure in (max, statistics.median))


def costly(count: int) -> list[bytes]:
    from helpers import hostile_images

    return [hostile_images.DEAR[BOMBS[i % len(BOMBS)]]() for i in range(count)]


def main() -> None:
    parser = harness.parser(__doc__, repeats=1)  # one long run
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, help="default: 64, with --bombs 8")
    parser.add_argument("--bombs", type=int, default=0, help="clients that send costly pictures")
    parser.add_argument("--model", help="run folder (default: a random model)")
    words = parser.parse_args()
    if words.clients is None:
        words.clients = 8 if words.bombs else 64
    if words.small:
        words.seconds, words.clients = 2.0, 4

    from vlmface.evaluate import answering
    from vlmface.synth import dataset

    images = answering.images_of(dataset.load("test", n=PICTURES, size=112))
    bodies = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        bodies.append(buffer.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        model, how = words.model, {}
        if model is None:
            model, how = folder, {"prompt": "face_cot"}
            build(Path(folder))
        alone = one_by_one(model, how, images, words.seconds / 3)
        print(f"one by one, in this process: {alone:.2f} pictures a second", flush=True)
        gateway = Gateway(model, how)
        try:
            httpx2.post(f"{gateway.url}/v1/analyze", files={"image": bodies[0]}, timeout=120)
            statuses, lost, memory, latencies = asyncio.run(
                load(gateway, bodies, words.clients, words.seconds, costly(words.bombs))
            )
        finally:
            code = gateway.stop()
    together = statuses.get("200", 0) / words.seconds
    odd = sum(n for status, n in statuses.items() if status[:3] not in ("200", "429"))
    growth, latencies = growth_of(memory), sorted(latencies) or [0.0]
    ratio = together / alone
    print(
        f"{words.clients} clients: {together:.2f} pictures a second, {ratio:.2f} times as many "
        f"(bar {RATIO}); statuses {statuses}, lost {lost}, exit code {code}"
    )
    middle, late, last = (latencies[int(len(latencies) * share)] for share in (0.5, 0.95, 0.99))
    print(
        f"time to answer: median {middle:.2f} s, 95 % within {late:.2f} s, 99 % within {last:.2f} s"
    )
    print(
        f"memory {memory[0][1]:.0f} to {memory[-1][1]:.0f} MB, "
        f"growth after {WARM_S:g} s {growth:.1%} (bar {GROWTH:.0%})"
    )
    run = {
        "alone_per_s": alone,
        "together_per_s": together,
        "clients": words.clients,
        "seconds": words.seconds,
        "bombs": words.bombs,
        "p95_s": late,
        "statuses": statuses,
        "rss_mb": memory,
        "rss_growth": growth,
        "exit_code": code,
    }
    harness.write(
        words.json,
        "gateway_load",
        ratio={"throughput": ratio},
        runs=[run],
        equal={"errors_not_429": odd, "lost": lost},
    )
    assert odd == 0 and lost == 0 and code == 0
    assert not words.bombs or late < BESIDE_BOMBS_S


if __name__ == "__main__":
    main()
