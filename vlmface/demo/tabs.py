"""The tabs. Each function lays out one tab and defines its event handlers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.data_classes import FileData

from vlmface import facs
from vlmface.data.clips import frames_to_extract
from vlmface.demo import batch, clips, model_choices, playground, views
from vlmface.demo.event_handlers import open_upload, with_error_output
from vlmface.demo.face_detection import Face, largest_face
from vlmface.infer.face_report import FaceReport
from vlmface.label_spaces import EMOTIONS

if TYPE_CHECKING:
    from PIL import Image

    from vlmface.data.detect import Box
    from vlmface.demo.state import Demo
    from vlmface.infer.face_views import FaceView
    from vlmface.infer.predictor import Predictor

_HIDDEN: dict[str, Any] = {"api_visibility": "private"}
_UPDATE_INTERVAL_S = 0.08  # of a text that is being generated
_FRAME_BATCH = 4  # frames that are analysed at once
_HEAD_ONLY = "The head fills the picture: there are no surroundings for the model to judge."
_EMPTY = views.note("The answer appears here.")


# --- shared by tabs -------------------------------------------------------------------------------


def _queue(demo: Demo, queue: str = "pictures") -> dict[str, Any]:
    """Options of an event that runs the model: all events of a queue wait in one line, and show
    their place in it."""
    return {
        **_HIDDEN,
        "concurrency_id": queue,
        "concurrency_limit": demo.concurrency,
        "trigger_mode": "always_last",
    }


def _intro(text: str) -> None:
    gr.HTML(f'<p class="vf-intro">{text}</p>')


def _upload(label: str) -> gr.Image:
    image = gr.Image(
        label=label,
        type="filepath",
        sources=["upload", "clipboard", "webcam"],
        height=300,
        buttons=[],
        elem_classes="vf-upload",
        placeholder="Drop a picture here, or click to choose one",
    )
    # Gradio would decode the file with every format of Pillow; `open_upload` validates it instead.
    image.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign]
    return image


def _picture_input(
    examples: list[Path], label: str = "Picture", kind: str = "face"
) -> tuple[gr.Image, gr.HTML, gr.Radio]:
    """The upload field, the picture that replaces it, and the choice of a face."""
    with gr.Column(elem_classes="vf-input"):
        image = _upload(label)
        picture = gr.HTML(elem_classes="vf-shown")
        choice = gr.Radio(
            [],
            label="Which face? Choose here or in the picture",
            type="index",
            visible=False,
            elem_classes="vf-choice",
        )
        again = gr.Button("Another picture", elem_classes="vf-again", size="sm")
        again.click(lambda: None, None, image, show_progress="hidden", **_HIDDEN)
        _examples(image, [(path, path) for path in examples], kind)
    return image, picture, choice


def _examples(field: gr.Image | gr.Video, files: list[tuple[Path, Path]], kind: str) -> None:
    """Buttons that put a file into the upload field; `files` are (file, icon)."""
    with gr.Column(elem_classes="vf-examples"):
        gr.HTML(views.note(f"Or try a rendered {kind}:"))
        with gr.Row(elem_classes="vf-thumbnails"):
            for path, icon in files:
                name = path.stem.replace("_", " ")
                button = gr.Button(name, icon=icon, size="sm", min_width=64, scale=0)
                # Otherwise Gradio would delete them like old uploads.
                button.keep_in_cache |= {str(path), str(icon)}
                button.click(partial(str, path), None, field, show_progress="hidden", **_HIDDEN)


def _face_choice(faces: list[Face], selected: int | None) -> Any:
    names = [f"Face {number}" for number in range(1, len(faces) + 1)]
    value = None if selected is None or not names else names[selected]
    return gr.Radio(choices=names, value=value, visible=len(names) > 1)


def _example_kind(demo: Demo) -> str:
    return "scene" if model_choices.uses_context(demo.predictor) else "face"


def _answer(
    predictor: Predictor,
    report: FaceReport,
    heading: str,
    view: FaceView,
    notes: Sequence[str] = (),
) -> str:
    """A report with notes on the model's input."""
    notes = [*notes, *model_choices.no_face_notes(predictor, report)]
    return views.answer(report, heading, notes, *_input(predictor, report, view))


def _input(
    predictor: Predictor, report: FaceReport, view: FaceView
) -> tuple[str | None, list[Image.Image]]:
    """The model's input for a picture, as a sentence and as pictures; nothing if it is one crop or
    one picture."""
    sentence = model_choices.describe_input(predictor)
    if sentence is None or not report.has_prediction:
        return None, []
    images = view.images
    if isinstance(images, Sequence):
        return sentence, list(images[:: predictor.frames])
    return sentence, [images]


# --- Analyse --------------------------------------------------------------------------------------


def analyse_tab(demo: Demo) -> None:
    intro = "Upload a picture, paste it, or take it with the webcam. Every face is framed."
    if model_choices.outputs_action_units(demo.predictor):
        intro += (
            " Point at an action unit, or reach it with the Tab key, to mark its part of the face "
            "in the picture."
        )
    _intro(intro)
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=300):
            image, picture, choice = _picture_input(demo.examples, kind=_example_kind(demo))
        with gr.Column(scale=6, min_width=300):
            answer = gr.HTML(_EMPTY, elem_classes="vf-said")

    @with_error_output(3)
    def start(path: str | None) -> Iterator[Any]:
        if path is None:
            yield "", _face_choice([], None), _EMPTY
            return
        upload = open_upload(path)
        faces = demo.face_finder.find(upload)
        selected = None if demo.predictor.default_faces == "none" else largest_face(faces)
        yield views.picture(upload, faces, selected), _face_choice(faces, selected), gr.skip()
        for html in _stream_face(demo, upload, faces, selected):
            yield gr.skip(), gr.skip(), html

    @with_error_output(2)
    def choose(path: str, selected: int | None) -> Iterator[Any]:
        upload = open_upload(path)
        faces = demo.face_finder.find(upload)
        yield views.picture(upload, faces, selected), gr.skip()
        for html in _stream_face(demo, upload, faces, selected):
            yield gr.skip(), html

    queue = _queue(demo)
    image.change(start, image, [picture, choice, answer], show_progress_on=answer, **queue)
    choice.input(choose, [image, choice], [picture, answer], show_progress_on=answer, **queue)


def _stream_face(
    demo: Demo, image: Image.Image, faces: list[Face], selected: int | None
) -> Iterator[str]:
    """The answer about the chosen face."""
    heading = "The whole picture"
    if selected is not None:
        heading = f"Face {selected + 1} of {len(faces)}" if len(faces) > 1 else "The face"
    yield from _stream_answer(
        demo, image, None if selected is None else faces[selected].box, heading
    )


def _stream_answer(demo: Demo, image: Image.Image, box: Box | None, heading: str) -> Iterator[str]:
    """The answer about a face at intervals while it is generated, then the complete answer."""
    last_update = 0.0
    view = model_choices.face_view(demo.predictor, image, box)
    for piece in model_choices.stream_report(demo.predictor, view):
        if isinstance(piece, FaceReport):
            yield _answer(demo.predictor, piece, heading, view)
        elif time.monotonic() - last_update >= _UPDATE_INTERVAL_S:
            last_update = time.monotonic()
            yield views.writing(piece, heading)


# --- Compare --------------------------------------------------------------------------------------


def compare_tab(demo: Demo) -> None:
    names = [choice.name for choice in demo.choices]
    if len(names) < 2:
        _intro(
            "The demo was started with one model and one prompt, so there is nothing to compare. "
            "Start it with <code>--compare RUN</code> to add a second model, or with a run that "
            "answers several prompts."
        )
        return
    _intro("Compare two models, or two prompts of one model, on the largest face of a picture.")
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=280):
            image, picture, _ = _picture_input(demo.examples, kind=_example_kind(demo))
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
        faces = demo.face_finder.find(upload)
        selected = largest_face(faces)
        largest_box = None if selected is None else faces[selected].box
        yield views.picture(upload, faces, selected), gr.skip(), gr.skip()
        answers: list[str] = []
        for number in (first, second):
            choice = demo.choices[number]
            box = model_choices.default_box(choice.predictor, largest_box)
            heading = "The whole picture" if box is None else "The largest face"
            view = model_choices.face_view(choice.predictor, upload, box)
            answers.append(_answer(choice.predictor, choice.predict(view), heading, view))
            yield gr.skip(), answers[0], answers[1] if len(answers) > 1 else gr.skip()

    for event in (image.change, left.input, right.input):
        event(
            compare,
            [image, left, right],
            [picture, left_answer, right_answer],
            show_progress_on=[left_answer, right_answer],
            **_queue(demo),
        )


# --- Several people -------------------------------------------------------------------------------


def people_tab(demo: Demo) -> None:
    cropped = "The model receives each face separately, without the people around it."
    with_context = "The model receives one face after the other, with its surroundings."
    uses_context = model_choices.uses_context(demo.predictor)
    _intro(f"All faces of one picture at once. {with_context if uses_context else cropped}")
    with gr.Column(elem_classes="vf-wide"):
        image, picture, _ = _picture_input([demo.scene], "Picture of several people")
    table = gr.HTML()

    @with_error_output(2)
    def analyse_all(path: str | None) -> Iterator[Any]:
        if path is None:
            yield "", ""
            return
        upload = open_upload(path)
        faces = demo.face_finder.find(upload)
        yield views.picture(upload, faces, None), gr.skip()
        if not faces:
            view = model_choices.face_view(demo.predictor, upload, None)
            prompts = demo.predictor.select_prompts(None)
            (report,) = demo.predictor.predict_views([view], prompts)
            yield gr.skip(), _answer(demo.predictor, report, "The whole picture", view)
            return
        boxes = [face.box for face in faces]
        reports = demo.predictor.predict([upload] * len(boxes), boxes=boxes)
        show_rationale = model_choices.outputs_action_units(demo.predictor)
        rows = views.people(
            upload, faces, reports, demo.predictor.tasks, show_rationale=show_rationale
        )
        yield gr.skip(), rows

    image.change(analyse_all, image, [picture, table], show_progress_on=table, **_queue(demo))


# --- Clip -----------------------------------------------------------------------------------------


def clip_tab(demo: Demo) -> None:
    predictor = demo.predictor
    if demo.clip is None:
        _intro(
            f"Videos cannot be read here: <code>{clips.INSTALL}</code>, and start the demo again."
        )
        return
    single = predictor.frames == 1
    usage = f"This model uses {predictor.frames} of its frames at once."
    if single:
        usage = "This model uses the middle frame; it can also analyse each frame separately."
    _intro(f"Upload a video of one person, some seconds long, or record one. {usage}")
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=300), gr.Column(elem_classes="vf-input vf-clip"):
            video = _clip_upload()
            picture = gr.HTML(elem_classes="vf-shown")
            again = gr.Button("Another clip", elem_classes="vf-again", size="sm")
            again.click(lambda: None, None, video, show_progress="hidden", **_HIDDEN)
            _examples(video, [demo.clip], "clip")
        with gr.Column(scale=6, min_width=300):
            answer = gr.HTML(_EMPTY, elem_classes="vf-said")
            each_button = gr.Button("Analyse each frame", elem_classes="vf-each", visible=single)
    timeline = gr.HTML(elem_classes="vf-said")

    @with_error_output(3)
    def start(path: str | None) -> Iterator[Any]:
        if path is None:
            yield "", "", _EMPTY
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
        for html in _stream_answer(demo, clip.frames[middle], box, heading):
            yield gr.skip(), gr.skip(), html

    @with_error_output(1)
    def each(path: str | None, progress: gr.Progress = gr.Progress()) -> Iterator[Any]:  # noqa: B008
        if path is None:
            yield views.note("Upload or record a video first.")
            return
        clip = clips.read_clip(path, frames_to_extract(predictor.frames), demo.face_finder)
        yield views.timeline(clip.frames, clip.faces, _frame_reports(predictor, clip, progress))

    # Videos have a queue of their own: while one is decoded the model can answer other events.
    queue = _queue(demo, "clips")
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


# --- Batch ----------------------------------------------------------------------------------------


def batch_tab(demo: Demo) -> None:
    unit = "picture" if demo.predictor.default_faces == "none" else "face"
    _intro(
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
    button.click(analyse_files, files, table, **_queue(demo, "batches"))


# --- Synth playground -----------------------------------------------------------------------------


def playground_tab(demo: Demo) -> None:
    _intro(
        "Set the muscles of a rendered head, and compare the model's answer with them. Intensities "
        "are those of FACS: 0 is at rest, 1 a trace, 5 the maximum."
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=300):
            preset = gr.Dropdown(
                ["(none)", *EMOTIONS], value="(none)", label="Start from an emotion's prototype"
            )
            sliders = _au_sliders()
            with gr.Accordion("Person, pose and light", open=False):
                scene = _scene_sliders()
        with gr.Column(scale=6, min_width=300):
            button = gr.Button("Render and analyse", variant="primary", elem_classes="vf-go")
            picture = gr.HTML(views.note("The head appears here."), elem_classes="vf-rendered")
            truth = gr.HTML(elem_classes="vf-drawn")
            answer = gr.HTML(elem_classes="vf-said")

    def fill(emotion: str) -> list[int]:
        core = playground.prototype(emotion, 3) if emotion in EMOTIONS else {}
        return [core.get(au, 0) for au in sliders]

    @with_error_output(3)
    def render(*values: float) -> Iterator[Any]:
        intensities = dict(zip(sliders, values, strict=False))
        person, *pose = values[len(sliders) :]
        aus = playground.drawn_aus(intensities)
        image = playground.render_head(playground.Scene(int(person), aus, *pose))
        faces = demo.face_finder.find(image)[:1]
        yield views.picture(image, faces, 0 if faces else None), gr.skip(), gr.skip()
        view = model_choices.face_view(demo.predictor, image, None)
        (report,) = demo.predictor.predict_views([view], demo.predictor.select_prompts(None))
        comparison = views.au_comparison(
            aus,
            report,
            names_units=model_choices.outputs_action_units(demo.predictor),
            lips_parted=len(aus) > sum(round(value) > 0 for value in intensities.values()),
        )
        notes = [_HEAD_ONLY] if model_choices.uses_context(demo.predictor) else []
        html = _answer(demo.predictor, report, "The model's answer", view, notes)
        yield gr.skip(), comparison, html

    preset.input(fill, preset, list(sliders.values()), show_progress="hidden", **_HIDDEN)
    button.click(
        render,
        [*sliders.values(), *scene],
        [picture, truth, answer],
        show_progress_on=answer,
        **_queue(demo),
    )


def _au_sliders() -> dict[int, gr.Slider]:
    """A slider for each AU that can be rendered, grouped by region."""
    sliders: dict[int, gr.Slider] = {}
    for region in facs.REGIONS:
        units = [au for au in facs.SYNTH_AUS if facs.AUS[au].region == region]
        if not units:
            continue
        with (
            gr.Accordion(region.capitalize(), open=region in ("brow", "eye", "mouth")),
            gr.Row(elem_classes="vf-sliders"),
        ):
            for au in units:
                label = f"{facs.name(au)} {facs.AUS[au].name}"
                sliders[au] = gr.Slider(0, 5, 0, step=1, label=label, min_width=200, buttons=[])
    return sliders


def _scene_sliders() -> list[gr.Slider]:
    """Sliders for the fields of `playground.Scene`, in order."""
    return [
        gr.Slider(0, playground.MAX_PERSON, 7, step=1, label="Person"),
        gr.Slider(-22, 22, 0, step=1, label="Turned, to the picture's right (°)"),
        gr.Slider(-16, 16, 0, step=1, label="Chin lowered (°)"),
        gr.Slider(-70, 70, 20, step=1, label="Light from the picture's right (°)"),
        gr.Slider(-15, 60, 30, step=1, label="Light from above (°)"),
    ]


# --- About ----------------------------------------------------------------------------------------


def about_tab(demo: Demo) -> None:
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
