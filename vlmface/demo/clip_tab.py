"""The tab for videos."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.data_classes import FileData

from vlmface.data.clips import frames_to_extract
from vlmface.demo import clips, model_choices, views
from vlmface.demo.event_handlers import with_error_output
from vlmface.demo.tab_parts import (
    EMPTY,
    HIDDEN,
    example_buttons,
    queue_options,
    show_intro,
    stream_answer,
)
from vlmface.infer.face_report import FaceReport

if TYPE_CHECKING:
    from vlmface.demo.state import Demo
    from vlmface.infer.predictor import Predictor

_FRAME_BATCH = 4  # frames that are analysed at once


def clip_tab(demo: Demo) -> None:
    """The tab for a CLIP classifier."""
    predictor = demo.predictor
    if demo.clip is None:
        show_intro(
            f"Videos cannot be read here: <code>{clips.INSTALL}</code>, and start the demo again."
        )
        return
    single = predictor.frames == 1
    usage = f"This model uses {predictor.frames} of its frames at once."
    if single:
        usage = "This model uses the middle frame; it can also analyse each frame separately."
    show_intro(f"Upload a video of one person, some seconds long, or record one. {usage}")
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=300), gr.Column(elem_classes="vf-input vf-clip"):
            video = _clip_upload()
            picture = gr.HTML(elem_classes="vf-shown")
            again = gr.Button("Another clip", elem_classes="vf-again", size="sm")
            again.click(lambda: None, None, video, show_progress="hidden", **HIDDEN)
            example_buttons(video, [demo.clip], "clip")
        with gr.Column(scale=6, min_width=300):
            answer = gr.HTML(EMPTY, elem_classes="vf-said")
            each_button = gr.Button("Analyse each frame", elem_classes="vf-each", visible=single)
    timeline = gr.HTML(elem_classes="vf-said")

    @with_error_output(3)
    def start(path: str | None) -> Iterator[Any]:
        if path is None:
            yield "", "", EMPTY
            return
        clip = clips.read_clip(path, frames_to_extract(predictor.frames), demo.face_finder)
        if not single:
            yield views.clip(clip.frames, clip.faces, None), "", gr.skip()
            yield gr.skip(), gr.skip(), _clip_answer(demo, clip)
            return
        middle = clips.middle_frame(clip)
        yield views.clip(clip.frames, clip.faces, middle), "", gr.skip()
        heading = f"The middle one of {len(clip.frames)} frames"
        box = model_choices.default_box(predictor, clip.boxes[middle])
        for html in stream_answer(demo, clip.frames[middle], box, heading):
            yield gr.skip(), gr.skip(), html

    @with_error_output(1)
    def each(path: str | None, progress: gr.Progress = gr.Progress()) -> Iterator[Any]:  # noqa: B008
        if path is None:
            yield views.note("Upload or record a video first.")
            return
        clip = clips.read_clip(path, frames_to_extract(predictor.frames), demo.face_finder)
        yield views.timeline(clip.frames, clip.faces, _frame_reports(predictor, clip, progress))

    # Videos have a queue of their own: while one is decoded the model can answer other events.
    queue = queue_options(demo, "clips")
    video.change(start, video, [picture, timeline, answer], show_progress_on=answer, **queue)
    each_button.click(each, video, timeline, **queue)


def _frame_reports(
    predictor: Predictor, clip: clips.Clip, progress: gr.Progress
) -> list[FaceReport]:
    """A report on each frame. Other events can run between the batches."""
    reports: list[FaceReport] = []
    total = len(clip.frames)
    prompts = predictor.select_prompts(model_choices.primary_task(predictor))
    for first in range(0, total, _FRAME_BATCH):
        progress((first, total), desc=f"{first} of {total} frames", unit="frames")
        part = slice(first, first + _FRAME_BATCH)
        frame_views = [
            model_choices.face_view(predictor, frame, model_choices.default_box(predictor, box))
            for frame, box in zip(clip.frames[part], clip.boxes[part], strict=True)
        ]
        reports += predictor.predict_views(frame_views, prompts)
    return reports


def _clip_upload() -> gr.Video:
    video = gr.Video(
        label="Clip",
        sources=["upload", "webcam"],
        include_audio=False,
        height=300,
        buttons=[],
        elem_classes="vf-upload",
    )
    # Gradio would decode and encode the file with ffmpeg; `clips.read_clip` validates it instead.
    video.preprocess = lambda payload: payload.path if payload else None
    video.postprocess = lambda path: FileData(path=path) if path else None
    return video


def _clip_answer(demo: Demo, clip: clips.Clip) -> str:
    """The answer of a model that uses several frames."""
    predictor, total = demo.predictor, len(clip.frames)
    missing = len(clip.frames_without_face)
    notes = []
    if missing < total and predictor.default_faces != "none":
        report = predictor.predict_clip(clip.frames, clip.boxes)
        if missing:
            notes.append(
                f"No face was found in {missing} of {total} frames: the model received these "
                "uncropped."
            )
        if clip.has_several_faces:
            notes.append(
                "Several faces are in the clip: the model received the largest of each frame, "
                "which may be different people."
            )
    else:
        (report,) = predictor.predict([clip.frames], faces=predictor.default_faces)
        notes += model_choices.no_face_notes(predictor, report, "uncropped frames")
    return views.answer(
        report, f"The clip, {total} frames", notes, model_choices.describe_clip_input(predictor)
    )
