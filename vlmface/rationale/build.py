"""`vlmface rationale build`: a data set -> the same faces with checked rationales.

    rows -> truth (AUs, label) -> text (rules, a teacher, or a trained model) -> verdict
         -> data set, card, page

All of it happens in OUTPUT.building, which becomes OUTPUT by one rename at the very end. Estimated
AUs and the teacher's answers are journaled there: after a kill the same command goes on.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vlmface import data, facs, label_spaces, manifest, run_dir
from vlmface.data import option_checks
from vlmface.data.row_images import open_row_image
from vlmface.errors import UserError
from vlmface.rationale import ground_truth as truths
from vlmface.rationale import page, rules, self_training, teacher_prompts, verify
from vlmface.rationale.ground_truth import Truth
from vlmface.rationale.summary import summarise
from vlmface.rationale.teacher_prompts import TeacherPrompt
from vlmface.rationale.verify import Fault, Limits, Verdict
from vlmface.schema import FaceSample, features
from vlmface.utils import config, lock
from vlmface.utils.files import atomic_write
from vlmface.utils.jsonl_journal import Journal
from vlmface.utils.ranges import (
    Checked,
    Count,
    Natural,
    NotNegative,
    Positive,
    PositiveShare,
    Range,
    Seed,
    Share,
    Unused,
)

if TYPE_CHECKING:
    import datasets
    from PIL import Image

    from vlmface.infer.endpoint import Endpoint
    from vlmface.rationale.teacher import Job, Teacher

REQUEST = {"temperature": 0.7, "max_tokens": 600}  # of a teacher, unless the user says otherwise
# Settings that may change between two sittings of one build.
_FREE = (
    "output", "root", "overwrite", "api_key_env", "concurrency", "timeout", "attempts", "price_in",
    "price_out", "faces",
)  # fmt: skip


Words = Annotated[int, Range(min=16)]
Times = Annotated[float, Range(min=1)]  # as many texts as of the rarest emotion


@dataclass(frozen=True)
class Settings(Checked):
    """The options of `vlmface rationale build`; `vlmface.rationale.cli` explains them."""

    data: str
    output: str
    root: str | None = None
    split: str = "train"
    n: Count | None = None
    option: dict[str, Any] = field(default_factory=dict)
    label_space: str = "emotion8"
    aus: str | None = None
    au_threshold: Annotated[float, Range(above=0, max=5)] = 1.0
    writer: Literal["rules", "teacher", "model"] = "rules"
    style: str = "varied"
    seed: Seed = 0
    endpoint: str | None = None
    model: str | None = None
    saw_label: bool | None = None
    prompt: str | None = None
    api_key_env: str | None = None
    concurrency: Count = 8
    timeout: Positive = 120.0
    attempts: Count = 6
    repairs: Natural = 1
    request: dict[str, Any] = field(default_factory=dict)
    image_side: Annotated[int, Range(min=16)] = 768
    price_in: NotNegative | None = None
    price_out: NotNegative | None = None
    samples: Count = 8
    temperature: Positive = 1.0
    top_p: PositiveShare = 1.0
    labels: Literal["annotated", "vote"] = "annotated"
    min_agreement: Share = 0.5
    balance: Times | None = None
    batch_size: Count = 16
    min_precision: PositiveShare = 1.0
    min_recall: PositiveShare = 1.0
    max_words: Words = 150
    duplicates: Literal["report", "reject"] = "report"
    similarity: PositiveShare = 0.85
    faces: Natural = 12
    overwrite: bool = False

    def check(self) -> None:
        """Refuse what cannot be built, as far as it is known before any work. Raises UserError."""
        taken = {"n": "--n", "root": "--root", "split": "--split", "name": "--data"}
        option_checks.check(self.data, self.option, taken=taken, where="option")
        if self.style not in rules.STYLES:
            raise UserError(
                f"there is no style {self.style!r}: use one of {', '.join(rules.STYLES)}"
            )

    def unused(self) -> Iterator[Unused]:
        why = f"writer is {self.writer}"
        asks = ("endpoint", "model", "saw_label", "prompt")
        remote = ("api_key_env", "concurrency", "timeout", "attempts", "request", "image_side",
                  "price_in", "price_out")  # fmt: skip
        several = ("samples", "temperature", "top_p", "labels", "min_agreement")
        names = {
            "rules": (*asks, *remote, *several, "repairs", "batch_size"),
            "teacher": (*several, "style", "batch_size"),
            "model": ("style", "repairs", "aus"),
        }
        for name in names[self.writer]:
            yield Unused(name, why, ("writer",))
        if self.writer == "model":
            yield from unused_by_model(self.endpoint)
        if self.aus is None:
            yield Unused("au_threshold", "aus names no estimator", ("aus",))

    @property
    def limits(self) -> Limits:
        return Limits(self.min_precision, self.min_recall, self.max_words)


@dataclass
class Written:
    """One face with its text: `index` is its row, `record` the teacher's (empty for rules)."""

    index: int
    id: str
    truth: Truth
    text: str
    verdict: Verdict
    record: Mapping[str, Any] = field(default_factory=dict)


Pictures = Callable[[int], "Image.Image | None"]  # row number -> picture, None if there is none


def build(settings: Settings) -> dict[str, Any]:
    """Build, or go on with, the folder `settings.output`; returns its summary.

    Raises UserError for settings that cannot work, for a folder that holds something else, for an
    endpoint that does not answer, and if no rationale passes.
    """
    space = _check(settings)
    with lock.hold(settings.output):
        return _build(settings, space)


def _build(settings: Settings, space: label_spaces.LabelSpace) -> dict[str, Any]:
    """`build` in a folder that no other process builds in."""
    output = Path(settings.output)
    work = output.with_name(f"{output.name}.building")
    if _is_complete(settings, output):
        shutil.rmtree(work, ignore_errors=True)  # left if a kill struck between the last two steps
        print(f"{output} is complete: look at its rationale.html, or start with --overwrite")
        return json.loads((output / "summary.json").read_text(encoding="utf-8"))
    teacher = _teacher(settings) if settings.writer == "teacher" else None
    model = _model(settings, space) if settings.writer == "model" else None
    rows = data.load(settings.data, settings.root, settings.split, n=settings.n, **settings.option)
    if settings.overwrite:
        run_dir.discard(work)
    if any(path.stat().st_size for path in work.glob("*.jsonl")):
        run_dir.mark_trained(work)  # answers that were paid for are not discarded
    answered_by = manifest.made(str(settings.model)) if model is not None else None
    identity = {"data": data.fingerprint(rows), "model_trained": answered_by}
    run_dir.start_in(work, settings, identity, _FREE)

    pictures = _pictures(rows)
    left_out: Counter[str] = Counter()
    if model is not None:
        written = self_training.write(settings, rows, pictures, space, work, left_out, model)
    else:
        faces = _faces(rows, pictures, settings, space, work, left_out)
        if teacher is None:
            written = _by_rules(faces, settings, space)
        else:
            written = _by_teacher(faces, pictures, settings, space, work, left_out, teacher)
    twins = _mark_duplicates(written, settings)
    self_training.balance(written, settings.balance, settings.seed)
    summary = summarise(settings, space, rows, left_out, written, twins, teacher, model)
    if not summary["counts"]["kept"]:
        raise UserError(
            f"no rationale passes (left out: {dict(left_out)}, rejected: "
            f"{summary['counts']['rejected_by']}): check labels, action units and limits; what was "
            f"done so far is in {work}"
        )
    _finish(output, work, rows, pictures, settings, written, summary)
    return summary


def _check(settings: Settings) -> label_spaces.LabelSpace:
    """The label space, after everything that can be said before any work. Raises UserError."""
    space = label_spaces.space(settings.label_space)
    if space.field != "emotion":
        raise UserError(f"rationales explain emotions, but {space.id} holds {space.field}")
    settings.check()
    config.refuse_unused(settings)
    return space


def unused_by_model(endpoint: str | None) -> Iterator[Unused]:
    """Options of a model writer that only an endpoint, or only a model in this process, reads."""
    if endpoint:
        yield Unused("batch_size", "the model answers at an endpoint", ("endpoint",))
        return
    for name in ("api_key_env", "concurrency", "timeout", "attempts", "request", "image_side",
                 "price_in", "price_out"):  # fmt: skip
        yield Unused(name, "the model answers in this process, without an endpoint", ("endpoint",))


def _is_complete(settings: Settings, output: Path) -> bool:
    aside = _aside(output)
    if aside.exists() and not output.exists():  # killed between the two renames of `_finish`
        os.rename(aside, output)
    shutil.rmtree(aside, ignore_errors=True)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    if not run_dir.is_started(output):
        raise UserError(f"{output} holds something else than a build: use another --output")
    if settings.overwrite:
        return False  # it stays until the new one is finished
    config.compare(settings, output, free=_FREE)
    return True


def _aside(output: Path) -> Path:
    """Where a build is while a new one takes its place."""
    return output.with_name(f".{output.name}.replaced")


def _teacher(settings: Settings) -> Teacher:
    """The teacher that the settings describe. Raises UserError for what is missing or wrong."""
    for name in ("endpoint", "model"):
        if not getattr(settings, name):
            raise UserError(f"--writer teacher needs --{name}")
    if settings.saw_label is None:
        raise UserError(
            "say whether the teacher is told the emotion: --with-label (every text concludes "
            "it), or --without-label (texts that conclude another are rejected)"
        )
    prompt = teacher_prompts.load(
        settings.prompt or ("with_label" if settings.saw_label else "without_label")
    )
    if prompt.saw_label != settings.saw_label:
        told = "tells" if prompt.saw_label else "does not tell"
        raise UserError(
            f"the teacher prompt {prompt.id!r} {told} the label: use "
            f"--{'with' if prompt.saw_label else 'without'}-label with it, or another --prompt"
        )
    from vlmface.rationale.teacher import Teacher

    return Teacher(_endpoint(settings, REQUEST), prompt, settings.repairs)


def _model(
    settings: Settings, space: label_spaces.LabelSpace
) -> self_training.Local | self_training.Remote:
    """The trained model that the settings name. Raises UserError for what is missing or wrong."""
    if not settings.model:
        raise UserError("--writer model needs --model: a run folder, or its name at --endpoint")
    asked: self_training.Local | self_training.Remote
    if settings.endpoint:
        asked = self_training.Remote(settings, _endpoint(settings, {"max_tokens": 600}))
    else:
        asked = self_training.Local(settings)
    if asked.prompt.space.id != space.id or asked.prompt.form not in teacher_prompts.FORMS:
        raise UserError(
            f"prompt {asked.prompt.id} asks for {asked.prompt.space.id} in the form "
            f"{asked.prompt.form}: rationales are written by prompts for {space.id} in a form of "
            f"{', '.join(teacher_prompts.FORMS)}"
        )
    return asked


def _endpoint(settings: Settings, request: Mapping[str, Any]) -> Endpoint:
    from vlmface.infer.endpoint import Endpoint

    return Endpoint(
        url=str(settings.endpoint),
        model=str(settings.model),
        key_env=settings.api_key_env,
        concurrency=settings.concurrency,
        timeout_s=settings.timeout,
        attempts=settings.attempts,
        request=dict(request) | settings.request,
    )


# --- the faces and their truth --------------------------------------------------------------------


def _pictures(rows: datasets.Dataset) -> Pictures:
    from datasets import Image

    column = rows.select_columns(["image"]).cast_column("image", Image(decode=False))

    def picture(index: int) -> Image.Image | None:
        stored = column[index]["image"]
        try:
            return None if stored is None else open_row_image(stored)
        except UserError:
            return None

    return picture


def _faces(
    rows: datasets.Dataset,
    pictures: Pictures,
    settings: Settings,
    space: label_spaces.LabelSpace,
    work: Path,
    left_out: Counter[str],
) -> list[tuple[int, str, Truth]]:
    """(row number, id, truth) of the faces that can be explained; counts the others by reason."""
    from tqdm import tqdm

    found = []
    estimator = truths.load_estimator(settings.aus) if settings.aus else None
    with Journal(work / "aus.jsonl") as journal:
        plain = rows.remove_columns(["image", "frames"])
        for index, row in enumerate(tqdm(plain, "reading", unit="face")):
            sample = FaceSample.from_row(row)
            label = truths.label_of(sample, space)
            if label is None:
                left_out["no label of the label space"] += 1
                continue
            truth = truths.annotated(sample, label)
            if truth is None and estimator is not None:
                if sample.id not in journal.records:
                    image = pictures(index)
                    aus = truths.estimate(estimator, str(settings.aus), image) if image else None
                    journal.add({"id": sample.id, "aus": aus})
                truth = truths.estimated(
                    journal.records[sample.id]["aus"],
                    label,
                    threshold=settings.au_threshold,
                    source=str(settings.aus),
                )
            if truth is None:
                left_out["no action units"] += 1
                continue
            found.append((index, sample.id, truth))
    return found


# --- the writers ----------------------------------------------------------------------------------


def _by_rules(
    faces: Sequence[tuple[int, str, Truth]], settings: Settings, space: label_spaces.LabelSpace
) -> list[Written]:
    written = []
    for index, id, truth in faces:
        seed = rules.seed_of(settings.seed, id)
        text = rules.write(truth.aus, truth.label, seed=seed, style=settings.style)
        verdict = verify.check(text, truth, space, "think_answer", settings.limits)
        written.append(Written(index, id, truth, text, verdict))
    return written


def _by_teacher(
    faces: Sequence[tuple[int, str, Truth]],
    pictures: Pictures,
    settings: Settings,
    space: label_spaces.LabelSpace,
    work: Path,
    left_out: Counter[str],
    teacher: Teacher,
) -> list[Written]:
    from tqdm import tqdm

    from vlmface.rationale.teacher import Job

    prompt, form = teacher.prompt, teacher.prompt.form

    def judge(text: str, truth: Truth) -> Verdict:
        return verify.check(text, truth, space, form, settings.limits)

    with Journal(work / "answers.jsonl") as journal:
        open_faces = [face for face in faces if face[1] not in journal.records]

        def jobs() -> Iterator[Job]:
            for index, id, truth in open_faces:
                image = pictures(index)
                if image is None:
                    left_out["no readable image"] += 1
                    continue
                uri = page.data_uri(image, settings.image_side)
                messages = prompt.messages(truth, space, settings.limits, uri)
                yield Job(id, messages, lambda text, truth=truth: judge(text, truth))  # type: ignore[misc]

        if open_faces:
            _announce(len(open_faces), len(faces), settings, prompt)
            with tqdm(total=len(open_faces), desc="asking", unit="face") as bar:
                teacher.write(jobs(), journal, bar.update)
        written = []
        for index, id, truth in faces:
            if record := journal.records.get(id):
                text = record["text"]
                written.append(Written(index, id, truth, text, judge(text, truth), record))
            elif id in teacher.unanswered:
                fault = Fault("no_answer", teacher.unanswered[id])
                verdict = dataclasses.replace(judge("", truth), faults=(fault,))
                written.append(Written(index, id, truth, "", verdict))
    return written


def _announce(n: int, of: int, settings: Settings, prompt: TeacherPrompt) -> None:
    def told(is_told: bool) -> str:
        return "with" if is_told else "without"

    before = f"; {of - n} were answered before" if of > n else ""
    print(
        f"{n} pictures of faces, {told(prompt.saw_aus)} their action units and "
        f"{told(prompt.saw_label)} their emotion labels, are sent to {settings.endpoint} "
        f"(model {settings.model}){before}",
        flush=True,
    )


def _mark_duplicates(written: list[Written], settings: Settings) -> int:
    """The number of passing texts that nearly repeat an earlier one; a fault of theirs if so
    asked."""
    passing = [w for w in written if w.verdict.kept]
    twins = verify.near_duplicates([w.verdict.body for w in passing], settings.similarity)
    for w, twin in zip(passing, twins, strict=True):
        if twin is not None and settings.duplicates == "reject":
            fault = Fault("near_duplicate", f"It nearly repeats the text of {passing[twin].id}.")
            w.verdict = dataclasses.replace(w.verdict, faults=(fault,))
    return sum(twin is not None for twin in twins)


# --- the result -----------------------------------------------------------------------------------


def _finish(
    output: Path,
    work: Path,
    rows: datasets.Dataset,
    pictures: Pictures,
    settings: Settings,
    written: Sequence[Written],
    summary: Mapping[str, Any],
) -> None:
    """Write all files into a folder beside the journals, then rename that to `output`, instead of
    an earlier build that is there."""
    result = work / "result"
    shutil.rmtree(result, ignore_errors=True)
    _with_rationales(rows, written, settings, summary).save_to_disk(result)
    for name in (config.SETTINGS, run_dir.RECORD, "aus.jsonl", "answers.jsonl"):
        if (work / name).exists() and (work / name).stat().st_size:
            shutil.copyfile(work / name, result / name)
    rejected = [
        {
            "id": w.id,
            "label": w.truth.label,
            "aus": [facs.name(au) for au in facs.top_down(w.truth.aus)],
            "reasons": w.verdict.reasons,
            "messages": [fault.message for fault in w.verdict.faults],
            "text": w.text,
        }
        for w in written
        if not w.verdict.kept
    ]
    atomic_write(result / "rejected.jsonl", "".join(json.dumps(r) + "\n" for r in rejected))
    atomic_write(result / "summary.json", json.dumps(summary, indent=2) + "\n")
    page.write_card(result / "README.md", summary)
    page.write_page(result / "rationale.html", summary, written, pictures, settings.faces)
    if output.exists():
        os.rename(output, _aside(output))
    os.rename(result, output)
    shutil.rmtree(_aside(output), ignore_errors=True)
    shutil.rmtree(work)


def _with_rationales(
    rows: datasets.Dataset,
    written: Sequence[Written],
    settings: Settings,
    summary: Mapping[str, Any],
) -> datasets.Dataset:
    """The rows of the kept rationales, in order, with those in them."""
    kept = [w for w in written if w.verdict.kept]
    found = rows.select([w.index for w in kept])
    notes = [
        {
            **summary["writer"],
            "aus": w.truth.source,
            "repaired": "first" in w.record,
            **({} if w.truth.source == "annotated" else {"estimated_aus": w.truth.aus}),
            **{k: w.record[k] for k in ("label", "agreement", "samples") if k in w.record},
        }
        for w in kept
    ]
    metas = [
        json.dumps(json.loads(meta or "{}") | {"rationale": note}, sort_keys=True)
        for meta, note in zip(found["meta"], notes, strict=True)
    ]
    n = len(kept)
    columns: dict[str, list[Any]] = {
        "rationale": [w.verdict.body for w in kept],
        "rationale_source": [settings.writer] * n,
        "saw_label": [summary["saw_label"]] * n,
        "meta": metas,
    }
    voted = [w.record.get("label") == self_training.VOTED for w in kept]
    if any(voted):  # what was voted takes the place of an annotation, which is not mixed with it
        was = found.select_columns(["emotion", "aus"])[:]
        columns["emotion"] = [
            w.truth.label if v else own
            for w, v, own in zip(kept, voted, was["emotion"], strict=True)
        ]
        columns["aus"] = [None if v else own for v, own in zip(voted, was["aus"], strict=True)]
    for name, values in columns.items():
        kind = features()[name]
        found = found.remove_columns(name).add_column(name, values, feature=kind)
    return found.select_columns(list(features()))
