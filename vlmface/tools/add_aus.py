"""`vlmface data add-aus`: estimated action units next to a data set, for rationales and statistics.

The estimates are written into FILE.aus.jsonl next to FILE.yaml, which gets the key
`estimated_aus`. A second call estimates the rows that are new or whose picture has changed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import data, facs
from vlmface.data import estimates, sources
from vlmface.data.row_images import open_row_image
from vlmface.errors import UserError
from vlmface.schema import FaceSample
from vlmface.utils import config
from vlmface.utils.files import atomic_write
from vlmface.utils.jsonl_journal import Journal

if TYPE_CHECKING:
    import datasets

    from vlmface.aus.estimator import Estimator, FaceUnits


@dataclass(frozen=True)
class AddAusOptions:
    """Which estimates to make.

    Attributes:
        dataset: The YAML file of a data set.
        root: Folder of a copy, if the file does not name one.
        splits: () for all.
        overwrite: Replace the estimates of another model.
    """

    dataset: str
    root: str | None = None
    splits: Sequence[str] = ()
    overwrite: bool = False


def add_aus_command(options: AddAusOptions) -> int:
    """Estimate the action units of a data set's pictures.

    Returns:
        The exit code.

    Raises:
        UserError: The name is not a data set's YAML file, the estimates are of another model, or
            `vlmface[detect]` is not installed.
    """
    if not data.is_dataset_file(options.dataset):
        raise UserError(
            f"{options.dataset} is not the YAML file of a data set: write one with vlmface data "
            "init, or one that names a data set (dataset: rafdb, root: ...)"
        )
    path = Path(options.dataset).expanduser()
    definition = data.dataset_module(options.dataset)
    target = definition.estimates_path or path.with_name(f"{path.stem}.aus.jsonl")
    if definition.estimates_path is not None and not target.exists():
        target.write_text("", encoding="utf-8")  # named, but deleted: it is made again
    from vlmface.aus.estimator import Estimator

    with Estimator() as estimator:
        _check_estimator(target, estimator, options.overwrite)
        counts = _estimate(target, estimator, options)
    if definition.definition.estimated_aus is None:
        _add_key(path, target.name)
    _print(counts, target, estimator)
    print(
        f"next: vlmface rationale build --dataset {path} --aus landmarks "
        "--output-dir runs/rationales"
    )
    return 0


def _check_estimator(target: Path, estimator: Estimator, overwrite: bool) -> None:
    """Start the file, or check that it is of the same model. Raises UserError."""
    header = {
        "id": estimates.HEADER,
        "estimator": estimator.model.id,
        "sha256": estimator.model.sha256,
        "note": "estimates from landmarks, not annotations",
    }
    empty = not target.exists() or not target.stat().st_size
    if not empty and not overwrite:
        before, _ = estimates.read(target)
        if before.get("sha256") == estimator.model.sha256:
            return
        raise UserError(
            f"{target} holds estimates of {before.get('estimator')} ({before.get('sha256')}), not "
            f"of {estimator.model.id} ({estimator.model.sha256}): replace them with --overwrite"
        )
    atomic_write(target, json.dumps(header) + "\n")


def _estimate(target: Path, estimator: Estimator, options: AddAusOptions) -> Counter[str]:
    from tqdm import tqdm

    counts: Counter[str] = Counter()
    splits = options.splits or data.splits_of(options.dataset, options.root)
    with Journal(target) as journal:
        for split in splits:
            rows = data.load(options.dataset, options.root, split)
            for row, digest in tqdm(_rows_with_digests(rows), split, len(rows), unit="face"):
                sample = FaceSample.from_row(row)
                record = journal.records.get(sample.id)
                if record is not None and record.get("picture") == digest:
                    counts["known"] += 1
                else:
                    record = _record(sample, digest, estimator)
                    journal.add(record)
                _count(counts, record)
    return counts


def _rows_with_digests(rows: datasets.Dataset) -> Iterator[tuple[dict[str, Any], str]]:
    from datasets import Image

    undecoded = rows.cast_column("image", Image(decode=False)).remove_columns(["frames"])
    for row, pictures in zip(undecoded, sources.image_sources(rows), strict=True):
        if len(pictures) != 1 or row["image"] is None:
            raise UserError(
                f"{row['id']} has {len(pictures)} pictures: action units are estimated of data "
                "sets with one picture a row"
            )
        try:
            yield row, sources.content_digest(sources.read_content(pictures[0]))
        except OSError as error:
            raise UserError(f"the picture of {row['id']} cannot be read: {error}") from error


def _record(sample: FaceSample, digest: str, estimator: Estimator) -> dict[str, Any]:
    face: FaceUnits | None = None
    reason = "no face found"
    try:
        face = estimator.largest(open_row_image(sample.image), near=sample.face_box)
    except UserError as error:
        reason = f"the picture cannot be opened: {error}"
    record: dict[str, Any] = {"id": sample.id, "picture": digest, "aus": None, "reason": reason}
    if face is not None:
        record |= face.as_dict()
        record["aus"] = record["aus"] or None
    return record


def _count(counts: Counter[str], record: dict[str, Any]) -> None:
    counts["rows"] += 1
    if record["aus"] is None:
        counts["without"] += 1
        return
    for au, intensity in record["aus"].items():
        counts[au] += intensity >= 1


def _add_key(path: Path, name: str) -> None:
    """Append `estimated_aus` to the YAML file, whose comments stay."""
    text = path.read_text(encoding="utf-8")
    end = "" if not text or text.endswith("\n") else "\n"
    line = f"{estimates.FIELD}: {json.dumps(name)}  # estimates, not annotations\n"
    if config.read_yaml(path).get(estimates.FIELD) is None:
        atomic_write(path, f"{text}{end}{line}")


def _print(counts: Counter[str], target: Path, estimator: Estimator) -> None:
    faces = counts["rows"] - counts["without"]
    print(
        f"{faces:,} of {counts['rows']:,} faces estimated by {estimator.model.id}, "
        f"{counts['known']:,} of them earlier: {target}"
    )
    for au in facs.top_down(estimator.model.units):
        share = counts[str(au)] / max(1, faces)
        print(f"    {facs.name(au):6}{share:6.1%}  {facs.AUS[au].name}")
    print("estimates are in the rows' meta, not in aus: they are not annotations")
