"""Time and memory to load a table of the user's own by its number of lines.

python tests/perf/table_indexing.py [--lines 10000 100000 414799 1000000] [--repeats 3]
    [--json FILE]

Writes a csv (path, label, subject, age, four columns of a box, three intensities of action units,
confidence) and an empty file for each picture, and loads it with a filter that keeps 4 of 5 rows.
"""

from __future__ import annotations

import os
from pathlib import Path

import data_indexing

HEADER = "file,label,subject,age,x0,y0,x1,y1,AU01_r,AU04_r,AU12_r,confidence\n"
WORDS = ("Happy", "sad", "anger", "neutral", "fear")
LOAD = """
import json, resource, sys, time, warnings
import datasets, pyarrow.csv
from vlmface import data
from vlmface.data.adapters import table
warnings.simplefilter("ignore")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
wall, cpu = time.perf_counter(), time.process_time()
rows = data.load(
    "table", f"{sys.argv[1]}/faces.csv", aus="AU*_r", au_values="intensity",
    columns={"image": "file", "emotion": "label", "face_box": ["x0", "y0", "x1", "y1"]},
    where="confidence >= 0.2",
)
print(json.dumps({
    "rows": len(rows), "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu,
    "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "before": before / 2**20,
}))
"""


def write(root: Path, lines: int) -> None:
    for folder in range(1000):
        (root / str(folder)).mkdir()
    with (root / "faces.csv").open("w") as file:
        file.write(HEADER)
        for n in range(lines):
            name = f"{n % 1000}/{n:07d}.jpg"
            os.close(os.open(root / name, os.O_CREAT))
            grades = ",".join(f"{n * step % 500 / 100:.2f}" for step in (1, 7, 3))
            file.write(
                f"{name},{WORDS[n % 5]},s{n // 50},{20 + n % 60},{n % 30},{n % 20},"
                f"{100 + n % 30}.5,{120 + n % 20},{grades},{n % 1000 / 1000:.3f}\n"
            )


if __name__ == "__main__":
    data_indexing.measure("table_indexing", __doc__, write, LOAD)
