"""CPU time of a face that `vlmface.aus` estimates, against the way that it takes where the face
detector alone is not sure of a face: the landmarker searches the picture first.

python tests/perf/aus_speed.py [--repeats 5] [--json FILE]

The pictures are rendered faces of 144 pixels and a photograph of 512, all decoded before. It prints
milliseconds of CPU time, medians over the repeats, and how many decisions about an AU agree.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import harness
import numpy as np
from PIL import Image


def pictures(rendered: int) -> list[Image.Image]:
    import skimage.data

    from vlmface import data

    faces = data.load("synth", split="test", n=rendered, progress=False)["image"]
    padded = [
        np.pad(face, ((24, 24), (24, 24), (0, 0)), mode="edge") for face in map(np.array, faces)
    ]
    return [*map(Image.fromarray, padded), Image.fromarray(skimage.data.astronaut())]


def main() -> None:
    from vlmface.aus.estimator import Estimator

    options = harness.parser(__doc__).parse_args()
    images = pictures(2 if options.small else 39)
    repeats = 1 if options.small else options.repeats
    with Estimator() as estimator:

        def searched(image: Image.Image) -> Any:
            box = estimator._detector.face(image)
            return None if box is None else estimator.at_boxes(image, [box])[0]

        ways: dict[str, Callable[[Image.Image], Any]] = {
            "largest": estimator.largest,
            "searched": searched,
        }
        runs: dict[str, list[float]] = {name: [] for name in ways}
        faces: dict[str, list[Any]] = {
            name: [way(image) for image in images] for name, way in ways.items()
        }
        for _ in range(repeats):
            for name, way in ways.items():
                start = time.process_time()
                for image in images:
                    way(image)
                runs[name].append((time.process_time() - start) / len(images) * 1000)
    pairs = [
        (units.present.keys(), other.present.keys(), units.aus)
        for units, other in zip(faces["largest"], faces["searched"], strict=True)
        if units and other
    ]
    agreeing = sum(len(aus) - len(a ^ b) for a, b, aus in pairs) / sum(
        len(aus) for *_, aus in pairs
    )
    medians = {name: statistics.median(times) for name, times in runs.items()}
    ratio = medians["searched"] / medians["largest"]
    print(
        f"{medians['largest']:.1f} ms of CPU time a face, {medians['searched']:.1f} ms with a "
        f"search ({ratio:.2f} times as long); {len(pairs)} of {len(images)} faces found in both "
        f"ways, {agreeing:.1%} of the decisions about AUs agree"
    )
    harness.write(
        options.json,
        "aus_speed",
        ratio={"cpu_time": ratio},
        runs=runs,
        equal={"faces": [len(pairs), len(images)], "decisions": agreeing},
    )


if __name__ == "__main__":
    main()
