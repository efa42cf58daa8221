"""`vlmface rationale build`: a labelled data set -> the same faces with verified rationales.

    rows -> truth (AUs, label) -> text (rules, a teacher, or a trained model) -> verdict
         -> data set, card, page

Everything is written into OUTPUT.building, which is renamed to OUTPUT at the end. Estimated AUs and
the answers of models are journaled there: rerun the same command to resume an interrupted build.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import data, facs, label_spaces, manifest, run_dir
from vlmface.aus import model as aus_model
from vlmface.data.row_images import open_row_image
from vlmface.errors import UserError
from vlmface.rationale import ground_truth, page, rules, self_training, teacher_prompts, verify
from vlmface.rationale.ground_truth import GroundTruth
from vlmface.rationale.summary import build_summary
from vlmface.rationale.types import (
    TEACHER_REQUEST,
    BuildContext,
    BuildSettings,
    ImageLoader,
    WrittenRationale,
)
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

# Settings that may change when a build is resumed.
_RESUMABLE_CHANGES = (
    "output_dir",
    "dataset_root",
    "overwrite",
    "api_key_env",
    "concurrency",
    "timeout",
    "attempts",
    "price_in",
    "price_out",
    "num_page_examples",
)


def build(settings: BuildSettings) -> dict[str, Any]:
    """Build, or resume, the folder `settings.output_dir`.

    Args:
        settings: Of the build.

    Returns:
        Its summary.

    Raises:
        UserError: The settings are not valid, the folder holds other files, the endpoint does not
            answer, or no rationale passes.
    """
    space = _check(settings)
    with lock.hold(settings.output_dir):
        return _build(settings, space)


def _build(settings: BuildSettings, space: label_spaces.LabelSpace) -> dict[str, Any]:
    """`build` in a locked folder."""
    output = Path(settings.output_dir)
    work = output.with_name(f"{output.name}.building")
    if _is_complete(settings, output):
        shutil.rmtree(work, ignore_errors=True)  # exists if the last build was killed at its end
        print(f"{output} is complete: see its rationale.html, or start again with --overwrite")
        return json.loads((output / "summary.json").read_text(encoding="utf-8"))
    teacher = _teacher(settings) if settings.writer == "teacher" else None
    sampler = _sampler(settings, space) if settings.writer == "model" else None
    rows = data.load(
        settings.dataset,
        settings.dataset_root,
        settings.dataset_split,
        n=settings.n,
        **settings.dataset_options,
    )
    if settings.overwrite:
        run_dir.delete_run(work)
    if any(path.stat().st_size for path in work.glob("*.jsonl")):
        run_dir.mark_trained(work)  # answers that were paid for are not deleted
    trained_at = manifest.trained_at(str(settings.model)) if sampler is not None else None
    identity = {"data": data.fingerprint(rows), "model_trained": trained_at}
    if settings.aus == ground_truth.LANDMARKS:
        identity["aus_model"] = aus_model.SHA256
    run_dir.start_in_folder(work, settings, identity, _RESUMABLE_CHANGES)

    context = BuildContext(settings, space, rows, _image_loader(rows), work)
    if sampler is not None:
        rationales = self_training.write_rationales(context, sampler)
    else:
        faces = _faces(context)
        if teacher is None:
            rationales = _by_rules(context, faces)
        else:
            rationales = _by_teacher(context, faces, teacher)
    near_duplicates = _mark_duplicates(rationales, settings)
    self_training.balance(rationales, settings.max_label_ratio, settings.seed)
    summary = build_summary(context, rationales, near_duplicates, teacher or sampler)
    if not summary["counts"]["kept"]:
        raise UserError(
            f"no rationale passes (skipped: {dict(context.skipped)}, rejected: "
            f"{summary['counts']['rejected_by']}): check labels, action units and limits; finished "
            f"answers are in {work}"
        )
    _finish(output, context, rationales, summary)
    return summary


def _check(settings: BuildSettings) -> label_spaces.LabelSpace:
    """The label space, after all checks that need no work. Raises UserError."""
    space = label_spaces.space(settings.label_space)
    if space.field != "emotion":
        raise UserError(f"rationales explain emotions, but {space.id} holds {space.field}")
    settings.check()
    config.refuse_unused(settings)
    return space


def _is_complete(settings: BuildSettings, output: Path) -> bool:
    replaced = _replaced_path(output)
    if replaced.exists() and not output.exists():  # killed between the two renames of `_finish`
        os.rename(replaced, output)
    shutil.rmtree(replaced, ignore_errors=True)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    if not run_dir.is_started(output):
        raise UserError(f"{output} holds other files than a build: use another --output_dir")
    if settings.overwrite:
        return False  # it is replaced when the new build is finished
    config.check_config(settings, output, ignore=_RESUMABLE_CHANGES)
    return True


def _replaced_path(output: Path) -> Path:
    """The path of a build while a new one replaces it."""
    return output.with_name(f".{output.name}.replaced")


def _teacher(settings: BuildSettings) -> Teacher:
    """The teacher of the settings. Raises UserError if they are incomplete."""
    for name in ("endpoint", "model"):
        if not getattr(settings, name):
            raise UserError(f"--writer teacher needs --{name}")
    if settings.show_label is None:
        raise UserError(
            "choose whether the teacher receives the emotion: --with-label (every text concludes "
            "it), or --without-label (texts that conclude another are rejected)"
        )
    prompt = teacher_prompts.load(
        settings.prompt or ("with_label" if settings.show_label else "without_label")
    )
    if prompt.shows_label != settings.show_label:
        contains = "contains" if prompt.shows_label else "does not contain"
        raise UserError(
            f"the teacher prompt {prompt.id!r} {contains} the label: use "
            f"--{'with' if prompt.shows_label else 'without'}-label with it, or another --prompt"
        )
    from vlmface.rationale.teacher import Teacher

    return Teacher(_endpoint(settings, TEACHER_REQUEST), prompt, settings.repairs)


def _sampler(settings: BuildSettings, space: label_spaces.LabelSpace) -> self_training.Sampler:
    """The trained model of the settings. Raises UserError if they are incomplete."""
    if not settings.model:
        raise UserError("--writer model needs --model: a run folder, or its name at --endpoint")
    sampler: self_training.Sampler
    if settings.endpoint:
        sampler = self_training.RemoteSampler(settings, _endpoint(settings, {"max_tokens": 600}))
    else:
        sampler = self_training.LocalSampler(settings)
    prompt = sampler.prompt
    if prompt.space.id != space.id or prompt.format not in teacher_prompts.FORMS:
        raise UserError(
            f"prompt {prompt.id} is for {prompt.space.id} in the format {prompt.format}: "
            f"rationales are written by prompts for {space.id} in a format of "
            f"{', '.join(teacher_prompts.FORMS)}"
        )
    return sampler


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


def _image_loader(rows: datasets.Dataset) -> ImageLoader:
    from datasets import Image

    column = rows.select_columns(["image"]).cast_column("image", Image(decode=False))

    def load_image(index: int) -> Image.Image | None:
        stored = column[index]["image"]
        try:
            return None if stored is None else open_row_image(stored)
        except UserError:
            return None

    return load_image


def _faces(context: BuildContext) -> list[tuple[int, str, GroundTruth]]:
    """(row number, id, truth) of the faces that can be explained. The others are counted as
    skipped, by reason."""
    from tqdm import tqdm

    settings = context.settings
    faces = []
    estimator = ground_truth.load_estimator(settings.aus) if settings.aus else None
    with contextlib.ExitStack() as stack:
        if isinstance(estimator, ground_truth.LandmarkEstimator):
            stack.enter_context(estimator)
        journal = stack.enter_context(Journal(context.work / "aus.jsonl"))
        plain_rows = context.rows.remove_columns(["image", "frames"])
        for index, row in enumerate(tqdm(plain_rows, "reading", unit="face")):
            sample = FaceSample.from_row(row)
            label = ground_truth.label_of(sample, context.space)
            if label is None:
                context.skipped["no label of the label space"] += 1
                continue
            truth = ground_truth.annotated_truth(sample, label)
            if truth is None and estimator is not None:
                source = str(settings.aus)
                if sample.id not in journal.records:
                    aus = _estimated_aus(context, estimator, sample, index)
                    journal.add({"id": sample.id, "aus": aus})
                aus = journal.records[sample.id]["aus"]
                threshold = settings.au_threshold
                truth = ground_truth.estimated_truth(aus, label, threshold=threshold, source=source)
            if truth is None:
                context.skipped["no action units"] += 1
                continue
            faces.append((index, sample.id, truth))
    return faces


def _estimated_aus(
    context: BuildContext, estimator: ground_truth.Estimator, sample: FaceSample, index: int
) -> dict[int, float | None] | None:
    """The AUs of a row: those that are stored with it, or those of its picture; None without a
    face."""
    if isinstance(estimator, ground_truth.LandmarkEstimator) and (aus := estimator.stored(sample)):
        return aus
    image = context.load_image(index)
    if image is None:
        return None
    source = str(context.settings.aus)
    return ground_truth.run_estimator(estimator, source, image, sample.face_box)


# --- the writers ----------------------------------------------------------------------------------


def _by_rules(
    context: BuildContext, faces: Sequence[tuple[int, str, GroundTruth]]
) -> list[WrittenRationale]:
    settings = context.settings
    rationales = []
    for index, id, truth in faces:
        seed = rules.sample_seed(settings.seed, id)
        text = rules.write(truth.aus, truth.label, seed=seed, style=settings.style)
        verdict = verify.check(text, truth, context.space, "think_answer", settings.limits)
        rationales.append(WrittenRationale(index, id, truth, text, verdict))
    return rationales


def _by_teacher(
    context: BuildContext, faces: Sequence[tuple[int, str, GroundTruth]], teacher: Teacher
) -> list[WrittenRationale]:
    from tqdm import tqdm

    from vlmface.rationale.teacher import Job

    settings, space, prompt = context.settings, context.space, teacher.prompt

    def judge(text: str, truth: GroundTruth) -> Verdict:
        return verify.check(text, truth, space, prompt.format, settings.limits)

    with Journal(context.work / "answers.jsonl") as journal:
        pending = [face for face in faces if face[1] not in journal.records]

        def jobs() -> Iterator[Job]:
            for index, id, truth in pending:
                image = context.load_image(index)
                if image is None:
                    context.skipped["no readable image"] += 1
                    continue
                uri = page.inline_jpeg(image, settings.image_side)
                messages = prompt.messages(truth, space, settings.limits, uri)
                yield Job(id, messages, lambda text, truth=truth: judge(text, truth))  # type: ignore[misc]

        if pending:
            _announce(len(pending), len(faces), settings, teacher)
            with tqdm(total=len(pending), desc="writing", unit="face") as bar:
                teacher.run(jobs(), journal, bar.update)
        rationales = []
        for index, id, truth in faces:
            if record := journal.records.get(id):
                text = record["text"]
                verdict = judge(text, truth)
                rationales.append(WrittenRationale(index, id, truth, text, verdict, record))
            elif id in teacher.unanswered:
                fault = Fault("no_answer", teacher.unanswered[id])
                verdict = dataclasses.replace(judge("", truth), faults=(fault,))
                rationales.append(WrittenRationale(index, id, truth, "", verdict))
    return rationales


def _announce(pending: int, faces: int, settings: BuildSettings, teacher: Teacher) -> None:
    """Print what is sent, and to whom."""

    def with_or_without(is_included: bool) -> str:
        return "with" if is_included else "without"

    finished = f"; {faces - pending} were answered before" if faces > pending else ""
    print(
        f"{pending} pictures of faces, {with_or_without(teacher.prompt.shows_aus)} their action "
        f"units and {with_or_without(teacher.prompt.shows_label)} their emotion labels, are sent "
        f"to {settings.endpoint} (model {settings.model}){finished}",
        flush=True,
    )


def _mark_duplicates(rationales: list[WrittenRationale], settings: BuildSettings) -> int:
    """The number of passing texts that nearly repeat an earlier one; they are rejected if the
    settings say so."""
    passing = [r for r in rationales if r.verdict.kept]
    earlier = verify.near_duplicates(
        [r.verdict.body for r in passing], settings.duplicate_threshold
    )
    for rationale, index in zip(passing, earlier, strict=True):
        if index is not None and settings.duplicates == "reject":
            message = f"It nearly repeats the text of {passing[index].id}."
            fault = Fault("near_duplicate", message)
            rationale.verdict = dataclasses.replace(rationale.verdict, faults=(fault,))
    return sum(index is not None for index in earlier)


# --- the result -----------------------------------------------------------------------------------


def _finish(
    output: Path,
    context: BuildContext,
    rationales: Sequence[WrittenRationale],
    summary: Mapping[str, Any],
) -> None:
    """Write all files into a folder next to the journals, then rename it to `output`, which
    replaces an earlier build."""
    work, result = context.work, context.work / "result"
    shutil.rmtree(result, ignore_errors=True)
    _with_rationales(context, rationales, summary).save_to_disk(result)
    for name in (config.SETTINGS, run_dir.RUN_FILE, "aus.jsonl", "answers.jsonl"):
        if (work / name).exists() and (work / name).stat().st_size:
            shutil.copyfile(work / name, result / name)
    rejected = [
        {
            "id": r.id,
            "label": r.truth.label,
            "aus": [facs.name(au) for au in facs.top_down(r.truth.aus)],
            "reasons": r.verdict.reasons,
            "messages": [fault.message for fault in r.verdict.faults],
            "text": r.text,
        }
        for r in rationales
        if not r.verdict.kept
    ]
    lines = [json.dumps(entry) + "\n" for entry in rejected]
    atomic_write(result / "rejected.jsonl", "".join(lines))
    atomic_write(result / "summary.json", json.dumps(summary, indent=2) + "\n")
    page.write_card(result / "README.md", summary)
    faces = context.settings.num_page_examples
    page.write_page(result / "rationale.html", summary, rationales, context.load_image, faces)
    if output.exists():
        os.rename(output, _replaced_path(output))
    os.rename(result, output)
    shutil.rmtree(_replaced_path(output), ignore_errors=True)
    shutil.rmtree(work)


def _with_rationales(
    context: BuildContext, rationales: Sequence[WrittenRationale], summary: Mapping[str, Any]
) -> datasets.Dataset:
    """The rows of the kept rationales, in order, with the rationales in their columns."""
    accepted = [r for r in rationales if r.verdict.kept]
    rows = context.rows.select([r.index for r in accepted])
    notes = [_note(r, summary) for r in accepted]
    metas = [
        json.dumps(json.loads(meta or "{}") | {"rationale": note}, sort_keys=True)
        for meta, note in zip(rows["meta"], notes, strict=True)
    ]
    columns: dict[str, list[Any]] = {
        "rationale": [r.verdict.body for r in accepted],
        "rationale_source": [context.settings.writer] * len(accepted),
        "rationale_saw_label": [summary["rationale_saw_label"]] * len(accepted),
        "meta": metas,
    }
    voted = [r.record.get("label") == self_training.VOTED_LABEL for r in accepted]
    if any(voted):  # a voted label replaces the annotation; they are not mixed
        annotated = rows.select_columns(["emotion", "aus"])[:]
        columns["emotion"] = [
            r.truth.label if is_voted else emotion
            for r, is_voted, emotion in zip(accepted, voted, annotated["emotion"], strict=True)
        ]
        columns["aus"] = [
            None if is_voted else aus for is_voted, aus in zip(voted, annotated["aus"], strict=True)
        ]
    for name, values in columns.items():
        feature = features()[name]
        rows = rows.remove_columns(name).add_column(name, values, feature=feature)
    return rows.select_columns(list(features()))


def _note(rationale: WrittenRationale, summary: Mapping[str, Any]) -> dict[str, Any]:
    """How a rationale was made, for the row's `meta`."""
    record, truth = rationale.record, rationale.truth
    return {
        **summary["writer"],
        "aus": truth.source,
        "repaired": "first" in record,
        **({} if truth.source == "annotated" else {"estimated_aus": truth.aus}),
        **{k: record[k] for k in ("label", "agreement", "samples") if k in record},
    }
