"""What a model says about every row of a benchmark, and what is true there: the lines of
predictions.jsonl.

A model is read in up to three ways, which are not the same and are never mixed: *generated*, the
label in the text that it writes; *after the rationale*, the label that it finds likeliest behind
the rationale it has just written; and by *likelihood*, the label that it finds likeliest without
writing.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vlmface import label_votes
from vlmface.adapter import attach
from vlmface.answers import Answer
from vlmface.aus.evidence import COLUMN as EVIDENCE
from vlmface.benchmarks import ATTRIBUTES, Benchmark
from vlmface.data import crop_cache, crops
from vlmface.data.row_images import image_refs, open_images, open_row_image, row_image_size
from vlmface.errors import UserError
from vlmface.infer.prediction import NO_PREDICTION
from vlmface.manifest import is_run
from vlmface.prompts import PromptLike
from vlmface.schema import AFFECT, FaceSample
from vlmface.utils.distributed import is_main, rank, world_size
from vlmface.utils.files import atomic_write
from vlmface.utils.images import ImageOrImages
from vlmface.utils.jsonl_journal import Journal

if TYPE_CHECKING:
    import datasets
    from PIL import Image

    from vlmface.infer.clip import ClipModel
    from vlmface.infer.local import LocalModel
    from vlmface.infer.prediction import LabelScores, Prediction
    from vlmface.infer.remote import RemoteModel

BATCH_SIZE = 32  # faces that are asked together, unless it is said
SCORINGS = ("generate", "likelihood", "both")
SORT_POOL = 50  # batches whose rows are sorted by size together: little padding, little memory
IMAGE_THREADS = 4  # threads that open the pictures of the next batch


PromptT = TypeVar("PromptT", bound=PromptLike)


class RecordStore(Protocol):
    """Where finished rows go at once, and which there are already: a journal, or memory."""

    records: dict[str, dict[str, Any]]

    def add(self, record: dict[str, Any]) -> None: ...


@dataclass
class _Memory:
    records: dict[str, dict[str, Any]]

    def add(self, record: dict[str, Any]) -> None:
        self.records[record["id"]] = record


def images_of(rows: datasets.Dataset) -> list[Image.Image]:
    """The pictures, opened."""
    return [open_row_image(image) for image in rows["image"]]


def answer(
    predictor: LocalModel | ClipModel,
    rows: datasets.Dataset,
    benchmark: Benchmark,
    *,
    batch_size: int,
    scoring: str = "generate",
    sink: RecordStore | None = None,
) -> list[dict[str, Any]]:
    """Ask the predictor about every row: the lines of predictions.jsonl, in order, those of a row
    one after the other if there are several prompts.

    `scoring`: "generate" (a text, and probabilities of the labels behind its rationale),
    "likelihood" (of each label, nothing written) or "both". Rows that `sink` has are not asked
    about again.
    """
    from tqdm import tqdm

    sink = sink or _Memory({})
    check_ids(rows["id"])
    predictors = [
        predictor.with_prompt(prompt) for prompt in scored_prompts(benchmark, predictor.prompts)
    ]
    left = [i for i, id in enumerate(rows["id"]) if id not in sink.records]
    title = f"answering {benchmark.id}"
    with tqdm(
        total=len(rows),
        initial=len(rows) - len(left),
        desc=title,
        unit="face",
        disable=not is_main(),
    ) as bar:
        for part, images in _batches_with_images(
            rows, _batches(rows, left, batch_size, predictor.pads)
        ):
            are_faces = [not is_without_face(row, predictor.views) for row in part]
            evidence = [row.get(EVIDENCE) for row in part]
            answers = [
                _predict_faces(single, images, evidence, are_faces, scoring, batch_size)
                for single in predictors
            ]
            for row, row_answers in zip(part, zip(*answers, strict=True), strict=True):
                lines = [
                    prediction_record(row, benchmark, single.prompt, prediction, scores)
                    for single, (prediction, scores) in zip(predictors, row_answers, strict=True)
                ]
                sink.add({"id": row["id"], "lines": lines})
            bar.update(len(images))
    return [line for id in rows["id"] for line in sink.records[id]["lines"]]


def predict_remote(
    server: RemoteModel,
    rows: datasets.Dataset,
    benchmark: Benchmark,
    journal: Journal,
    views: crops.Views = (),
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """`answer` by a server that serves a model with these views, so many rows at a time as its
    endpoint allows, in the free reading. Returns the lines and, of the faces that the server gave
    no answer for, {id: why}: they are not in the journal, and their lines hold an empty text, which
    counts as wrong."""
    import httpx2
    from tqdm import tqdm

    from vlmface.infer.jobs import run_jobs

    check_ids(rows["id"])
    prompts = scored_prompts(benchmark, server.prompts)
    left = [i for i, id in enumerate(rows["id"]) if id not in journal.records]
    finished = len(rows) - len(left)
    title = f"answering {benchmark.id}"
    with tqdm(total=len(rows), initial=finished, desc=title, unit="face") as bar:

        async def work(client: httpx2.AsyncClient, job: _Job) -> dict[str, Any]:
            if is_without_face(job.row, views):
                predictions = [NO_PREDICTION] * len(prompts)
            else:
                image = await asyncio.to_thread(open_images, job.row)
                evidence = job.row.get(EVIDENCE)
                predictions = [
                    await server.predict(client, prompt, image, evidence) for prompt in prompts
                ]
            lines = [
                prediction_record(job.row, benchmark, prompt, prediction)
                for prompt, prediction in zip(prompts, predictions, strict=True)
            ]
            return {"id": job.id, "lines": lines}

        jobs = (_Job(rows[i]) for i in left)
        unanswered = run_jobs(server.endpoint, jobs, work, journal, lambda: bar.update(1))
    records = dict(journal.records)
    for row in (row for row in rows if row["id"] in unanswered):
        silent = [
            prediction_record(row, benchmark, prompt, server.empty_prediction(prompt))
            for prompt in prompts
        ]
        records[row["id"]] = {"id": row["id"], "lines": silent}
    return [line for id in rows["id"] for line in records[id]["lines"]], unanswered


@dataclass(frozen=True)
class _Job:
    row: Mapping[str, Any]

    @property
    def id(self) -> str:
        return self.row["id"]


def check_ids(ids: Sequence[str]) -> None:
    """Raises UserError if two rows have one id: what is said of them could not be told apart."""
    if twice := [id for id, times in Counter(ids).items() if times > 1]:
        raise UserError(
            f"{len(twice)} ids of the data set occur more than once, for example {twice[0]!r}: "
            "give every row an id of its own"
        )


def _batches(
    rows: datasets.Dataset, left: Sequence[int], size: int, pads: bool
) -> Iterator[list[int]]:
    """Row numbers in batches; where a batch `pads`, pictures of like size together: of these it
    pads the least."""
    if not pads:
        yield from (list(left[i : i + size]) for i in range(0, len(left), size))
        return
    for start in range(0, len(left), SORT_POOL * size):
        pool = list(left[start : start + SORT_POOL * size])
        areas = {i: sum(map(_area, image_refs(rows[i]))) for i in pool}
        pool.sort(key=areas.__getitem__)
        yield from (pool[i : i + size] for i in range(0, len(pool), size))


def _area(image: Any) -> int:
    """Pixels of a stored picture; 0 for a face cut out, as those of a run have one size."""
    is_stored = isinstance(image, Mapping) and not image.get("bytes")
    if is_stored and crop_cache.is_reference(image["path"]):
        return 0
    width, height = row_image_size(image)
    return width * height


def _batches_with_images(
    rows: datasets.Dataset, batches: Iterator[list[int]]
) -> Iterator[tuple[list[dict[str, Any]], list[ImageOrImages]]]:
    """The batches with what is shown of each row; where a GPU answers, that of the next one is
    opened meanwhile. A CPU answers with all its cores: threads beside it would slow it down."""
    import torch

    if not torch.cuda.is_available():
        for batch in batches:
            part = _rows(rows, batch)
            yield part, [open_images(row) for row in part]
        return
    with ThreadPoolExecutor(IMAGE_THREADS) as pool:
        waiting: list[tuple[list[dict[str, Any]], list[Any]]] = []
        for batch in batches:
            part = _rows(rows, batch)
            waiting.append((part, [pool.submit(open_images, row) for row in part]))
            if len(waiting) > 1:
                part, opening = waiting.pop(0)
                yield part, [image.result() for image in opening]
        for part, opening in waiting:
            yield part, [image.result() for image in opening]


def _rows(rows: datasets.Dataset, batch: Sequence[int]) -> list[dict[str, Any]]:
    """Some rows: read as columns, which is many times as fast as one by one."""
    columns = rows[list(batch)]
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def is_without_face(row: Mapping[str, Any], views: Sequence[crops.View]) -> bool:
    """Whether a model with these views is not asked about a row, because no face was found: it has
    no label then, in `vlmface predict` as well."""
    return row.get("face_found") is False and crops.detects_face(views)


def _predict_faces(
    predictor: LocalModel | ClipModel,
    images: Sequence[ImageOrImages],
    evidence: Sequence[str | None],
    are_faces: Sequence[bool],
    scoring: str,
    batch_size: int,
) -> list[tuple[Prediction | None, LabelScores | None]]:
    """`_predict_and_score` of the faces; no prediction for the other images."""
    faces = list(itertools.compress(images, are_faces))
    face_evidence = list(itertools.compress(evidence, are_faces))
    answers = iter(
        _predict_and_score(predictor, faces, face_evidence, scoring, batch_size) if faces else []
    )
    return [next(answers) if is_face else (NO_PREDICTION, None) for is_face in are_faces]


def undecoded_rows(rows: datasets.Dataset) -> list[dict[str, Any]]:
    """All rows as dictionaries, images as they are stored and without further views."""
    from datasets import Image

    columns = [name for name in rows.column_names if name not in ("images", "frames")]
    stored = rows.select_columns(columns).cast_column("image", Image(decode=False))
    return [row | {"frames": None} for row in _rows(stored, range(len(stored)))]


def _predict_and_score(
    predictor: LocalModel | ClipModel,
    images: Sequence[ImageOrImages],
    evidence: Sequence[str | None],
    scoring: str,
    batch_size: int,
) -> list[tuple[Prediction | None, LabelScores | None]]:
    from vlmface.infer.local import LocalModel

    arguments: dict[str, Any] = {"batch_size": batch_size, "preprocessed": True}
    if isinstance(predictor, LocalModel):
        arguments["evidence"] = evidence
    written: Sequence[Prediction | None] = [None] * len(images)
    scored: Sequence[LabelScores | None] = [None] * len(images)
    if scoring != "likelihood":
        written = predictor.predict(images, **arguments)
    if scoring != "generate":
        scored = predictor.score(images, prior=True, **arguments)
    return list(zip(written, scored, strict=True))


def prediction_record(
    row: Mapping[str, Any],
    benchmark: Benchmark,
    prompt: PromptLike,
    prediction: Prediction | None,
    scores: LabelScores | None = None,
) -> dict[str, Any]:
    """A line of predictions.jsonl. Where nothing was written, `label` is the likeliest one, and of
    several labels a face none: how likely they are is in `scores`."""
    probabilities: dict[str, float] | None
    if prediction is not None:
        answer, text = prediction.answer, prediction.text
        probabilities, latency = prediction.probabilities, prediction.latency_s
    else:
        assert scores is not None
        text, latency = "", scores.latency_s
        if prompt.multi_label:
            probabilities, answer = None, Answer(None, (), "none", "")
        else:
            probabilities = scores.probabilities()
            answer = Answer(max(probabilities, key=probabilities.__getitem__), (), "strict", "")
    if prediction is not None and scores is not None:
        latency += scores.latency_s
    record: dict[str, Any] = {
        "id": row["id"],
        "subject": row.get("subject"),
        "image": (row["image"] or {}).get("path") or row["id"],
        "truth": ground_truth(FaceSample.from_row(row), benchmark),
        "prompt": prompt.id,
        "text": text,
        "label": answer.label,
        "status": answer.status,
        "aus": list(answer.aus),
        "probabilities": probabilities,
        "latency_s": round(latency, 4),
    }
    if (scale := prompt.space.scale) is not None:
        record["value"] = None if answer.label is None else float(answer.label)
        record["expected"] = scale.expected(probabilities) if probabilities else None
    if prompt.multi_label:
        record["labels"] = None if prediction is None else list(answer.labels)
    if prediction is not None and prediction.affect is not None:
        record["affect"] = prediction.affect
    if prompt.uses_evidence:
        record["evidence"] = row.get(EVIDENCE)
    if row.get("face_found") is not None:
        record["face_found"] = row["face_found"]
    if scores is not None:
        record["scores"] = {
            "log_likelihood": scores.log_likelihood,
            "tokens": scores.tokens,
            "prior": scores.prior,
        }
    return record


def open_model(
    model: str,
    *,
    prompts: Sequence[Any] = (),
    processor: Any = None,
    adapter: str | None = None,
    max_new_tokens: int | None = None,
) -> LocalModel | ClipModel:
    """Load a model that a recipe evaluates.

    Args:
        model: A run folder, or a base model, which needs `prompts`.
        prompts: Of a base model.
        processor: Of a base model; by default its own.
        adapter: The folder of an adapter that a base model gets.
        max_new_tokens: Overrides the limit in the manifest.

    Raises:
        UserError: The model cannot be loaded.
    """
    from vlmface.infer.loading import load
    from vlmface.infer.local import LocalModel

    is_base = not is_run(model)
    predictor = load(model, prompt=prompts[0] if is_base else None, max_new_tokens=max_new_tokens)
    if is_base and isinstance(predictor, LocalModel):
        predictor.prompts = list(prompts)
        predictor.processor = processor or predictor.processor
        if adapter is not None:
            predictor.model = attach(predictor.model, adapter)
    return predictor


def predict_with(
    predictor: LocalModel | ClipModel,
    path: Path,
    rows: datasets.Dataset,
    benchmark: Benchmark,
    *,
    batch_size: int,
    scoring: str = "generate",
) -> list[dict[str, Any]]:
    """`answer`, shared between the processes of a distributed run and kept in `path`: there
    already, it is read and not computed again. Killed in one process, it resumes from the last
    batch."""
    if path.exists():
        return read_lines(path)
    world = world_size()
    if world == 1:
        unfinished = path.with_suffix(".partial.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        with Journal(unfinished) as journal:
            lines = answer(
                predictor, rows, benchmark, batch_size=batch_size, scoring=scoring, sink=journal
            )
            write_lines(path, lines)
        unfinished.unlink()
    else:
        lines = answer_share(predictor, rows, benchmark, batch_size=batch_size, scoring=scoring)
        if is_main():
            write_lines(path, lines)
    return lines


def answer_share(
    predictor: LocalModel | ClipModel,
    rows: datasets.Dataset,
    benchmark: Benchmark,
    *,
    batch_size: int,
    scoring: str = "generate",
) -> list[dict[str, Any]]:
    """`answer` where the processes of a distributed run share the rows. All of them must call it;
    each returns all lines."""
    from accelerate.utils import gather_object

    # There may be fewer rows than processes.
    world = world_size()
    first, end = (len(rows) * number // world for number in (rank(), rank() + 1))
    share = rows.select(range(first, end))
    return gather_object(
        answer(predictor, share, benchmark, batch_size=batch_size, scoring=scoring)
    )


def scored_prompts(benchmark: Benchmark, prompts: Sequence[PromptT]) -> list[PromptT]:
    """Those of the prompts whose label space the benchmark scores, the first of each space; where
    only AUs are scored, the first whose answers name them. Raises UserError if there is none."""
    if not benchmark.spaces:
        scored = [next((prompt for prompt in prompts if prompt.has_rationale), None)]
    else:
        scored = [
            next((prompt for prompt in prompts if prompt.space.sha == space.sha), None)
            for space in benchmark.spaces
        ]
    if not any(scored):
        names = ", ".join(f"{prompt.id} for {prompt.space.id}" for prompt in prompts)
        if not benchmark.spaces:
            raise UserError(
                f"the prompts ask {names} and for nothing else, but benchmark {benchmark.id} "
                "scores action units: use a prompt whose answers name them, such as face_cot"
            )
        raise UserError(
            f"the prompts ask {names}, but benchmark {benchmark.id} scores "
            f"{', '.join(space.id for space in benchmark.spaces)}: use a prompt or a benchmark "
            "with the other's label space"
        )
    return [prompt for prompt in scored if prompt is not None]


def ground_truth(sample: FaceSample, benchmark: Benchmark) -> dict[str, Any]:
    """What is annotated for a row; null is "not annotated", or not scored where AUs alone are."""
    present = sample.intensities(benchmark.au_threshold)
    attributes = {name: getattr(sample, name) for name in ATTRIBUTES}
    emotion = sample.emotion if benchmark.spaces else None
    further: dict[str, Any] = {}
    for space in benchmark.spaces:
        if space.multi_label:
            further["labels"] = list(sample.labels(space)) or None
        elif space.field == "context":  # a list: the one label of this space in it
            attributes["context"] = sample.label(space)
            if (value := sample.value(space)) is not None:
                further["value"] = value
        elif space.field == "emotion":  # a word that is none stays, and is refused when scored
            emotion = sample.label(space) or emotion
        else:  # here too
            attributes[space.field] = sample.label(space) or attributes[space.field]
    if sample.label_votes and (votes := _votes(sample, benchmark)):
        further["votes"] = votes
    affect = {name: getattr(sample, name) for name in AFFECT}
    if any(value is not None for value in affect.values()):
        further["affect"] = affect
    return {
        "emotion": emotion,
        "aus": None if sample.aus is None else {str(au): value for au, value in present.items()},
        "annotated_aus": None if sample.aus is None else list(sample.annotated_aus()),
        "attributes": attributes,
        **further,
    }


def _votes(sample: FaceSample, benchmark: Benchmark) -> dict[str, dict[str, float]]:
    """{field of a label space of one label a face: {label: share of the votes}}."""
    assert sample.label_votes is not None
    shares = {
        space.field: label_votes.distribution(sample.label_votes, space).probabilities
        for space in benchmark.spaces
        if not space.multi_label and space.scale is None
    }
    return {field: labels for field, labels in shares.items() if labels is not None}


def filter_by_prompt(
    lines: Sequence[Mapping[str, Any]], prompt: PromptLike
) -> list[Mapping[str, Any]]:
    """The lines of predictions.jsonl that answer this prompt."""
    return [line for line in lines if line["prompt"] == prompt.id]


def au_set(benchmark: Benchmark, prompt: PromptLike) -> list[int]:
    """The AUs to score: none if the prompt asks for the label alone."""
    return benchmark.au_set if prompt.has_rationale else []


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write predictions.jsonl atomically."""
    atomic_write(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    # Not splitlines(): texts may hold other line separators as they are.
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def write_table(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write predictions.parquet, for data frames: the columns id, image, prompt, text, label,
    status, aus, latency_s; `true_emotion` and what else is annotated; `p_LABEL` and `ll_LABEL`,
    probability and log-likelihood of each label where they are known; `labels` and `true_labels`
    where a face has several; `value`, `expected` and `true_value` of a scale; `valence` and
    `arousal` where a model tells them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = ("id", "image", "prompt", "text", "label", "status", "aus", "latency_s")
    records = []
    for entry in lines:
        record = {name: entry[name] for name in plain}
        true = entry["truth"]
        record["true_emotion"] = true["emotion"]
        record |= {f"true_{name}": value for name, value in true["attributes"].items()}
        if "value" in entry:
            values = {"value": entry["value"], "expected": entry["expected"]}
            record |= values | {"true_value": true.get("value")}
        if "labels" in entry:
            record |= {"labels": entry["labels"], "true_labels": true["labels"]}
        record |= {f"true_{name}": value for name, value in true.get("affect", {}).items()}
        record |= entry.get("affect", {})
        record["true_aus"] = None if true["aus"] is None else [int(au) for au in true["aus"]]
        record |= {f"p_{label}": p for label, p in (entry["probabilities"] or {}).items()}
        likely = entry.get("scores", {}).get("log_likelihood", {})
        records.append(record | {f"ll_{label}": value for label, value in likely.items()})
    columns = dict.fromkeys(name for record in records for name in record)
    table = pa.table({name: [record.get(name) for record in records] for name in columns})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    atomic_write(path, buffer.getvalue().to_pybytes())
