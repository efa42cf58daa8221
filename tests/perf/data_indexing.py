"""Time and memory to load AffectNet's lists by their number of lines.

python tests/perf/data_indexing.py [--lines 10000 100000 414799 1000000] [--repeats 3]
    [--json FILE]

Writes a copy in the owners' layout (labels as frequent as in the real one, landmarks in every line,
an empty file for each picture) and loads it in a process of its own, which has already imported
everything. Medians over the repeats.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np

HEADER = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,"
    "expression,valence,arousal\n"
)
# Lines of the training list for each code, as published.
SHARES = [74874, 134415, 25459, 14090, 6378, 3803, 24882, 3750, 33088, 11645, 82415]
LOAD = """
import json, resource, sys, time, warnings
import datasets, pyarrow.csv
from vlmface import data
from vlmface.data.adapters import affectnet
warnings.simplefilter("ignore")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
wall, cpu = time.perf_counter(), time.process_time()
rows = data.load("affectnet", sys.argv[1])
print(json.dumps({
    "rows": len(rows), "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu,
    "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "before": before / 2**20,
}))
"""


def write(root: Path, lines: int) -> None:
    rng = np.random.default_rng(0)
    codes = rng.choice(len(SHARES), lines, p=np.array(SHARES) / sum(SHARES))
    landmarks = ";".join(f"{x:.2f};{y:.2f}" for x, y in rng.uniform(50, 900, (68, 2)))
    images = root / "Manually_Annotated_Images"
    for folder in range(1000):
        (images / str(folder)).mkdir(parents=True)
    lists = root / "Manually_Annotated_file_lists"
    lists.mkdir()
    with (lists / "training.csv").open("w") as file:
        file.write(HEADER)
        for number, code in enumerate(codes.tolist()):
            name = f"{number % 1000}/{number:056x}.jpg"
            os.close(os.open(images / name, os.O_CREAT))
            rating = "-2,-2" if code > 8 else f"{code / 10 - 0.4:.6f},{0.5 - code / 10:.6f}"
            file.write(f"{name},{number % 300},20,400,380,{landmarks},{code},{rating}\n")


def measure(name: str, about: str | None, write: Callable[[Path, int], None], load: str) -> None:
    """Print the time and memory of `load`, a script that is given a folder, after `write` has
    written so many lines there."""
    parser = harness.parser(about, repeats=3)
    parser.add_argument("--lines", type=int, nargs="+", default=[10000, 100000, 414799, 1000000])
    arguments = parser.parse_args()
    if arguments.small:
        arguments.lines, arguments.repeats = [1000], 1
    every = {}
    print(
        f"{'lines':>10}{'rows':>10}{'wall s':>9}{'CPU s':>8}{'us/line':>9}{'peak GiB':>10}"
        f"{'bytes/line':>12}"
    )
    for lines in arguments.lines:
        with tempfile.TemporaryDirectory() as root:
            write(Path(root), lines)
            runs = []
            for _ in range(arguments.repeats):
                done = subprocess.run(
                    [sys.executable, "-c", load, root], check=True, capture_output=True, text=True
                )
                runs.append(json.loads(done.stdout))
        every[str(lines)] = runs
        wall, cpu, rss, before = (
            statistics.median(run[key] for run in runs) for key in ("wall", "cpu", "rss", "before")
        )
        print(
            f"{lines:>10,}{runs[0]['rows']:>10,}{wall:>9.2f}{cpu:>8.2f}{wall / lines * 1e6:>9.1f}"
            f"{rss:>10.2f}{(rss - before) * 2**30 / lines:>12,.0f}",
            flush=True,
        )
    rows = {lines: runs[0]["rows"] for lines, runs in every.items()}
    harness.write(arguments.json, name, ratio={}, runs=every, equal={"rows": rows})


if __name__ == "__main__":
    measure("data_indexing", __doc__, write, LOAD)
