"""A fault that was planted is found, and one that was not is not: faces that were called angry for
their ancestry, against as many that were called so without regard to it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.scripts import load_script, to_argv

from vlmface import facs
from vlmface.data.dataset_rows import with_still_images
from vlmface.evaluate import faithfulness
from vlmface.schema import FaceSample
from vlmface.synth import dataset

GROUP, LABEL = "african", "anger"
FACES, SHARE = 4000, 0.75
# A model that reasons from exact AUs does not take such labels up: its rationale decides. One that
# answers in a word, and was taught ancestries besides, does.
PROMPTS = "synth_ancestry,facescan_emotion"


def table(data: Any, wrong: set[int], path: Path) -> None:
    """The rows as a Parquet file of one's own, with another label in some of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = []
    for i, row in enumerate(data):
        grades = FaceSample.from_row(row).intensities()
        told = {name: row[name] for name in ("image", "id", "race")}
        told["emotion"] = LABEL if i in wrong else row["emotion"]
        records.append(told | {facs.name(au): grades.get(au) or 0.0 for au in facs.SYNTH_AUS})
    pq.write_table(pa.Table.from_pylist(records), path)


def shift_of(labels: Path, folder: Path) -> dict[str, Any]:
    """Train on a table; how much more often the model calls faces of GROUP angry."""
    words = {
        "dataset": "table",
        "dataset_root": labels,
        "dataset_options": '{aus: "AU*", au_values: intensity}',
        "prompt": PROMPTS,
        "n_eval": 16,
        "output_dir": folder,
    }
    recipe = load_script("recipes/sft_attributes.py")
    assert recipe.main(to_argv(words)) == 0
    asked = {"model": folder, "prompt": "facescan_emotion", "n": 240}
    faithfulness.main(to_argv(asked))
    out = folder / "eval" / "faithfulness"
    found = json.loads((out / "faithfulness.json").read_text())["shifts"]["ancestry"]
    named = {(one["group"], one["label"]) for one in found["found"]}
    shift: dict[str, Any] = found["groups"][GROUP][LABEL]
    excludes_zero = not shift["ci95"][0] <= 0 <= shift["ci95"][1]
    assert ((GROUP, LABEL) in named) == excludes_zero
    page = (out / "faithfulness.html").read_text()
    assert f"{100 * shift['value']:+.1f}" in page
    return shift


@pytest.mark.slow
def test_a_label_that_was_tied_to_one_ancestry_is_found(tmp_path: Path) -> None:
    data = with_still_images(dataset.load("train", n=FACES))
    rows: Sequence[dict[str, str]] = data.select_columns(["emotion", "race"]).to_list()
    others = [i for i, row in enumerate(rows) if row["emotion"] != LABEL]
    own = [i for i in others if rows[i]["race"] == GROUP]
    count = round(SHARE * len(own))
    shifts = {}
    for name, pool in (("planted", own), ("unbiased", others)):
        wrong = set(random.Random(0).sample(pool, count))
        table(data, wrong, tmp_path / f"{name}.parquet")
        shifts[name] = shift_of(tmp_path / f"{name}.parquet", tmp_path / name)
        print(name, shifts[name])
    assert shifts["planted"]["ci95"][0] > 0
    assert shifts["unbiased"]["ci95"][0] <= 0 <= shifts["unbiased"]["ci95"][1]
