"""The answers of other systems, scored as our own are: read from the files that those write.

    ferbench    a list of {image_path, true_label, prompt, candidate_labels, model_response, error}
                (UniFER's infer_unifer.py); the answer stands in <think>, <answer>
    facial-r1   {"inference_results": [{image, gt_AUs, gt_labels, description}]} (its eval_qwen.py),
                or JSON lines {id, dataset, image, AUs, labels, description} as in FEA-20K;
                `description` is the model's text, with <think>, <answer>
    expllm      a list of {task, img_path, gt, pred} (its result_all.json, a label each), or of
                {file_name, emo, description} as in its annotations: a text in three parts
    jsonl       JSON lines {"id", "text", "truth"}, where `truth` is a label or {"emotion", "aus",
                "annotated_aus", "attributes"}; so is the predictions.jsonl of a run

Every item counts: one with an `error`, or without a text, is an answer that cannot be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from vlmface import answers, facs, label_spaces
from vlmface.benchmarks import ATTRIBUTES, benchmark_names, load_benchmark
from vlmface.data.adapters.fea20k import OTHER
from vlmface.data.records import Record, check_choice, match_label, records, short_repr
from vlmface.errors import UserError
from vlmface.label_spaces import LabelSpace
from vlmface.metrics import metrics
from vlmface.scales import number_text, read_number

# How ExpLLM is asked for labels.
EXPLLM_WORDS = (
    "Neutral",
    "Happiness",
    "Sadness",
    "Surprise",
    "Fear",
    "Disgust",
    "Anger",
    "Contempt",
)
_SAMPLE = 200  # answers from which the format of a jsonl file is found


@dataclass(frozen=True)
class Item:
    """One answer. `truth` is that of a prediction row (see `metrics`), `failed` says that there was
    an error instead of an answer, `words` are the labels in the words that the model was given (the
    space's own if empty)."""

    where: str
    id: str
    image: str | None
    truth: dict[str, Any]
    text: str
    failed: bool
    words: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether the request failed or the answer is blank."""
        return self.failed or not self.text.strip()


@dataclass(frozen=True)
class Answers:
    """A file: its items, and the label space and answer format that they are read in."""

    space: LabelSpace
    format: str
    items: list[Item]

    def au_set(self, predictions: Sequence[Mapping[str, Any]]) -> list[int]:
        """The AUs to score: those that any item's truth lists or was coded for, and, where a truth
        does not list what was coded, those that an answer names: on a face whose AUs are known,
        another one is a false alarm. None if labels were asked."""
        if not answers.has_rationale(self.format):
            return []
        aus: set[int] = set()
        for item, prediction in zip(self.items, predictions, strict=True):
            if item.truth["aus"] is None:
                continue
            aus.update(map(int, item.truth["aus"]))
            coded = item.truth["annotated_aus"]
            aus.update(prediction["aus"] if coded is None else coded)
        return sorted(aus)


def parse_au_set(words: Sequence[str]) -> list[int]:
    """The AUs of `--au-set`: numbers or names of AUs, or the name of a benchmark, whose set it is.
    Raises UserError."""
    if len(words) == 1 and words[0] in benchmark_names():
        benchmark = load_benchmark(words[0])
        if not benchmark.au_set:
            raise UserError(
                f"--au-set {words[0]}: that benchmark scores no action units: list their numbers"
            )
        return list(benchmark.au_set)
    return sorted({facs.parse_name(part) for word in words for part in word.split(",") if part})


def read(
    path: Path, format: str, label_space: str | None = None, au_set: Sequence[int] = ()
) -> Answers:
    """The answers in a file. `label_space` is by default emotion8; for FERBench emotion7 if no item
    has contempt among its candidates. `au_set`: the AUs that were coded in all items with AUs,
    where the file does not say. Raises UserError with the file and the line or record for whatever
    is not as the format says, for ids that occur twice, and for labels outside the space.
    """
    check_choice("format", format, tuple(FORMATS))
    file_records = records(
        path,
        lines=True if format == "jsonl" else None,
        within="inference_results" if format == "facial-r1" else None,
    )
    if not file_records:
        raise UserError(f"{path} holds no answers: give the file that the model's run wrote")
    space = label_spaces.space(label_space or _default_space(format, file_records))
    if space.multi_label:
        raise UserError(
            f"files of other systems are read for one label a face, but {space.id} has several: "
            "use eval/run.py with the model"
        )
    answer_format, items = FORMATS[format](file_records, space)
    if au_set and format == "facial-r1":  # which guesses them from what is listed
        for item in items:
            item.truth["annotated_aus"] = None
    places: dict[str, str] = {}
    for item in items:
        if item.id in places:
            raise UserError(
                f"{item.where}: id {short_repr(item.id)} is that of {places[item.id]} too, but an "
                "item has one answer: keep one of them; of a run with several prompts, those of one"
            )
        places[item.id] = item.where
    if all(true_label(item, space) is None and item.truth["aus"] is None for item in items):
        raise UserError(f"{path}: no item has a true label or AUs, so nothing can be scored")
    return Answers(space, answer_format, items)


def predictions(file_answers: Answers) -> list[dict[str, Any]]:
    """The lines of predictions.jsonl, in order."""
    return [_prediction(item, file_answers) for item in file_answers.items]


def _prediction(item: Item, file_answers: Answers) -> dict[str, Any]:
    answer = answers.Answer(None, (), "none", "")
    if not item.empty:
        answer = answers.parse(
            item.text, space_in_words(file_answers.space, item.words), file_answers.format
        )
    on_scale = {} if file_answers.space.scale is None else {"value": answer.value}
    return {
        "id": item.id,
        "image": item.image,
        "truth": item.truth,
        "text": item.text,
        "label": file_answers.space.match(answer.label) if answer.label else None,
        "status": answer.status,
        "aus": list(answer.aus),
        "probabilities": None,
        "latency_s": None,
        **on_scale,
    }


@lru_cache(maxsize=1000)
def space_in_words(space: LabelSpace, words: tuple[str, ...]) -> LabelSpace:
    """The labels of a space that `words` name, in these words: what an answer may be, letter by
    letter, if they were given to the model. Other words for these labels remain aliases."""
    if not words:
        return space
    word_of = {space.match(word): word for word in words}
    aliases = {alias: word_of[label] for alias, label in space.index.items() if label in word_of}
    return LabelSpace(space.id, space.field, words, aliases, space.source)


# --- formats --------------------------------------------------------------------------------------


def _ferbench(file_records: Sequence[Record], space: LabelSpace) -> tuple[str, list[Item]]:
    items = []
    for record in file_records:
        candidates = tuple(record.texts("candidate_labels"))
        if lacking := [word for word in candidates if match_label(space, word) is None]:
            record.refuse("candidate_labels", f"labels of {space.id}, which {lacking[0]!r} is not")
        label = record.text("true_label")
        if label not in candidates:
            record.refuse("true_label", f"one of the candidates {', '.join(candidates)}")
        path = record.text("image_path")
        items.append(
            Item(
                record.where,
                f"ferbench-{_stem(record, 'image_path').lstrip('/')}",
                path,
                _truth(space, match_label(space, label)),
                *_answer(record, "model_response"),
                candidates,
            )
        )
    return "think_answer", items


def _facial_r1(file_records: Sequence[Record], space: LabelSpace) -> tuple[str, list[Item]]:
    """AUs that no item of a data set lists were not coded there; in a set that lists AUs, an item
    that does not list one of them does not show it, as in Facial-R1's own scores."""
    items, coded = [], dict[str, set[int]]()
    truths = [_facial_r1_truth(record, space) for record in file_records]
    sources = [record.optional("dataset") or "" for record in file_records]
    for source, (units, _) in zip(sources, truths, strict=True):
        coded.setdefault(source, set()).update(units)
    for record, source, (units, label) in zip(file_records, sources, truths, strict=True):
        truth = _truth(space, label)
        if coded[source]:
            truth["aus"] = {str(unit): None for unit in sorted(units)}
            truth["annotated_aus"] = sorted(coded[source])
        image = next(iter(record.images("image")), None)
        id = f"fea20k-{source}-{record.word('id')}" if record.has("id") else image
        if not id:
            record.refuse("image", "the path of an image, or an 'id' beside it")
        items.append(Item(record.where, id, image, truth, *_answer(record, "description")))
    return "think_answer", items


def _facial_r1_truth(record: Record, space: LabelSpace) -> tuple[set[int], str | None]:
    """The true AUs and the true label, None if there is not just one of the space."""
    truth_keys = {"gt_AUs", "gt_labels"} & set(record.fields)
    units, labels = ("gt_AUs", "gt_labels") if truth_keys else ("AUs", "labels")
    if not {units, labels} & set(record.fields):
        record.refuse("gt_labels", "true labels, or 'gt_AUs' beside it")
    words = [
        None if word.lower() in OTHER else _word(record.but(**{labels: word}), labels, space)
        for word in (record.texts(labels) if record.has(labels) else ())
    ]
    return (
        record.units(units) if record.has(units) else set(),
        words[0] if len(words) == 1 else None,
    )


def _expllm(file_records: Sequence[Record], space: LabelSpace) -> tuple[str, list[Item]]:
    word_of = {space.match(word): word for word in EXPLLM_WORDS}
    words = (
        tuple(word_of[label] for label in space.labels) if set(space.labels) <= set(word_of) else ()
    )
    items, first_of_format = [], dict[str, str]()
    for record in file_records:
        if "task" in record.fields or "pred" in record.fields:
            task = record.optional("task") or "emo_estim"
            if task not in ("emo_estim", "emo_analysis"):
                record.refuse("task", "'emo_estim' or 'emo_analysis'; no other is about emotion")
            image, text = "img_path", "pred"
        else:
            task, image, text = "emo_analysis", "file_name", "description"
        # A label in `emo` may be what the model had said a turn before; then `gt_emo` is the truth.
        name = "gt" if task == "emo_estim" else "gt_emo" if record.has("gt_emo") else "emo"
        if task == "emo_analysis" and not record.has(name):
            record.refuse(name, "the true label: 'gt' of this task is a text")
        answer_format = "label" if task == "emo_estim" else "three_part"
        first_of_format.setdefault(answer_format, record.where)
        items.append(
            Item(
                record.where,
                f"expllm-{_stem(record, image)}",
                record.text(image),
                _truth(space, _word(record, name, space)),
                *_answer(record, text),
                words if answer_format == "label" else (),
            )
        )
    if len(first_of_format) > 1:
        raise UserError(
            f"{first_of_format['label']} holds a label and {first_of_format['three_part']} a "
            "description: they are "
            "answers to two questions; score them in files of their own"
        )
    return next(iter(first_of_format)), items


def _jsonl(file_records: Sequence[Record], space: LabelSpace) -> tuple[str, list[Item]]:
    items = []
    for record in file_records:
        is_number = space.scale is not None and isinstance(record.fields.get("truth"), int | float)
        if isinstance(record.fields.get("truth"), str) or is_number:
            truth = _truth(space, _word(record, "truth", space))
        else:
            truth = _annotation(record, space)
        image = record.fields.get("image")
        image = image if isinstance(image, str) else None
        answer = _answer(record, "text")
        items.append(Item(record.where, record.word("id"), image, truth, *answer))
    return _detect_format(items, space), items


Reader = Callable[[Sequence[Record], LabelSpace], tuple[str, list[Item]]]
FORMATS: dict[str, Reader] = {
    "ferbench": _ferbench,
    "facial-r1": _facial_r1,
    "expllm": _expllm,
    "jsonl": _jsonl,
}


def _default_space(format: str, file_records: Iterable[Record]) -> str:
    if format != "ferbench":
        return "emotion8"
    words = {word.lower() for record in file_records for word in record.texts("candidate_labels")}
    return "emotion8" if "contempt" in words else "emotion7"


def _detect_format(items: Iterable[Item], space: LabelSpace) -> str:
    """The format that most of the first answers follow, in whatever letters their labels are, as
    the file does not say what was asked. It decides which answers are strict, and that AUs are not
    scored where labels were asked."""
    texts = [item.text for item in items if not item.empty][:_SAMPLE]
    follow = {
        answer_format: sum(answers.matches_format(text, space, answer_format) for text in texts)
        for answer_format in answers.FORMATS
        if answer_format not in answers.MULTI_LABEL_FORMATS
    }
    return max(follow, key=follow.__getitem__)


# --- fields ---------------------------------------------------------------------------------------


def _answer(record: Record, name: str) -> tuple[str, bool]:
    """The model's text, "" if it is null, and whether there was an error instead."""
    text, failed = record.fields.get(name), bool(record.fields.get("error"))
    if isinstance(text, str):
        return text, failed
    if not failed and not (text is None and name in record.fields):
        record.refuse(name, "the model's text")
    return "", failed


def _stem(record: Record, name: str) -> str:
    """An image path without its ending, as the ids of `data` have it."""
    try:
        return str(PurePosixPath(record.text(name)).with_suffix(""))
    except ValueError:  # "/" or ".."
        record.refuse(name, "the path of an image")


def _word(record: Record, name: str, space: LabelSpace) -> str:
    """The label of the space that a field names, of a scale the exact number as text."""
    value = record.fields.get(name)
    if space.scale is not None and isinstance(value, int | float) and not isinstance(value, bool):
        record = record.but(**{name: number_text(value) if math.isfinite(value) else str(value)})
    label = match_label(space, record.text(name))
    if label is None:
        record.refuse(name, f"one of {space.candidates} ({space.id}; --label_space names another)")
    return label if space.scale is None else record.text(name)


def _truth(space: LabelSpace, label: str | None) -> dict[str, Any]:
    """The truth of a prediction row, as `answering` writes it, that knows the label alone."""
    attributes: dict[str, str | None] = dict.fromkeys(ATTRIBUTES)
    truth = {"emotion": None, "aus": None, "annotated_aus": None, "attributes": attributes}
    return _with_label(truth, space, label)


def _with_label(truth: dict[str, Any], space: LabelSpace, label: str | None) -> dict[str, Any]:
    if space.scale is not None and label is not None:
        truth["value"], label = read_number(label), space.match(label)
    if space.field == "emotion":
        truth["emotion"] = label
    else:
        truth["attributes"][space.field] = label
    return truth


def true_label(item: Item, space: LabelSpace) -> str | None:
    """The annotated label of an item in a label space, None without annotation."""
    return metrics.truth({"truth": item.truth}, space)


def _annotation(record: Record, space: LabelSpace) -> dict[str, Any]:
    """`truth` as a mapping, checked."""
    fields = record.fields.get("truth")
    if not isinstance(fields, dict):
        record.refuse("truth", 'a label, or {"emotion": "fear", "aus": [1, 4]}')
    inner = Record(f"{record.where}, truth", fields)
    attributes = fields.get("attributes") or {}
    if not isinstance(attributes, dict):
        inner.refuse("attributes", '{"gender": "female", ...}')
    about = Record(inner.where, attributes)
    truth = _truth(space, None)
    truth["attributes"] |= {name: about.optional(name) for name in ATTRIBUTES}
    holder, name = (inner, "emotion") if space.field == "emotion" else (about, space.field)
    if space.scale is not None:
        _with_label(truth, space, _word(inner, "value", space) if inner.has("value") else None)
    else:
        _with_label(truth, space, _word(holder, name, space) if holder.optional(name) else None)
    if not inner.has("aus"):
        if inner.has("annotated_aus"):
            inner.refuse("aus", "the AUs that are present ([] if none is), as some are annotated")
        return truth
    present = {str(au): value for au, value in _intensities(inner).items()}
    annotated = None
    if inner.has("annotated_aus"):
        annotated = sorted(set(_units(inner, "annotated_aus")))
        if unannotated := [int(au) for au in present if int(au) not in annotated]:
            inner.refuse("annotated_aus", f"all AUs of 'aus', {facs.name(unannotated[0])} too")
    return truth | {"aus": present, "annotated_aus": annotated}


def _intensities(record: Record) -> dict[int, float | None]:
    """`aus`, a list of the AUs that are present or {AU: intensity or null}, by AU."""
    value = record.fields["aus"]
    if not isinstance(value, Mapping):
        return dict.fromkeys(_units(record, "aus"))
    for grade in value.values():
        if grade is None:
            continue
        if isinstance(grade, bool) or not isinstance(grade, int | float) or not 0 <= grade <= 5:
            record.refuse("aus", "intensities from 0 to 5, or null for present but not graded")
    units = _units(record.but(aus=list(value)), "aus")
    return dict(zip(units, value.values(), strict=True))


def _units(record: Record, name: str) -> list[int]:
    """AU numbers of a list such as [4, "AU12"]."""
    value = record.fields[name]
    if not isinstance(value, list) or any(
        isinstance(unit, bool) or not isinstance(unit, int | str) for unit in value
    ):
        record.refuse(name, 'a list of AUs such as [4, 12] or ["AU4", "AU12"]')
    numbers = []
    for unit in value:
        try:
            numbers.append(facs.parse_name(str(unit)))
        except UserError:
            record.but(**{name: unit}).refuse(name, 'AUs of FACS, such as 4 or "AU4"')
    return numbers
