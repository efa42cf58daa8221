"""The evidence of pictures: what is measured in the picture that a model is shown, as text.

The text depends on the picture's pixels alone, so it is the same in training, evaluation and
serving. Measurements of data sets are kept in the user's cache folder, in an SQLite file for each
estimator, in which a picture is known by its pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmface import evidence
from vlmface.aus import measurement, model
from vlmface.aus.estimator import Estimator
from vlmface.data import detect, landmarker_file
from vlmface.data.crops import Views
from vlmface.data.row_images import IMAGE_COLUMNS, image_refs, open_row_image
from vlmface.data.sources import map_in_threads
from vlmface.errors import UserError
from vlmface.prompts import PromptLike
from vlmface.utils import files
from vlmface.utils.images import as_list

if TYPE_CHECKING:
    import datasets
    from PIL import Image

    from vlmface.utils.images import ImageOrImages

COLUMN = "evidence"  # of rows whose evidence was measured
MODES = ("measured", "withheld")
_KEYS_PER_QUERY = 500  # SQLite bounds the parameters of a statement
_BLOCK = 256  # measurements that are written at once: the most that a killed run loses
_TABLE = "create table if not exists faces (key blob primary key, record text)"
WITHHOLD = "or answer without evidence: --evidence withheld"


# --- which estimator ------------------------------------------------------------------------------


def identity() -> dict[str, Any]:
    """What a manifest says about the evidence: everything that its text depends on."""
    return {
        "estimator": model.Model.load().id,
        "sha256": model.SHA256,
        "landmarker_sha256": landmarker_file.SHA256,
        "measurement": measurement.VERSION,
        "format": evidence.VERSION,
    }


def uses_evidence(prompts: Iterable[PromptLike]) -> bool:
    """Whether some prompt contains evidence."""
    return any(prompt.uses_evidence for prompt in prompts)


def check_trained(
    trained: Mapping[str, Any] | None, prompts: Iterable[PromptLike], run: str | Path
) -> None:
    """Check that a run's evidence is what is measured here.

    Args:
        trained: `evidence` of the run's manifest.
        prompts: Of the run.
        run: Its folder, for messages.

    Raises:
        UserError: The evidence of training was another one, or is not known.
    """
    if not uses_evidence(prompts):
        return
    if trained is None:
        raise UserError(
            f"{run}: its prompts contain evidence, but its manifest does not name the estimator: "
            "restore vlmface.json, or train again"
        )
    here = identity()
    for name, value in here.items():
        if trained[name] != value:
            raise UserError(
                f"{run} was trained with evidence of {trained['estimator']}, whose {name} is "
                f"{trained[name]}, but that of this vlmface is {value}: install the vlmface that "
                "trained it, or train again"
            )


def check_available() -> None:
    """Raise UserError, with the fix, if evidence cannot be measured here."""
    if reason := detect.unavailable_reason():
        raise UserError(f"the prompt contains measured movements of the face: {reason}; {WITHHOLD}")


def picture_index(views: Views, frames: int) -> int:
    """Which of the pictures that a model is shown is measured: the face, in the middle frame.

    Args:
        views: () for the pictures as they are.
        frames: Of a clip, for each view.

    Raises:
        UserError: No view shows the face.
    """
    names = [view.view for view in views] or ["face"]
    if "face" not in names:
        raise UserError(
            f"views are {', '.join(names)}, but the evidence of the prompt is measured in a view "
            "of the face: add {view: face}, or use a prompt without {evidence}"
        )
    return names.index("face") * frames + frames // 2


# --- one picture ----------------------------------------------------------------------------------


class EvidenceSource:
    """Measures faces; any number of threads may share one. Use it in a `with` block, or close it.

    Args:
        mode: "measured", or "withheld" for a source that measures nothing.
        index: Of the picture that is measured, where a model is shown several (`picture_index`).
    """

    def __init__(self, mode: str = "measured", index: int = 0) -> None:
        self.mode, self.index = mode, index
        self._estimator: Estimator | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> EvidenceSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the estimator. The source can be used again."""
        with self._lock:
            estimator, self._estimator = self._estimator, None
        if estimator is not None:
            estimator.close()

    def text(self, images: ImageOrImages) -> str:
        """The evidence of what a model is shown.

        Args:
            images: A picture, or the list of its views and frames.

        Raises:
            UserError: `vlmface[detect]` is not installed.
        """
        if self.mode == "withheld":
            return evidence.NOT_MEASURED
        return _text(self.record(as_list(images)[self.index]))

    def texts(self, images: Sequence[ImageOrImages]) -> list[str]:
        """`text` of several, in threads."""
        return list(map_in_threads(self.text, images, "measuring", progress=False))

    def record(self, image: Image.Image) -> dict[str, Any]:
        """The measurement of a picture's largest face, as the cache stores it."""
        with self._lock:
            self._estimator = self._estimator or Estimator()
            estimator = self._estimator
        face = estimator.largest(image)
        if face is None:
            return {"aus": {}, "reason": "no face found"}
        return face.as_dict() | {"photographed": face.photographed}


def _text(record: Mapping[str, Any]) -> str:
    if not record["aus"]:
        return evidence.NOT_MEASURED
    return evidence.text_of(
        evidence.Movements(
            {int(au): value for au, value in record["aus"].items()},
            {int(au): (s["left"], s["right"]) for au, s in record["sides"].items()},
            is_photograph=record["photographed"] >= 0.5,
        )
    )


# --- rows -----------------------------------------------------------------------------------------


def with_evidence(
    rows: datasets.Dataset,
    prompts: Iterable[PromptLike],
    views: Views = (),
    frames: int = 1,
    *,
    progress: bool = True,
) -> datasets.Dataset:
    """The rows with their evidence in column COLUMN, if a prompt contains any.

    Args:
        rows: As `crop_cache.apply_views` returns them.
        prompts: That they are asked with.
        views: That they were made with.
        frames: As `views`.
        progress: Show progress bars.

    Raises:
        UserError: A picture cannot be read, no view shows the face, or `vlmface[detect]` is not
            installed.
    """
    from datasets import Dataset, concatenate_datasets

    if not uses_evidence(prompts):
        return rows
    check_available()
    index = picture_index(views, frames)
    pictures = rows.select_columns([name for name in IMAGE_COLUMNS if name in rows.column_names])
    refs = [image_refs(row)[index] for row in pictures]
    texts = _measured_texts(refs, progress)
    if COLUMN in rows.column_names:
        rows = rows.remove_columns(COLUMN)
    return concatenate_datasets([rows, Dataset.from_dict({COLUMN: texts})], axis=1)


def _measured_texts(refs: Sequence[Any], progress: bool) -> list[str]:
    """The text of each stored picture. What the cache lacks is measured and added to it."""
    keys = list(map_in_threads(_key, refs, "reading faces", progress=progress))
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path, timeout=600)) as store:
        store.execute(_TABLE)
        records = _stored(store, keys)
        missing = {key: ref for key, ref in zip(keys, refs, strict=True) if key not in records}
        if missing:
            with EvidenceSource() as source:
                measured = map_in_threads(
                    lambda ref: source.record(open_row_image(ref)),
                    list(missing.values()),
                    "measuring faces",
                    progress=progress,
                )
                waiting = list(missing)
                for start in range(0, len(waiting), _BLOCK):
                    part = waiting[start : start + _BLOCK]
                    added = {key: next(measured) for key in part}
                    with store:
                        store.executemany(
                            "insert or replace into faces values (?, ?)",
                            [(key, json.dumps(record)) for key, record in added.items()],
                        )
                    records |= added
    return [_text(records[key]) for key in keys]


def _key(ref: Any) -> bytes:
    """What identifies the pixels of a stored picture."""
    pixels = np.asarray(open_row_image(ref).convert("RGB"))
    content = repr(pixels.shape).encode() + pixels.tobytes()
    return hashlib.blake2b(content, digest_size=16).digest()


def _stored(store: sqlite3.Connection, keys: Iterable[bytes]) -> dict[bytes, dict[str, Any]]:
    distinct = list(dict.fromkeys(keys))
    records: dict[bytes, dict[str, Any]] = {}
    for start in range(0, len(distinct), _KEYS_PER_QUERY):
        part = distinct[start : start + _KEYS_PER_QUERY]
        marks = ", ".join("?" * len(part))
        query = f"select key, record from faces where key in ({marks})"
        records |= {key: json.loads(text) for key, text in store.execute(query, part)}
    return records


def cache_file() -> Path:
    """Where measurements are kept, of this estimator alone."""
    versions = f"{measurement.VERSION}.{detect.SEARCH_VERSION}"
    name = f"{model.SHA256[:12]}-{landmarker_file.SHA256[:12]}-v{versions}.sqlite"
    return files.cache_dir() / "evidence" / name
