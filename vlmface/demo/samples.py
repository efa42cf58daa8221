"""Pictures to try the demo with: rendered faces, so that nobody's face comes with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from vlmface.synth import dataset
from vlmface.taxonomy import EMOTIONS

if TYPE_CHECKING:
    from vlmface.synth.faces import Sample

_SPLIT, _SEED = "test", 0  # people that no model of the recipes was trained on
_SIZE = 320  # pixels a side
_IN_SCENE = 3


def write(folder: Path) -> tuple[list[Path], Path]:
    """(a face for each emotion, each another person's; a scene of several people), as files."""
    from vlmface.synth.render import render

    folder.mkdir(parents=True, exist_ok=True)
    paths, pictures = [], []
    for emotion, sample in _one_of_each().items():
        pictures.append(Image.fromarray(render(sample.face, _SIZE).image))
        paths.append(folder / f"{emotion}.png")
        pictures[-1].save(paths[-1])
    scene = folder / "three_people.png"
    side_by_side(pictures[:_IN_SCENE]).save(scene)
    return paths, scene


def _one_of_each() -> dict[str, Sample]:
    found: dict[str, Sample] = {}
    index = 0
    while len(found) < len(EMOTIONS):
        sample = dataset.draw(_SEED, _SPLIT, index)
        if sample.expression.emotion not in found and sample.expression.aus:
            found[sample.expression.emotion] = sample
            index = (index // dataset.FACES_PER_IDENTITY + 1) * dataset.FACES_PER_IDENTITY
        else:
            index += 1
    return found


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one height as one."""
    scene = Image.new("RGB", (sum(one.width for one in pictures), pictures[0].height))
    left = 0
    for one in pictures:
        scene.paste(one, (left, 0))
        left += one.width
    return scene
