"""The demo's theme: colours and fonts of the evaluation reports, in Gradio's terms."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from vlmface.utils import html

if TYPE_CHECKING:
    import gradio as gr

_HERE = Path(__file__).parent
_FONT = (
    "ui-sans-serif",
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Roboto",
    "Helvetica Neue",
    "DejaVu Sans",
    "sans-serif",
)
_MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")
# Gradio's variables -> those of page.css.
_COLOURS = {
    "body_background_fill": "paper",
    "background_fill_primary": "panel",
    "background_fill_secondary": "faint",
    "block_background_fill": "panel",
    "body_text_color": "ink",
    "body_text_color_subdued": "soft",
    "block_label_text_color": "soft",
    "block_title_text_color": "ink",
    "block_info_text_color": "soft",
    "block_label_background_fill": "panel",
    "block_border_color": "line",
    "border_color_primary": "line",
    "border_color_accent": "main",
    "panel_background_fill": "paper",
    "input_background_fill": "panel",
    "input_border_color": "line",
    "input_border_color_focus": "main",
    "input_placeholder_color": "soft",
    "slider_color": "main",
    "loader_color": "main",
    "link_text_color": "main",
    "checkbox_background_color_selected": "main",
    "checkbox_border_color_selected": "main",
    "checkbox_label_background_fill": "panel",
    "checkbox_label_background_fill_hover": "faint",
    "checkbox_label_text_color": "ink",
    "checkbox_label_text_color_selected": "ink",
    "checkbox_label_border_color": "line",
    "checkbox_label_border_color_selected": "main",
    "button_primary_background_fill": "main",
    "button_primary_background_fill_hover": "main",
    "button_primary_text_color": "on",
    "button_primary_border_color": "main",
    "button_secondary_background_fill": "panel",
    "button_secondary_background_fill_hover": "faint",
    "button_secondary_text_color": "ink",
    "button_secondary_border_color": "line",
    "error_background_fill": "panel",
    "error_text_color": "bad",
    "error_border_color": "bad",
    "error_icon_color": "bad",
    "accordion_text_color": "ink",
}


def css() -> str:
    """The style sheet: the light and dark colours of page.css, then the rules of the demo."""
    pages = (html.TEMPLATES / "page.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{([^}]*)\}", pages)
    rules = (_HERE / "demo.css").read_text(encoding="utf-8")
    return f":root {{{light}}}\n.dark {{{dark}}}\n{rules}"


def head() -> str:
    """The page's head: the script."""
    script = (_HERE / "demo.js").read_text(encoding="utf-8")
    return f"<script>\n{script}</script>"


def theme() -> gr.themes.Base:
    """Gradio's base theme with the colours of page.css, and system fonts, so that none is
    fetched."""
    import gradio as gr

    plain = gr.themes.Base(font=list(_FONT), font_mono=list(_MONO), radius_size="md")
    names = {name: f"var(--{ours})" for name, ours in _COLOURS.items()}
    names |= {f"{name}_dark": colour for name, colour in names.items()}
    return plain.set(
        **names,
        block_shadow="none",
        button_border_width="1px",
        color_accent="var(--main)",
        color_accent_soft="var(--faint)",
        color_accent_soft_dark="var(--faint)",
    )
