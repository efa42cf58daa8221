"""A face from the crop cache against decoding the photograph that it is from.

python tests/perf/crop_cache.py [--n 64] [--repeats 7] [--json FILE]

Both sides end with the same 224 x 224 pixels, which is checked: one opens a 1024 x 1024 JPEG and
cuts the face out, the other reads it from its pack. One thread, files in the page
cache, sides in turn, medians over the repeats.
"""

from __future__ import annotations

import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np
import skimage.data
from PIL import Image

BOX = [360.0, 140.0, 545.0, 360.0]


def write(root: Path, n: int) -> list[str]:
    """The photograph at 1024 x 1024, a little different in each file."""
    picture = Image.fromarray(skimage.data.astronaut()).resize((1024, 1024))
    rng = np.random.default_rng(0)
    paths = []
    for k in range(n):
        noise = rng.normal(0, 3, (1024, 1024, 3))
        noisy = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
        buffer = io.BytesIO()
        noisy.save(buffer, "JPEG", quality=92)
        paths.append(str(root / f"{k}.jpg"))
        Path(paths[-1]).write_bytes(buffer.getvalue())
    return paths


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = harness.parser(__doc__, repeats=7)
    parser.add_argument("--n", type=int, default=64)
    arguments = parser.parse_args()
    if arguments.small:
        arguments.n = arguments.repeats = 2
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VLMFACE_CACHE"] = f"{folder}/cache"
        from vlmface.data import crop_cache, crops
        from vlmface.data.dataset_rows import to_dataset
        from vlmface.data.row_images import open_row_image
        from vlmface.data.rows import Rows
        from vlmface.utils.images import open_image

        crop = crops.View(size=224)
        paths = write(Path(folder), arguments.n)
        n = len(paths)
        rows = to_dataset(
            Rows({"id": [f"x-{k}" for k in range(n)], "image": paths, "face_box": [BOX] * n}),
            "x",
            "train",
        )
        faces = crop_cache.cache_view(rows, crop, progress=False)["image"][:]
        fast = [np.asarray(open_row_image(face)) for face in faces]
        slow = [np.asarray(crops.render_view(open_image(path), BOX, crop)) for path in paths]
        np.testing.assert_array_equal(fast, slow)

        def decode() -> None:
            for path in paths:
                np.asarray(open_image(path))

        def decode_and_cut() -> None:
            for path in paths:
                np.asarray(crops.render_view(open_image(path), BOX, crop))

        def cached() -> None:
            for face in faces:
                np.asarray(open_row_image(face))

        sides = {"decode": decode, "decode and cut": decode_and_cut, "crop cache": cached}
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(arguments.repeats):
            for name, work in sides.items():
                times[name].append(seconds(work) / n)
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"{n} pictures of 1024 x 1024, {arguments.repeats} repeats, equal pixels")
    for name, value in median.items():
        print(f"{name:>16}: {value * 1e3:8.3f} ms/picture, {value / median['crop cache']:6.1f} x")
    harness.write(
        arguments.json,
        "crop_cache",
        ratio={"decode_and_cut": median["decode and cut"] / median["crop cache"]},
        runs=times,
        equal={"pixels": True},
    )


if __name__ == "__main__":
    main()
