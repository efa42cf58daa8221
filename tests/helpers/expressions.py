"""Strategies for faces: action units, emotions and seeds of the rule writer."""

from __future__ import annotations

from hypothesis import strategies as st

from vlmface import answers, facs, label_spaces

faces = st.dictionaries(
    st.sampled_from(facs.AU_NUMBERS), st.none() | st.floats(0.1, 5), max_size=12
)
emotions = st.sampled_from(label_spaces.EMOTIONS)
seeds = st.integers(0, 2**40)
formats = st.sampled_from([name for name in answers.FORMATS if name != "labels"])
