"""What to try the demo with: rendered faces, scenes and a clip, so that nobody's face comes with
it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from vlmface.demo import clips as videos
from vlmface.label_spaces import EMOTIONS, space
from vlmface.synth import clips, dataset, scenes

if TYPE_CHECKING:
    from vlmface.synth.faces import Sample

_SPLIT, _SEED = "test", 0  # people that no model of the recipes was trained on
_SIZE = 320  # pixels a side
_SCENE_SIZE = 448
_IN_SCENE = 3
_CLIP, _CLIP_FRAMES, _CLIP_RATE = 9, 16, 5  # a grimace, and at the end a smile
_CLIP_SIZE = 256


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


def write_scenes(folder: Path) -> list[Path]:
    """A person at a desk for each state that synth_scenes has, each another person, as files."""
    from vlmface.synth.scene_render import render_scene

    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    index = 0
    while len(found) < len(space("raer5").labels):
        sample = scenes.draw(_SEED, _SPLIT, index)
        if sample.label not in found:
            found[sample.label] = folder / f"{sample.label}.png"
            Image.fromarray(render_scene(sample.scene, _SCENE_SIZE).image).save(found[sample.label])
            index = (index // dataset.FACES_PER_IDENTITY + 1) * dataset.FACES_PER_IDENTITY
        else:
            index += 1
    return list(found.values())


def write_clip(folder: Path) -> tuple[Path, Path]:
    """(a clip of synth_clips as a video, its middle frame), as files."""
    from vlmface.synth.head import head_model
    from vlmface.synth.render import render

    folder.mkdir(parents=True, exist_ok=True)
    sample = clips.draw(_SEED, _SPLIT, _CLIP, _CLIP_FRAMES)
    rest = head_model().neutral(sample.face.identity)
    frames = [
        Image.fromarray(render(face, _CLIP_SIZE, rest_pose=rest).image)
        for face in clips.faces(sample)
    ]
    video, icon = folder / f"{sample.label}.mp4", folder / f"{sample.label}_clip.png"
    videos.write(video, frames, _CLIP_RATE)
    frames[len(frames) // 2].save(icon)
    return video, icon


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
