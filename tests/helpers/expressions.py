"""Faces for the rule writer, and what a text of it must be."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hypothesis import strategies as st

from vlmface import answers, facs, label_spaces

faces = st.dictionaries(
    st.sampled_from(facs.AU_NUMBERS), st.none() | st.floats(0.1, 5), max_size=12
)
emotions = st.sampled_from(label_spaces.EMOTIONS)
seeds = st.integers(0, 2**40)
formats = st.sampled_from([name for name in answers.FORMATS if name != "labels"])


def observations(text: str, aus: Iterable[int], markup: str) -> str:
    """A clean text without its closing sentence, which argues in words and numbers no AU.

    `markup` is a pattern of what may not be left over from the templates.
    """
    assert [int(n) for n in re.findall(r"AU(\d+)", text)] == facs.top_down(aus)
    assert not re.search(markup + r"|  |^[a-z]|[.] [a-z]|None", text)
    assert text.endswith(".")
    observed, _, closing = text.rpartition(". ")
    assert observed and "AU" not in closing
    return observed
