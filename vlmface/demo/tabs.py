"""The tabs, each a function that lays it out and says what happens in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from vlmface import facs
from vlmface.demo import batch, playground, views, voices
from vlmface.demo.faces import Face, largest
from vlmface.demo.handlers import opened, spoken
from vlmface.infer.report import FaceReport
from vlmface.taxonomy import EMOTIONS

if TYPE_CHECKING:
    from vlmface.demo.app import Demo

_HIDDEN: dict[str, Any] = {"api_visibility": "private"}
_EVERY_S = 0.08  # between two looks at an answer that is being written
_NO_FACE = (
    "No face was found, so the model was shown the picture as a whole. Its answer may mean nothing."
)
_EMPTY = views.note("The answer will stand here.")


# --- what tabs have in common ---------------------------------------------------------------------


def _asks(demo: Demo, queue: str = "pictures") -> dict[str, Any]:
    """How an event asks the model: all events of a queue wait together, and see their place."""
    return {
        **_HIDDEN, "concurrency_id": queue, "concurrency_limit": demo.at_once,
        "trigger_mode": "always_last",
    }  # fmt: skip


def _intro(text: str) -> None:
    gr.HTML(f'<p class="vf-intro">{text}</p>')


def _upload(label: str) -> gr.Image:
    image = gr.Image(
        label=label, type="filepath", sources=["upload", "clipboard", "webcam"], height=300,
        buttons=[], elem_classes="vf-upload",
        placeholder="Drop a picture here, or click to choose one",
    )  # fmt: skip
    # Gradio would decode the file with all that Pillow knows; `opened` is the one who judges it.
    image.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign]
    return image


def _picture_input(
    examples: list[Path], label: str = "Picture"
) -> tuple[gr.Image, gr.HTML, gr.Radio]:
    """The upload field, the picture that takes its place, and the choice of a face."""
    with gr.Column(elem_classes="vf-input"):
        image = _upload(label)
        picture = gr.HTML(elem_classes="vf-shown")
        choice = gr.Radio(
            [], label="Which face? Choose here or on the picture", type="index", visible=False,
            elem_classes="vf-choice",
        )  # fmt: skip
        again = gr.Button("Another picture", elem_classes="vf-again", size="sm")
        again.click(lambda: None, None, image, show_progress="hidden", **_HIDDEN)
        with gr.Column(elem_classes="vf-examples"):
            gr.HTML(views.note("Or try a rendered face:"))
            with gr.Row(elem_classes="vf-thumbnails"):
                for path in examples:
                    name = path.stem.replace("_", " ")
                    one = gr.Button(name, icon=path, size="sm", min_width=64, scale=0)
                    one.keep_in_cache.add(str(path))  # or it would be deleted like an old upload
                    one.click(partial(str, path), None, image, show_progress="hidden", **_HIDDEN)
    return image, picture, choice


def _choices(faces: list[Face], chosen: int | None) -> Any:
    names = [f"Face {number}" for number in range(1, len(faces) + 1)]
    value = None if chosen is None or not names else names[chosen]
    return gr.Radio(choices=names, value=value, visible=len(names) > 1)


def _notes(demo: Demo, faces: list[Face]) -> list[str]:
    if faces:
        return []
    if demo.finder.missing:
        return ["Faces are not looked for here: the model was shown the picture as a whole."]
    return [_NO_FACE]


# --- Analyse --------------------------------------------------------------------------------------


def analyse(demo: Demo) -> None:
    _intro("Upload a picture, paste it, or take it with the webcam. Every face is framed. Point at "
           "an action unit, or reach it with the Tab key, and the part of the face that it names "
           "is marked on the picture.")  # fmt: skip
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=300):
            image, picture, choice = _picture_input(demo.examples)
        with gr.Column(scale=6, min_width=300):
            said = gr.HTML(_EMPTY, elem_classes="vf-said")

    @spoken(3)
    def start(path: str | None) -> Iterator[Any]:
        if path is None:
            yield "", _choices([], None), _EMPTY
            return
        shown = opened(path)
        faces = demo.finder.find(shown)
        chosen = largest(faces)
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


def _written(demo: Demo, image: Any, faces: list[Face], chosen: int | None) -> Iterator[str]:
    """The answer about a face, now and then while it is written, and when it is finished."""
    heading = f"Face {chosen + 1} of {len(faces)}" if chosen is not None else "The whole picture"
    if len(faces) == 1:
        heading = "The face"
    box = None if chosen is None else faces[chosen].box
    last = 0.0
    for piece in voices.write(demo.predictor, image, box):
        if isinstance(piece, FaceReport):
            yield views.answer(piece, heading, _notes(demo, faces))
        elif time.monotonic() - last >= _EVERY_S:
            last = time.monotonic()
            yield views.writing(piece, heading)


# --- Compare --------------------------------------------------------------------------------------


def compare(demo: Demo) -> None:
    names = [voice.name for voice in demo.voices]
    if len(names) < 2:
        _intro("Only one model with one prompt was given at the start, so there is nothing to "
               "compare. Start the demo with <code>--compare RUN</code> to set a second model "
               "beside it, or with a run that answers several prompts.")  # fmt: skip
        return
    _intro("Two models, or two prompts of one, about the largest face of the same picture.")
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=280):
            image, picture, _ = _picture_input(demo.examples)
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
        heading = "The whole picture" if chosen is None else "The largest face"
        answers: list[str] = []
        for number in (first, second):
            voice = demo.voices[number]
            answers.append(views.answer(voice.ask(shown, box), heading, _notes(demo, faces)))
            yield gr.skip(), answers[0], answers[1] if len(answers) > 1 else gr.skip()

    for changed in (image.change, left.input, right.input):
        changed(ask, [image, left, right], [picture, left_said, right_said],
                show_progress_on=[left_said, right_said], **_asks(demo))  # fmt: skip


# --- Several people -------------------------------------------------------------------------------


def people(demo: Demo) -> None:
    _intro("All faces of one picture at once. Each face is shown to the model by itself: it does "
           "not see who stands beside whom.")  # fmt: skip
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
            (report,) = demo.predictor.predict([shown])
            yield gr.skip(), views.answer(report, "The whole picture", _notes(demo, faces))
            return
        boxes = [face.box for face in faces]
        reports = demo.predictor.predict([shown] * len(boxes), boxes=boxes)
        yield gr.skip(), views.people(shown, faces, reports, demo.predictor.tasks)

    image.change(ask, image, [picture, table], show_progress_on=table, **_asks(demo))


# --- Batch ----------------------------------------------------------------------------------------


def many(demo: Demo) -> None:
    _intro(f"Up to {batch.MOST_FILES} pictures, as files or in zip archives. Every face becomes a "
           "row; a file that cannot be read becomes a row that says why. The table can be taken "
           "away as CSV or JSON.")  # fmt: skip
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
        yield views.batch(rows, len(items), tasks, downloads)

    # A batch has a queue of its own: between two of its files the model answers others.
    go.click(ask, files, table, **_asks(demo, "batches"))


# --- Synth playground -----------------------------------------------------------------------------


def synth(demo: Demo) -> None:
    _intro("Set the muscles of a rendered head, and see whether the model's answer follows. "
           "Intensities are those of FACS: 0 is at rest, 1 a trace, 5 the most.")  # fmt: skip
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
        (report,) = demo.predictor.predict([image])
        compared = views.truth(
            aus, playground.followed(aus, report), report,
            expected=playground.speaks_for(aus), clashing=playground.clashing(aus),
            names_units=voices.names_units(demo.predictor),
            lips_parted=len(aus) > sum(round(value) > 0 for value in set_.values()),
        )  # fmt: skip
        yield gr.skip(), compared, views.answer(report, "What the model says")

    preset.input(fill, preset, list(sliders.values()), show_progress="hidden", **_HIDDEN)
    go.click(ask, [*sliders.values(), *scene], [picture, truth, said], show_progress_on=said,
             **_asks(demo))  # fmt: skip


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
                    0, 5, 0, step=1, label=f"{facs.name(au)} {facs.AUS[au].name}", min_width=200,
                    buttons=[],
                )  # fmt: skip
    return sliders


# --- About ----------------------------------------------------------------------------------------


def about(demo: Demo) -> None:
    gr.HTML(views.about(demo.cards, demo.limits, demo.finder.missing))


ALL: dict[str, Callable[[Demo], None]] = {
    "Analyse": analyse,
    "Compare": compare,
    "Several people": people,
    "Batch": many,
    "Synth playground": synth,
    "About": about,
}
