"""The tab for rendered heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from vlmface import facs
from vlmface.demo import model_choices, playground, views
from vlmface.demo.event_handlers import with_error_output
from vlmface.demo.tab_parts import (
    HIDDEN,
    answer_page,
    queue_options,
    show_intro,
)
from vlmface.label_spaces import EMOTIONS

if TYPE_CHECKING:
    from vlmface.demo.state import Demo

_HEAD_ONLY = "The head fills the picture: there are no surroundings for the model to judge."


def playground_tab(demo: Demo) -> None:
    """The tab for rendered heads with muscles that the user sets."""
    show_intro(
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
        faces = demo.face_finder.find_quickly(image).faces[:1]
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
        html = answer_page(demo.predictor, report, "The model's answer", view, notes)
        yield gr.skip(), comparison, html

    preset.input(fill, preset, list(sliders.values()), show_progress="hidden", **HIDDEN)
    button.click(
        render,
        [*sliders.values(), *scene],
        [picture, truth, answer],
        show_progress_on=answer,
        **queue_options(demo),
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
