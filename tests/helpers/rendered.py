"""Checks of rendered data sets that hold for all of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from vlmface.data import check


def check_copy(name: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The report on the test split, in which there are no errors; it is written to `folder`."""
    given: dict[str, Any] = {"splits": ["test"], "workers": 1}
    report = check.check(name, None, folder, options=options, **given)
    assert report["errors"] == []
    assert json.loads((folder / "check.json").read_text())["name"] == name
    return report


def check_pinned(pinned: tuple[int, str, Any], version: int, labels: str, image: Any) -> None:
    """A version still draws the labels and the picture (96 x 96) that were recorded for it. If this
    fails and the change is wanted, raise VERSION and renew what is pinned."""
    digest = hashlib.sha256(labels.encode()).hexdigest()[:12]
    # Means over 24 x 24 pixels: JPEG and maths libraries may differ in the last digit.
    means = image.astype(float).reshape(4, 24, 4, 24, 3).mean((1, 3, 4)).round(0).astype(int)
    assert (version, digest) == pinned[:2]
    assert np.abs(means - np.array(pinned[2])).max() <= 2, means.tolist()
