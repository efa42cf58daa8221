"""What the tabs share: fields, examples, and the options of events."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from vlmface.demo import model_choices, views
from vlmface.demo.face_detection import Face
from vlmface.infer.face_report import FaceReport

if TYPE_CHECKING:
    from PIL import Image

    from vlmface.data.detect import Box
    from vlmface.demo.state import Demo
    from vlmface.infer.face_views import FaceView
    from vlmface.infer.predictor import Predictor

HIDDEN: dict[str, Any] = {"api_visibility": "private"}
EMPTY = views.note("The answer appears here.")


def queue_options(demo: Demo, queue: str = "pictures") -> dict[str, Any]:
    """Options of an event that runs the model: all events of a queue wait in one line, and show
    their place in it."""
    return {
        **HIDDEN,
        "concurrency_id": queue,
        "concurrency_limit": demo.concurrency,
        "trigger_mode": "always_last",
    }


def show_intro(text: str) -> None:
    """The sentences at the top of a tab."""
    gr.HTML(f'<p class="vf-intro">{text}</p>')


def upload_field(label: str) -> gr.Image:
    """A field for a picture, which is not decoded before it is validated."""
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


def picture_input(
    examples: list[Path], label: str = "Picture", kind: str = "face"
) -> tuple[gr.Image, gr.HTML, gr.Radio]:
    """The upload field, the picture that replaces it, and the choice of a face."""
    with gr.Column(elem_classes="vf-input"):
        image = upload_field(label)
        picture = gr.HTML(elem_classes="vf-shown")
        choice = gr.Radio(
            [],
            label="Which face? Choose here or in the picture",
            type="index",
            visible=False,
            elem_classes="vf-choice",
        )
        again = gr.Button("Another picture", elem_classes="vf-again", size="sm")
        again.click(lambda: None, None, image, show_progress="hidden", **HIDDEN)
        example_buttons(image, [(path, path) for path in examples], kind)
    return image, picture, choice


def example_buttons(field: gr.Image | gr.Video, files: list[tuple[Path, Path]], kind: str) -> None:
    """Buttons that put a file into the upload field; `files` are (file, icon)."""
    with gr.Column(elem_classes="vf-examples"):
        gr.HTML(views.note(f"Or try a rendered {kind}:"))
        with gr.Row(elem_classes="vf-thumbnails"):
            for path, icon in files:
                name = path.stem.replace("_", " ")
                button = gr.Button(name, icon=icon, size="sm", min_width=64, scale=0)
                # Otherwise Gradio would delete them like old uploads.
                button.keep_in_cache |= {str(path), str(icon)}
                button.click(partial(str, path), None, field, show_progress="hidden", **HIDDEN)


def face_choice(faces: list[Face], selected: int | None) -> Any:
    """An update of the choice of a face, which is hidden where there is only one."""
    names = [f"Face {number}" for number in range(1, len(faces) + 1)]
    value = None if selected is None or not names else names[selected]
    return gr.Radio(choices=names, value=value, visible=len(names) > 1)


def example_kind(demo: Demo) -> str:
    """What the rendered examples show."""
    return "scene" if model_choices.uses_context(demo.predictor) else "face"


def answer_page(
    predictor: Predictor,
    report: FaceReport,
    heading: str,
    view: FaceView,
    notes: Sequence[str] = (),
) -> str:
    """A report with notes on the model's input."""
    notes = [*notes, *model_choices.no_face_notes(predictor, report)]
    return views.answer(report, heading, notes, *_shown_input(predictor, report, view))


def _shown_input(
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


_UPDATE_INTERVAL_S = 0.08  # of a text that is being generated


def stream_face(
    demo: Demo, image: Image.Image, faces: list[Face], selected: int | None
) -> Iterator[str]:
    """The answer about the chosen face."""
    heading = "The whole picture"
    if selected is not None:
        heading = f"Face {selected + 1} of {len(faces)}" if len(faces) > 1 else "The face"
    yield from stream_answer(
        demo, image, None if selected is None else faces[selected].box, heading
    )


def stream_answer(demo: Demo, image: Image.Image, box: Box | None, heading: str) -> Iterator[str]:
    """The answer about a face at intervals while it is generated, then the complete answer."""
    last_update = 0.0
    view = model_choices.face_view(demo.predictor, image, box)
    for piece in model_choices.stream_report(demo.predictor, view):
        if isinstance(piece, FaceReport):
            yield answer_page(demo.predictor, piece, heading, view)
        elif time.monotonic() - last_update >= _UPDATE_INTERVAL_S:
            last_update = time.monotonic()
            yield views.writing(piece, heading)
