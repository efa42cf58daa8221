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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import data, facs, label_spaces, manifest, run_dir
from vlmface.data.row_images import open_row_image
from vlmface.errors import UserError
from vlmface.rationale import ground_truth as truths
from vlmface.rationale import page, rules, self_training, teacher_prompts, verify
from vlmface.rationale.ground_truth import Truth
from vlmface.rationale.summary import summarise
from vlmface.rationale.teacher_prompts import TeacherPrompt
from vlmface.rationale.types import REQUEST, BuildSettings, Pictures, Written
from vlmface.rationale.verify import Fault, Verdict
from vlmface.schema import FaceSample, features
from vlmface.utils import config, lock
from vlmface.utils.files import atomic_write
from vlmface.utils.jsonl_journal import Journal

if TYPE_CHECKING:
    import datasets
    from PIL import Image

    from vlmface.infer.endpoint import Endpoint
    from vlmface.rationale.teacher import Job, Teacher

# Settings that may change between two sittings of one build.
_FREE = (
    "output",
    "root",
    "overwrite",
    "api_key_env",
    "concurrency",
    "timeout",
    "attempts",
    "price_in",
    "price_out",
    "faces",
)


def build(settings: BuildSettings) -> dict[str, Any]:
    """Build, or go on with, the folder `settings.output`; returns its summary.

    Raises UserError for settings that cannot work, for a folder that holds something else, for an
    endpoint that does not answer, and if no rationale passes.
    """
    space = _check(settings)
    with lock.hold(settings.output):
        return _build(settings, space)


def _build(settings: BuildSettings, space: label_spaces.LabelSpace) -> dict[str, Any]:
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
        run_dir.delete_run(work)
    if any(path.stat().st_size for path in work.glob("*.jsonl")):
        run_dir.mark_trained(work)  # answers that were paid for are not discarded
    answered_by = manifest.trained_at(str(settings.model)) if model is not None else None
    identity = {"data": data.fingerprint(rows), "model_trained": answered_by}
    run_dir.start_in_folder(work, settings, identity, _FREE)

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


def _check(settings: BuildSettings) -> label_spaces.LabelSpace:
    """The label space, after everything that can be said before any work. Raises UserError."""
    space = label_spaces.space(settings.label_space)
    if space.field != "emotion":
        raise UserError(f"rationales explain emotions, but {space.id} holds {space.field}")
    settings.check()
    config.refuse_unused(settings)
    return space


def _is_complete(settings: BuildSettings, output: Path) -> bool:
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


def _teacher(settings: BuildSettings) -> Teacher:
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
    settings: BuildSettings, space: label_spaces.LabelSpace
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


def _endpoint(settings: BuildSettings, request: Mapping[str, Any]) -> Endpoint:
    from vlmface.infer.endpoint import Endpoint

    return Endpoint(
        url=str(settings.endpoint),
        model=str(settings.model),
        api_key_env=settings.api_key_env,
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
    settings: BuildSettings,
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
    faces: Sequence[tuple[int, str, Truth]], settings: BuildSettings, space: label_spaces.LabelSpace
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
    settings: BuildSettings,
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


def _announce(n: int, of: int, settings: BuildSettings, prompt: TeacherPrompt) -> None:
    def told(is_told: bool) -> str:
        return "with" if is_told else "without"

    before = f"; {of - n} were answered before" if of > n else ""
    print(
        f"{n} pictures of faces, {told(prompt.saw_aus)} their action units and "
        f"{told(prompt.saw_label)} their emotion labels, are sent to {settings.endpoint} "
        f"(model {settings.model}){before}",
        flush=True,
    )


def _mark_duplicates(written: list[Written], settings: BuildSettings) -> int:
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
    settings: BuildSettings,
    written: Sequence[Written],
    summary: Mapping[str, Any],
) -> None:
    """Write all files into a folder beside the journals, then rename that to `output`, instead of
    an earlier build that is there."""
    result = work / "result"
    shutil.rmtree(result, ignore_errors=True)
    _with_rationales(rows, written, settings, summary).save_to_disk(result)
    for name in (config.SETTINGS, run_dir.RUN_FILE, "aus.jsonl", "answers.jsonl"):
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
    settings: BuildSettings,
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
