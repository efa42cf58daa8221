"""A package that extends vlmface: its entry points are in pyproject.toml."""

from pathlib import Path

_HERE = Path(__file__).parent
MOOD = _HERE / "mood.yaml"
ASKS_MOOD = _HERE / "asks_mood.yaml"
SHOWS_MOOD = _HERE / "shows_mood.yaml"
