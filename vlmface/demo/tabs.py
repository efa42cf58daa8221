"""The tabs, each a function that lays it out and says what happens in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.data_classes import FileData

from vlmface import facs
from vlmface.data.clips import taken
from vlmface.demo import batch, clips, model_choices, playground, views
from vlmface.demo.event_handlers import opened, spoken
from vlmface.demo.face_detection import Face, largest
from vlmface.infer.face_report import FaceReport
from vlmface.label_spaces import EMOTIONS

if TYPE_CHECKING:
    from PIL import Image

    from vlmface.data.detect import Box
    from vlmface.demo.state import Demo
    from vlmface.infer.face_views import FaceView
    from vlmface.infer.predictor import Predictor

_HIDDEN: dict[str, Any] = {"api_visibility": "private"}
_EVERY_S = 0.08  # between two looks at an answer that is being written
_AT_ONCE = 4  # frames that are asked about together
_HEAD_ALONE = "The head fills the picture: there is nothing around it that the model could judge."
_EMPTY = views.note("The answer will stand here.")


# --- what tabs have in common ---------------------------------------------------------------------


def _asks(demo: Demo, queue: str = "pictures") -> dict[str, Any]:
    """How an event asks the model: all events of a queue wait together, and see their place."""
    return {
        **_HIDDEN,
        "concurrency_id": queue,
        "concurrency_limit": demo.at_once,
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
    # Gradio would decode the file with all that Pillow knows; `opened` is the one who judges it.
    image.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign]
    return image


def _picture_input(
    examples: list[Path], label: str = "Picture", kind: str = "face"
) -> tuple[gr.Image, gr.HTML, gr.Radio]:
    """The upload field, the picture that takes its place, and the choice of a face."""
    with gr.Column(elem_classes="vf-input"):
        image = _upload(label)
        picture = gr.HTML(elem_classes="vf-shown")
        choice = gr.Radio(
            [],
            label="Which face? Choose here or on the picture",
            type="index",
            visible=False,
            elem_classes="vf-choice",
        )
        again = gr.Button("Another picture", elem_classes="vf-again", size="sm")
        again.click(lambda: None, None, image, show_progress="hidden", **_HIDDEN)
        _examples(image, [(path, path) for path in examples], kind)
    return image, picture, choice


def _examples(field: gr.Image | gr.Video, files: list[tuple[Path, Path]], kind: str) -> None:
    """Buttons that put (a file, its icon) into the upload field."""
    with gr.Column(elem_classes="vf-examples"):
        gr.HTML(views.note(f"Or try a rendered {kind}:"))
        with gr.Row(elem_classes="vf-thumbnails"):
            for path, icon in files:
                name = path.stem.replace("_", " ")
                one = gr.Button(name, icon=icon, size="sm", min_width=64, scale=0)
                # Or they would be deleted like old uploads.
                one.keep_in_cache |= {str(path), str(icon)}
                one.click(partial(str, path), None, field, show_progress="hidden", **_HIDDEN)


def _choices(faces: list[Face], chosen: int | None) -> Any:
    names = [f"Face {number}" for number in range(1, len(faces) + 1)]
    value = None if chosen is None or not names else names[chosen]
    return gr.Radio(choices=names, value=value, visible=len(names) > 1)


def _kind(demo: Demo) -> str:
    """What the examples are."""
    return "scene" if model_choices.sees_around(demo.predictor) else "face"


def _answer(
    predictor: Predictor,
    report: FaceReport,
    heading: str,
    view: FaceView,
    notes: Sequence[str] = (),
) -> str:
    """A report with all that is to be said of how it came about."""
    notes = [*notes, *model_choices.no_face(predictor, report)]
    return views.answer(report, heading, notes, *_shown(predictor, report, view))


def _shown(
    predictor: Predictor, report: FaceReport, view: FaceView
) -> tuple[str | None, list[Image.Image]]:
    """What the model was shown of a picture, in words and as pictures, where that is to be said."""
    words = model_choices.shown(predictor)
    if words is None or not report.has_prediction:
        return None, []
    seen = view.images
    return words, list(seen[:: predictor.frames]) if isinstance(seen, Sequence) else [seen]


# --- Analyse --------------------------------------------------------------------------------------


def analyse(demo: Demo) -> None:
    how = "Upload a picture, paste it, or take it with the webcam. Every face is framed."
    if model_choices.names_units(demo.predictor):
        how += (
            " Point at an action unit, or reach it with the Tab key, and the part of the face "
            "that it names is marked on the picture."
        )
    _intro(how)
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=300):
            image, picture, choice = _picture_input(demo.examples, kind=_kind(demo))
        with gr.Column(scale=6, min_width=300):
            said = gr.HTML(_EMPTY, elem_classes="vf-said")

    @spoken(3)
    def start(path: str | None) -> Iterator[Any]:
        if path is None:
            yield "", _choices([], None), _EMPTY
            return
        shown = opened(path)
        faces = demo.finder.find(shown)
        chosen = None if demo.predictor.default_faces == "none" else largest(faces)
        yield views.picture(shown, faces, chosen), _choices(faces, chosen), gr.skip()
        for html in _written(demo, shown, faces, chosen):
            yield gr.skip(), gr.skip(), html

    @spoken(2)
    def choose(path: str, chosen: int | None) -> Iterator[Any]:
        shown = opened(path)
        faces = demo.finder.find(shown)
        yield views.picture(shown, faces, chosen), gr.skip()
        for html in _written(demo, shown, faces, chosen):
            yield gr.skip(), html

    image.change(start, image, [picture, choice, said], show_progress_on=said, **_asks(demo))
    choice.input(choose, [image, choice], [picture, said], show_progress_on=said, **_asks(demo))


def _written(
    demo: Demo, image: Image.Image, faces: list[Face], chosen: int | None
) -> Iterator[str]:
    """The answer about the chosen one of the faces."""
    heading = "The whole picture"
    if chosen is not None:
        heading = f"Face {chosen + 1} of {len(faces)}" if len(faces) > 1 else "The face"
    yield from _writing(demo, image, None if chosen is None else faces[chosen].box, heading)


def _writing(demo: Demo, image: Image.Image, box: Box | None, heading: str) -> Iterator[str]:
    """The answer about a face, now and then while it is written, and when it is finished."""
    last = 0.0
    view = model_choices.view_of(demo.predictor, image, box)
    for piece in model_choices.write(demo.predictor, view):
        if isinstance(piece, FaceReport):
            yield _answer(demo.predictor, piece, heading, view)
        elif time.monotonic() - last >= _EVERY_S:
            last = time.monotonic()
            yield views.writing(piece, heading)


# --- Compare --------------------------------------------------------------------------------------


def compare(demo: Demo) -> None:
    names = [voice.name for voice in demo.voices]
    if len(names) < 2:
        _intro(
            "Only one model with one prompt was given at the start, so there is nothing to "
            "compare. Start the demo with <code>--compare RUN</code> to set a second model "
            "beside it, or with a run that answers several prompts."
        )
        return
    _intro("Two models, or two prompts of one, about the largest face of the same picture.")
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=280):
            image, picture, _ = _picture_input(demo.examples, kind=_kind(demo))
        with gr.Column(scale=4, min_width=280):
            left = gr.Dropdown(names, value=names[0], label="Who answers here", type="index")
            left_said = gr.HTML()
        with gr.Column(scale=4, min_width=280):
            right = gr.Dropdown(names, value=names[-1], label="Who answers here", type="index")
            right_said = gr.HTML()

    @spoken(3)
    def ask(path: str | None, first: int, second: int) -> Iterator[Any]:
        if path is None:
            yield "", "", ""
            return
        shown = opened(path)
        faces = demo.finder.find(shown)
        chosen = largest(faces)
        box = None if chosen is None else faces[chosen].box
        yield views.picture(shown, faces, chosen), gr.skip(), gr.skip()
        answers: list[str] = []
        for number in (first, second):
            voice = demo.voices[number]
            place = model_choices.by_default(voice.predictor, box)
            heading = "The whole picture" if place is None else "The largest face"
            view = model_choices.view_of(voice.predictor, shown, place)
            answers.append(_answer(voice.predictor, voice.ask(view), heading, view))
            yield gr.skip(), answers[0], answers[1] if len(answers) > 1 else gr.skip()

    for changed in (image.change, left.input, right.input):
        changed(
            ask,
            [image, left, right],
            [picture, left_said, right_said],
            show_progress_on=[left_said, right_said],
            **_asks(demo),
        )


# --- Several people -------------------------------------------------------------------------------


def people(demo: Demo) -> None:
    alone = "Each face is shown to the model by itself: it does not see who stands beside whom."
    beside = "The model is asked about one face after the other, and sees what is around it too."
    around = model_choices.sees_around(demo.predictor)
    _intro(f"All faces of one picture at once. {beside if around else alone}")
    with gr.Column(elem_classes="vf-wide"):
        image, picture, _ = _picture_input([demo.scene], "Picture of several people")
    table = gr.HTML()

    @spoken(2)
    def ask(path: str | None) -> Iterator[Any]:
        if path is None:
            yield "", ""
            return
        shown = opened(path)
        faces = demo.finder.find(shown)
        yield views.picture(shown, faces, None), gr.skip()
        if not faces:
            view = model_choices.view_of(demo.predictor, shown, None)
            (report,) = demo.predictor.predict_views([view], demo.predictor.select_prompts(None))
            yield gr.skip(), _answer(demo.predictor, report, "The whole picture", view)
            return
        boxes = [face.box for face in faces]
        reports = demo.predictor.predict([shown] * len(boxes), boxes=boxes)
        tasks, reasons = demo.predictor.tasks, model_choices.names_units(demo.predictor)
        yield gr.skip(), views.people(shown, faces, reports, tasks, reasons=reasons)

    image.change(ask, image, [picture, table], show_progress_on=table, **_asks(demo))


# --- Clip -----------------------------------------------------------------------------------------


def clip(demo: Demo) -> None:
    predictor = demo.predictor
    if demo.clip is None:
        _intro(
            f"Videos cannot be read here: <code>{clips.INSTALL}</code>, and start the demo again."
        )
        return
    single = predictor.frames == 1
    takes = (
        "This model takes one frame, so it is shown the one in the middle; it can also be asked "
        "about each frame by itself."
        if single
        else f"This model is shown {predictor.frames} of its frames at once."
    )
    _intro(f"Upload a video of one person, of some seconds, or record one with the webcam. {takes}")
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=300), gr.Column(elem_classes="vf-input vf-clip"):
            video = _clip_upload()
            picture = gr.HTML(elem_classes="vf-shown")
            again = gr.Button("Another clip", elem_classes="vf-again", size="sm")
            again.click(lambda: None, None, video, show_progress="hidden", **_HIDDEN)
            _examples(video, [demo.clip], "clip")
        with gr.Column(scale=6, min_width=300):
            said = gr.HTML(_EMPTY, elem_classes="vf-said")
            go = gr.Button("Ask about each frame", elem_classes="vf-each", visible=single)
    line = gr.HTML(elem_classes="vf-said")

    @spoken(3)
    def start(path: str | None) -> Iterator[Any]:
        if path is None:
            yield "", "", _EMPTY
            return
        seen = clips.read(path, taken(predictor.frames), demo.finder)
        if not single:
            yield views.clip(seen.frames, seen.faces, None), "", gr.skip()
            yield gr.skip(), gr.skip(), _about_clip(demo, seen)
            return
        middle = clips.middle(seen)
        yield views.clip(seen.frames, seen.faces, middle), "", gr.skip()
        heading = f"The middle one of {len(seen.frames)} frames"
        box = model_choices.by_default(predictor, seen.boxes[middle])
        for html in _writing(demo, seen.frames[middle], box, heading):
            yield gr.skip(), gr.skip(), html

    @spoken(1)
    def each(path: str | None, progress: gr.Progress = gr.Progress()) -> Iterator[Any]:  # noqa: B008
        if path is None:
            yield views.note("First a video: upload one, or record it.")
            return
        seen = clips.read(path, taken(predictor.frames), demo.finder)
        reports: list[FaceReport] = []
        total = len(seen.frames)
        for first in range(0, total, _AT_ONCE):  # between two of these others are answered
            progress((first, total), desc=f"{first} of {total} frames", unit="frames")
            part = slice(first, first + _AT_ONCE)
            shown = [
                model_choices.view_of(predictor, frame, model_choices.by_default(predictor, box))
                for frame, box in zip(seen.frames[part], seen.boxes[part], strict=True)
            ]
            reports += predictor.predict_views(
                shown, predictor.select_prompts(model_choices.first_task(predictor))
            )
        yield views.timeline(seen.frames, seen.faces, reports)

    # Videos have a queue of their own: while one is decoded the model answers others.
    video.change(start, video, [picture, line, said], show_progress_on=said, **_asks(demo, "clips"))
    go.click(each, video, line, **_asks(demo, "clips"))


def _clip_upload() -> gr.Video:
    video = gr.Video(
        label="Clip",
        sources=["upload", "webcam"],
        include_audio=False,
        height=300,
        buttons=[],
        elem_classes="vf-upload",
    )
    # Gradio would have the file read and written anew by ffmpeg; `clips.read` is the one who opens
    # it.
    video.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign]
    video.postprocess = lambda path: FileData(path=path) if path else None  # type: ignore[method-assign]
    return video


def _about_clip(demo: Demo, clip: clips.Clip) -> str:
    """The answer of a model that is shown many frames."""
    predictor, total = demo.predictor, len(clip.frames)
    notes = []
    if len(clip.without) < total and predictor.default_faces != "none":
        report = predictor.predict_clip(clip.frames, clip.boxes)
        if clip.without:
            notes.append(
                f"No face was found in {len(clip.without)} of {total} frames: the model "
                "was shown these as they are."
            )
        if clip.crowded:
            notes.append(
                "Several faces are in the clip: the model was shown the largest of each "
                "frame, which may be different people."
            )
    else:
        (report,) = predictor.predict([clip.frames], faces=predictor.default_faces)
        notes += model_choices.no_face(predictor, report, "the frames as they are")
    return views.answer(
        report, f"The clip, {total} frames", notes, model_choices.shown_of_clip(predictor)
    )


# --- Batch ----------------------------------------------------------------------------------------


def many(demo: Demo) -> None:
    what = "picture" if demo.predictor.default_faces == "none" else "face"
    _intro(
        f"Up to {batch.MOST_FILES} pictures, as files or in zip archives. Every {what} becomes "
        "a row; a file that cannot be read becomes a row that says why. The table can be taken "
        "away as CSV or JSON."
    )
    files = gr.File(
        label="Pictures or zip archives", file_count="multiple", elem_classes="vf-files", height=180
    )
    go = gr.Button("Answer them all", variant="primary")
    table = gr.HTML(elem_classes="vf-said")

    @spoken(1)
    def ask(paths: list[str] | None, progress: gr.Progress = gr.Progress()) -> Iterator[Any]:  # noqa: B008
        items = batch.unpack([Path(path) for path in paths or []])
        rows: list[batch.Row] = []
        for done, item in enumerate(items):
            progress((done, len(items)), desc=f"{done} of {len(items)} files", unit="files")
            rows += batch.answer(item, demo.predictor, demo.finder)
        tasks = demo.predictor.tasks
        downloads = {
            "answers.csv": ("text/csv", batch.as_csv(rows, tasks)),
            "answers.json": ("application/json", batch.as_json(rows)),
        }
        reasons = model_choices.names_units(demo.predictor)
        yield views.batch(rows, len(items), tasks, downloads, reasons=reasons)

    # A batch has a queue of its own: between two of its files the model answers others.
    go.click(ask, files, table, **_asks(demo, "batches"))


# --- Synth playground -----------------------------------------------------------------------------


def synth(demo: Demo) -> None:
    _intro(
        "Set the muscles of a rendered head, and see whether the model's answer follows. "
        "Intensities are those of FACS: 0 is at rest, 1 a trace, 5 the most."
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=300):
            preset = gr.Dropdown(
                ["(none)", *EMOTIONS], value="(none)", label="Start from an emotion's prototype"
            )
            sliders = _sliders()
            with gr.Accordion("Person, pose and light", open=False):
                scene = [
                    gr.Slider(0, playground.MOST_PEOPLE, 7, step=1, label="Person"),
                    gr.Slider(-22, 22, 0, step=1, label="Turned, to the picture's right (°)"),
                    gr.Slider(-16, 16, 0, step=1, label="Chin lowered (°)"),
                    gr.Slider(-70, 70, 20, step=1, label="Light from the picture's right (°)"),
                    gr.Slider(-15, 60, 30, step=1, label="Light from above (°)"),
                ]
        with gr.Column(scale=6, min_width=300):
            go = gr.Button("Render and ask", variant="primary", elem_classes="vf-go")
            picture = gr.HTML(views.note("The head will stand here."), elem_classes="vf-rendered")
            truth = gr.HTML(elem_classes="vf-drawn")
            said = gr.HTML(elem_classes="vf-said")

    def fill(emotion: str) -> list[int]:
        core = playground.prototype(emotion, 3) if emotion in EMOTIONS else {}
        return [core.get(au, 0) for au in sliders]

    @spoken(3)
    def ask(*values: float) -> Iterator[Any]:
        set_ = dict(zip(sliders, values, strict=False))
        aus = playground.shown(set_)
        person, *view = values[len(sliders) :]
        image = playground.draw(playground.Scene(int(person), aus, *view))
        faces = demo.finder.find(image)[:1]
        yield views.picture(image, faces, 0 if faces else None), gr.skip(), gr.skip()
        shown = model_choices.view_of(demo.predictor, image, None)
        (report,) = demo.predictor.predict_views([shown], demo.predictor.select_prompts(None))
        compared = views.truth(
            aus,
            playground.followed(aus, report),
            report,
            expected=playground.speaks_for(aus),
            clashing=playground.clashing(aus),
            names_units=model_choices.names_units(demo.predictor),
            lips_parted=len(aus) > sum(round(value) > 0 for value in set_.values()),
        )
        notes = [_HEAD_ALONE] if model_choices.sees_around(demo.predictor) else []
        said = _answer(demo.predictor, report, "What the model says", shown, notes)
        yield gr.skip(), compared, said

    preset.input(fill, preset, list(sliders.values()), show_progress="hidden", **_HIDDEN)
    go.click(
        ask,
        [*sliders.values(), *scene],
        [picture, truth, said],
        show_progress_on=said,
        **_asks(demo),
    )


def _sliders() -> dict[int, gr.Slider]:
    """A slider for each AU that can be drawn, by the region that it moves."""
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
                sliders[au] = gr.Slider(
                    0,
                    5,
                    0,
                    step=1,
                    label=f"{facs.name(au)} {facs.AUS[au].name}",
                    min_width=200,
                    buttons=[],
                )
    return sliders


# --- About ----------------------------------------------------------------------------------------


def about(demo: Demo) -> None:
    videos = None if clips.readable() else clips.INSTALL
    gr.HTML(views.about(demo.cards, demo.limitations, demo.finder.missing, videos))


ALL: dict[str, Callable[[Demo], None]] = {
    "Analyse": analyse,
    "Compare": compare,
    "Several people": people,
    "Clip": clip,
    "Batch": many,
    "Synth playground": synth,
    "About": about,
}
