"""The tabs. Each function lays out one tab and defines its event handlers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from vlmface.demo import batch, clips, model_choices, views
from vlmface.demo.clip_tab import clip_tab
from vlmface.demo.event_handlers import open_upload, with_error_output
from vlmface.demo.playground_tab import playground_tab
from vlmface.demo.tab_parts import (
    EMPTY,
    answer_page,
    example_kind,
    face_choice,
    picture_input,
    queue_options,
    show_intro,
    stream_face,
)

if TYPE_CHECKING:
    from vlmface.demo.state import Demo


# --- Analyse --------------------------------------------------------------------------------------


def analyse_tab(demo: Demo) -> None:
    """The tab for one picture or video."""
    intro = "Upload a picture, paste it, or take it with the webcam. Every face is framed."
    if model_choices.outputs_action_units(demo.predictor):
        intro += (
            " Point at an action unit, or reach it with the Tab key, to mark its part of the face "
            "in the picture."
        )
    show_intro(intro)
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=300):
            image, picture, choice = picture_input(demo.examples, kind=example_kind(demo))
        with gr.Column(scale=6, min_width=300):
            answer = gr.HTML(EMPTY, elem_classes="vf-said")

    @with_error_output(3)
    def start(path: str | None) -> Iterator[Any]:
        if path is None:
            yield "", face_choice([], None), EMPTY
            return
        upload = open_upload(path)
        search = demo.face_finder.find(upload)
        faces = search.faces
        selected = None if demo.predictor.default_faces == "none" else search.selected
        drawn = views.picture(upload, faces, selected, note=search.note)
        yield drawn, face_choice(faces, selected), gr.skip()
        for html in stream_face(demo, upload, faces, selected):
            yield gr.skip(), gr.skip(), html

    @with_error_output(2)
    def choose(path: str, selected: int | None) -> Iterator[Any]:
        upload = open_upload(path)
        search = demo.face_finder.find(upload)
        yield views.picture(upload, search.faces, selected, note=search.note), gr.skip()
        for html in stream_face(demo, upload, search.faces, selected):
            yield gr.skip(), html

    queue = queue_options(demo)
    image.change(start, image, [picture, choice, answer], show_progress_on=answer, **queue)
    choice.input(choose, [image, choice], [picture, answer], show_progress_on=answer, **queue)


# --- Compare --------------------------------------------------------------------------------------


def compare_tab(demo: Demo) -> None:
    """The tab that compares the answers of two models or prompts."""
    names = [choice.name for choice in demo.choices]
    if len(names) < 2:
        show_intro(
            "The demo was started with one model and one prompt, so there is nothing to compare. "
            "Start it with <code>--compare RUN</code> to add a second model, or with a run that "
            "answers several prompts."
        )
        return
    show_intro("Compare two models, or two prompts of one model, on the largest face of a picture.")
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=280):
            image, picture, _ = picture_input(demo.examples, kind=example_kind(demo))
        with gr.Column(scale=4, min_width=280):
            left = gr.Dropdown(names, value=names[0], label="First model", type="index")
            left_answer = gr.HTML()
        with gr.Column(scale=4, min_width=280):
            right = gr.Dropdown(names, value=names[-1], label="Second model", type="index")
            right_answer = gr.HTML()

    @with_error_output(3)
    def compare(path: str | None, first: int, second: int) -> Iterator[Any]:
        if path is None:
            yield "", "", ""
            return
        upload = open_upload(path)
        search = demo.face_finder.find(upload)
        largest_box = search.selected_face.box if search.selected_face else None
        drawn = views.picture(upload, search.faces, search.selected, note=search.note)
        yield drawn, gr.skip(), gr.skip()
        answers: list[str] = []
        for number in (first, second):
            choice = demo.choices[number]
            box = model_choices.default_box(choice.predictor, largest_box)
            heading = "The whole picture" if box is None else "The largest face"
            view = model_choices.face_view(choice.predictor, upload, box)
            answers.append(answer_page(choice.predictor, choice.predict(view), heading, view))
            yield gr.skip(), answers[0], answers[1] if len(answers) > 1 else gr.skip()

    for event in (image.change, left.input, right.input):
        event(
            compare,
            [image, left, right],
            [picture, left_answer, right_answer],
            show_progress_on=[left_answer, right_answer],
            **queue_options(demo),
        )


# --- Several people -------------------------------------------------------------------------------


def people_tab(demo: Demo) -> None:
    """The tab for several people in one picture."""
    cropped = "The model receives each face separately, without the people around it."
    with_context = "The model receives one face after the other, with its surroundings."
    uses_context = model_choices.uses_context(demo.predictor)
    show_intro(f"All faces of one picture at once. {with_context if uses_context else cropped}")
    with gr.Column(elem_classes="vf-wide"):
        image, picture, _ = picture_input([demo.scene], "Picture of several people")
    table = gr.HTML()

    @with_error_output(2)
    def analyse_all(path: str | None) -> Iterator[Any]:
        if path is None:
            yield "", ""
            return
        upload = open_upload(path)
        search = demo.face_finder.find(upload)
        faces = search.faces
        yield views.picture(upload, faces, None, note=search.note), gr.skip()
        if not faces:
            view = model_choices.face_view(demo.predictor, upload, None)
            prompts = demo.predictor.select_prompts(None)
            (report,) = demo.predictor.predict_views([view], prompts)
            yield gr.skip(), answer_page(demo.predictor, report, "The whole picture", view)
            return
        boxes = [face.box for face in faces]
        reports = demo.predictor.predict([upload] * len(boxes), boxes=boxes)
        show_rationale = model_choices.outputs_action_units(demo.predictor)
        rows = views.people(
            upload, faces, reports, demo.predictor.tasks, show_rationale=show_rationale
        )
        yield gr.skip(), rows

    image.change(
        analyse_all, image, [picture, table], show_progress_on=table, **queue_options(demo)
    )


# --- Batch ----------------------------------------------------------------------------------------


def batch_tab(demo: Demo) -> None:
    """The tab that makes a table of many pictures."""
    unit = "picture" if demo.predictor.default_faces == "none" else "face"
    show_intro(
        f"Up to {batch.MAX_FILES} pictures, as files or in zip archives. Every {unit} becomes a "
        "row; a file that cannot be read becomes a row with the reason. The table can be "
        "downloaded as CSV or JSON."
    )
    files = gr.File(
        label="Pictures or zip archives", file_count="multiple", elem_classes="vf-files", height=180
    )
    button = gr.Button("Analyse all", variant="primary")
    table = gr.HTML(elem_classes="vf-said")

    @with_error_output(1)
    def analyse_files(
        paths: list[str] | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[Any]:
        items = batch.read_files([Path(path) for path in paths or []])
        rows: list[batch.Row] = []
        for finished, item in enumerate(items):
            description = f"{finished} of {len(items)} files"
            progress((finished, len(items)), desc=description, unit="files")
            rows += batch.predict_item(item, demo.predictor, demo.face_finder)
        tasks = demo.predictor.tasks
        downloads = {
            "answers.csv": ("text/csv", batch.as_csv(rows, tasks)),
            "answers.json": ("application/json", batch.as_json(rows)),
        }
        show_rationale = model_choices.outputs_action_units(demo.predictor)
        yield views.batch(rows, len(items), tasks, downloads, show_rationale=show_rationale)

    # A batch has a queue of its own: between its files the model can answer other events.
    button.click(analyse_files, files, table, **queue_options(demo, "batches"))


# --- About ----------------------------------------------------------------------------------------


def about_tab(demo: Demo) -> None:
    """The tab about the model and its limitations."""
    video_install = None if clips.can_read_videos() else clips.INSTALL
    gr.HTML(views.about(demo.cards, demo.limitations, demo.face_finder.missing, video_install))


TABS: dict[str, Callable[[Demo], None]] = {
    "Analyse": analyse_tab,
    "Compare": compare_tab,
    "Several people": people_tab,
    "Clip": clip_tab,
    "Batch": batch_tab,
    "Synth playground": playground_tab,
    "About": about_tab,
}
