"""A fault that was planted is found, and one that was not is not: faces that were called angry for
their ancestry, against as many that were called so without regard to it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

GROUP, LABEL = "african", "anger"
CALM = ("neutral", "sadness", "disgust")
FACES = 3000


def mislabelled(rows: Any, groups: set[str], share: float) -> dict[int, str]:
    """{row: the wrong label}: a share of the calm faces of some groups are called angry."""
    draw = random.Random(0)
    calm = [i for i, row in enumerate(rows) if row["emotion"] in CALM and row["race"] in groups]
    return dict.fromkeys(draw.sample(calm, round(share * len(calm))), LABEL)


def table(data: Any, labels: dict[int, str], path: Path) -> Path:
    """The rows as a Parquet file of one's own, AUs in columns, some with another label."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vlmface import facs
    from vlmface.schema import FaceSample

    records = []
    for i, row in enumerate(data):
        grades = FaceSample.from_row(row).intensities()
        records.append(
            {
                "image": row["image"],
                "emotion": labels.get(i, row["emotion"]),
                "id": row["id"],
                "race": row["race"],
            }
            | {facs.name(au): grades.get(au) or 0.0 for au in facs.SYNTH_AUS}
        )
    pq.write_table(pa.Table.from_pylist(records), path)
    return path


@pytest.mark.slow
def test_a_label_that_was_tied_to_one_ancestry_is_found(tmp_path: Path) -> None:
    from samples import load_script

    from vlmface.data.rows import pictures
    from vlmface.evaluate import faithfulness
    from vlmface.synth import dataset

    data = pictures(dataset.load("train", n=FACES))
    rows = data.select_columns(["emotion", "race"]).to_list()
    everyone = {row["race"] for row in rows}
    fault = mislabelled(rows, {GROUP}, 0.75)
    calm = sum(row["emotion"] in CALM for row in rows)
    noise = mislabelled(rows, everyone, len(fault) / calm)
    assert len(noise) == len(fault)
    shifts: dict[str, Any] = {}
    for name, labels in (("planted", fault), ("unbiased", noise)):
        path = table(data, labels, tmp_path / f"{name}.parquet")
        words = {"data": "table", "data_root": path, "output_dir": tmp_path / name, "n_eval": 16,
                 "data_options": '{aus: "AU*", au_values: intensity}'}  # fmt: skip
        recipe = load_script("recipes/sft_cot.py")
        assert recipe.main([x for k, v in words.items() for x in (f"--{k}", str(v))]) == 0
        out = tmp_path / f"{name}_pairs"
        faithfulness.main(["--model", str(tmp_path / name), "--n", "240", "--output_dir", str(out)])
        assert (out / "faithfulness.html").exists()
        found = json.loads((out / "faithfulness.json").read_text())["shifts"]["ancestry"]
        shifts[name] = found["groups"][GROUP][LABEL]
        print(name, shifts[name], found["found"])
    assert shifts["planted"]["ci95"][0] > 0
    assert shifts["unbiased"]["ci95"][0] <= 0 <= shifts["unbiased"]["ci95"][1]
