"""Example inputs: rendered faces, scenes and a clip, so that the demo contains no real person."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from vlmface.demo import clips as videos
from vlmface.label_spaces import EMOTIONS, space
from vlmface.synth import clips, dataset, scenes

if TYPE_CHECKING:
    from vlmface.synth.faces import Sample

_SPLIT, _SEED = "test", 0  # no model of the recipes was trained on these people
_FACE_SIZE = 320  # pixels a side
_SCENE_SIZE = 448
_PEOPLE_IN_SCENE = 3
_CLIP, _CLIP_FRAMES, _CLIP_RATE = 9, 16, 5  # a grimace, and at the end a smile
_CLIP_SIZE = 256


def write_faces(folder: Path) -> tuple[list[Path], Path]:
    """Write example pictures of faces.

    Args:
        folder: Is created.

    Returns:
        (a face for each emotion, each of another person; a picture of several people).
    """
    from vlmface.synth.render import render

    folder.mkdir(parents=True, exist_ok=True)
    paths, pictures = [], []
    for emotion, sample in _sample_of_each_emotion().items():
        pictures.append(Image.fromarray(render(sample.face, _FACE_SIZE).image))
        paths.append(folder / f"{emotion}.png")
        pictures[-1].save(paths[-1])
    group = folder / "three_people.png"
    join_horizontally(pictures[:_PEOPLE_IN_SCENE]).save(group)
    return paths, group


def write_scenes(folder: Path) -> list[Path]:
    """Write a person at a desk for each state of synth_scenes, each another person.

    Args:
        folder: Is created.
    """
    from vlmface.synth.scene_render import render_scene

    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    index = 0
    while len(paths) < len(space("raer5").labels):
        sample = scenes.draw(_SEED, _SPLIT, index)
        if sample.label not in paths:
            paths[sample.label] = folder / f"{sample.label}.png"
            Image.fromarray(render_scene(sample.scene, _SCENE_SIZE).image).save(paths[sample.label])
            index = _first_of_next_person(index)
        else:
            index += 1
    return list(paths.values())


def write_clip(folder: Path) -> tuple[Path, Path]:
    """Write a clip of synth_clips.

    Args:
        folder: Is created.

    Returns:
        (the video, its middle frame).
    """
    from vlmface.synth.head import head_model
    from vlmface.synth.render import render

    folder.mkdir(parents=True, exist_ok=True)
    sample = clips.draw(_SEED, _SPLIT, _CLIP, _CLIP_FRAMES)
    neutral = head_model().neutral(sample.face.identity)
    frames = [
        Image.fromarray(render(face, _CLIP_SIZE, rest_pose=neutral).image)
        for face in clips.faces(sample)
    ]
    video, icon = folder / f"{sample.label}.mp4", folder / f"{sample.label}_clip.png"
    videos.write_video(video, frames, _CLIP_RATE)
    frames[len(frames) // 2].save(icon)
    return video, icon


def _sample_of_each_emotion() -> dict[str, Sample]:
    samples: dict[str, Sample] = {}
    index = 0
    while len(samples) < len(EMOTIONS):
        sample = dataset.draw(_SEED, _SPLIT, index)
        if sample.expression.emotion not in samples and sample.expression.aus:
            samples[sample.expression.emotion] = sample
            index = _first_of_next_person(index)
        else:
            index += 1
    return samples


def _first_of_next_person(index: int) -> int:
    return (index // dataset.FACES_PER_IDENTITY + 1) * dataset.FACES_PER_IDENTITY


def join_horizontally(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one height, side by side."""
    joined = Image.new("RGB", (sum(picture.width for picture in pictures), pictures[0].height))
    left = 0
    for picture in pictures:
        joined.paste(picture, (left, 0))
        left += picture.width
    return joined
