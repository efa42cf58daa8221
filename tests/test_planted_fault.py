"""A fault that was planted is found, and one that was not is not: faces of which only one ancestry
is ever angry, against as many faces of the same labels drawn without regard to ancestry."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

GROUP, LABEL = "african", "anger"
FACES = 8000


def planted(rows: Any, seed: int) -> list[int]:
    """Rows of which the label occurs in the group alone, where every second face has it."""
    draw = random.Random(seed)
    angry = [i for i, row in enumerate(rows) if row["emotion"] == LABEL and row["race"] == GROUP]
    calm = [i for i, row in enumerate(rows) if row["emotion"] != LABEL]
    own = [i for i in calm if rows[i]["race"] == GROUP]
    return sorted(angry + draw.sample(own, len(angry)) + [i for i in calm if i not in set(own)])


def unbiased(rows: Any, like: list[int], seed: int) -> list[int]:
    """As many rows of each label as there are in `like`."""
    draw = random.Random(seed)
    labels = [row["emotion"] for row in rows]
    found: list[int] = []
    for label in sorted(set(labels)):
        count = sum(labels[i] == label for i in like)
        found += draw.sample([i for i, one in enumerate(labels) if one == label], count)
    return sorted(found)


def table(data: Any, chosen: list[int], path: Path) -> Path:
    """The rows as a Parquet file of one's own, AUs in columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vlmface import facs
    from vlmface.schema import FaceSample

    records = []
    for row in data.select(chosen):
        grades = FaceSample.from_row(row).intensities()
        records.append(
            {"image": row["image"], "emotion": row["emotion"], "id": row["id"], "race": row["race"]}
            | {facs.name(au): grades.get(au) or 0.0 for au in facs.SYNTH_AUS}
        )
    pq.write_table(pa.Table.from_pylist(records), path)
    return path


@pytest.mark.slow
def test_a_label_that_was_tied_to_one_ancestry_is_found(tmp_path: Path) -> None:
    from samples import load_script

    from vlmface.evaluate import faithfulness
    from vlmface.synth import dataset

    data = dataset.load("train", n=FACES)
    rows = data.select_columns(["emotion", "race"]).to_list()
    biased = planted(rows, 0)
    shifts: dict[str, Any] = {}
    for name, chosen in (("planted", biased), ("unbiased", unbiased(rows, biased, 0))):
        path = table(data, chosen, tmp_path / f"{name}.parquet")
        words = {"data": "table", "data_root": path, "output_dir": tmp_path / name, "n_eval": 64,
                 "data_options": '{aus: "AU*", au_values: intensity}'}  # fmt: skip
        recipe = load_script("recipes/sft_cot.py")
        assert recipe.main([x for k, v in words.items() for x in (f"--{k}", str(v))]) == 0
        out = tmp_path / f"{name}_pairs"
        faithfulness.main(["--model", str(tmp_path / name), "--output_dir", str(out)])
        assert (out / "faithfulness.html").exists()
        found = json.loads((out / "faithfulness.json").read_text())["shifts"]["ancestry"]
        shifts[name] = found["groups"][GROUP][LABEL]
        print(name, shifts[name], found["found"])
    assert shifts["planted"]["ci95"][0] > 0
    assert shifts["unbiased"]["ci95"][0] <= 0 <= shifts["unbiased"]["ci95"][1]
