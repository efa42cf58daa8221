"""The model writer: a trained model answers each face several times, without the annotation.

If a face has a label, its answers are compared with that; otherwise with the most frequent answer.
The same applies to action units. The share of answers that agree is the confidence.
(Self-consistency: Wang et al. 2022, arXiv:2203.11171. Answers filtered by known labels: STaR,
Zelikman et al. 2022, arXiv:2203.14465.)
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from vlmface import answers, facs, prompts
from vlmface.answers import Answer
from vlmface.errors import UserError
from vlmface.infer.sampling import Distribution
from vlmface.rationale import ground_truth, page, teacher_prompts, verify
from vlmface.rationale.ground_truth import GroundTruth
from vlmface.rationale.verify import Fault, Verdict
from vlmface.schema import FaceSample
from vlmface.utils.jsonl_journal import Journal

if TYPE_CHECKING:
    import httpx2
    from PIL import Image

    from vlmface.infer.endpoint import Endpoint
    from vlmface.rationale.types import (
        BuildContext,
        BuildSettings,
        ImageLoader,
        WrittenRationale,
    )

VOTED_LABEL = "vote"
_ALL_AUS = frozenset(facs.AU_NUMBERS)


@dataclass(frozen=True)
class Vote:
    """The agreement of several answers to one face.

    Attributes:
        label: The label that is counted.
        agreement: The share of all answers with it, 0..1; unreadable ones count against it.
        aus: The AUs that at least half of those answers name.
    """

    label: str | None
    agreement: float
    aus: frozenset[int]


def majority_vote(face_answers: Sequence[Answer], label: str | None = None) -> Vote:
    """Count the answers to one face.

    Args:
        face_answers: All answers.
        label: The label to count; by default the most frequent one, of ties the earliest.
    """
    counts = Counter(answer.label for answer in face_answers if answer.label is not None)
    if label is None:
        label = max(counts, key=lambda candidate: counts[candidate], default=None)
    agreeing = [answer for answer in face_answers if label is not None and answer.label == label]
    au_counts = Counter(au for answer in agreeing for au in set(answer.aus))
    aus = frozenset(au for au, count in au_counts.items() if 2 * count >= len(agreeing))
    agreement = len(agreeing) / len(face_answers) if face_answers else 0.0
    return Vote(label, agreement, aus)


@dataclass(frozen=True)
class Face:
    """A face for the model.

    Attributes:
        index: Its row.
        id: Its id.
        label: The annotated label, None: the answers vote.
        truth: The annotated AUs, None: the answers vote.
        known: The annotated label, also if it is not used.
        box: In pixels.
    """

    index: int
    id: str
    label: str | None
    truth: GroundTruth | None
    known_label: str | None
    box: list[float] | None


def select_rationale(
    face: Face,
    texts: Sequence[str],
    parse: Callable[[str], Answer],
    judge: Callable[[str, GroundTruth], Verdict],
    min_agreement: float,
) -> tuple[GroundTruth, str, Verdict, dict[str, Any]]:
    """Select one of the answers to a face: the first that passes, else the one with the fewest
    faults.

    Args:
        face: The face.
        texts: Its answers.
        parse: Parses a text.
        judge: Verifies a text.
        min_agreement: The share of answers that must agree.

    Returns:
        (the face's annotated or voted truth, the text, its verdict, figures of the vote).
    """
    vote = majority_vote([parse(text) for text in texts], face.label)
    voted_aus = dict.fromkeys(sorted(vote.aus))
    truth = face.truth or GroundTruth(vote.label or "", voted_aus, _ALL_AUS, VOTED_LABEL)
    verdicts = [judge(text, truth) for text in texts]
    best = min(range(len(texts)), key=lambda i: (len(verdicts[i].faults), i))
    verdict = verdicts[best]
    if vote.agreement < min_agreement:
        fault = Fault(
            "disagreement",
            f"{vote.agreement:.0%} of {len(texts)} answers conclude {truth.label or 'anything'}.",
        )
        verdict = replace(verdict, faults=(*verdict.faults, fault))
    record = {
        "label": "annotated" if face.label else VOTED_LABEL,
        "agreement": round(vote.agreement, 4),
        "samples": len(texts),
        "known_label": face.known_label,
    }
    return truth, texts[best], verdict, record


# --- samplers -------------------------------------------------------------------------------------


class LocalSampler:
    """Samples answers from a run folder, in this process."""

    def __init__(self, settings: BuildSettings) -> None:
        from vlmface.infer.local import LocalModel

        self.settings = settings
        self.model = LocalModel.load(str(settings.model), prompt=settings.prompt)
        self.prompt = self.model.prompt

    def sample(
        self,
        faces: Sequence[Face],
        load_image: ImageLoader,
        build_messages: MessageBuilder,
        journal: Journal,
        on_done: Callable[[int], Any],
    ) -> dict[str, str]:
        """Sample answers. Batches do not depend on interruptions, so the answers do not either.

        Args:
            faces: All faces.
            load_image: Reads the picture of a row.
            build_messages: Makes the messages for a face.
            journal: For {"id", "texts"}; faces with a record are skipped.
            on_done: Called with the number of faces of each batch.

        Returns:
            {id: cause} of the faces without an answer; empty.
        """
        size = self.settings.batch_size
        for number, start in enumerate(range(0, len(faces), size)):
            batch = faces[start : start + size]
            if all(face.id in journal.records for face in batch):
                continue
            texts = self.model.sample(
                [_load(load_image, face) for face in batch],
                self.settings.num_samples,
                Distribution(self.settings.temperature, self.settings.top_p),
                seed=_seed(self.settings.seed, number),
                boxes=[face.box for face in batch],
                messages=[build_messages(face, None) for face in batch],
            )
            for face, face_texts in zip(batch, texts, strict=True):
                journal.add({"id": face.id, "texts": face_texts})
            on_done(len(batch))
        return {}


class RemoteSampler:
    """Samples answers from a server with the OpenAI API, such as vLLM's."""

    def __init__(self, settings: BuildSettings, endpoint: Endpoint) -> None:
        endpoint.check()
        if settings.prompt is None:
            raise UserError(
                "a server does not report which prompts its model was trained on: give --prompt"
            )
        self.settings, self.endpoint = settings, endpoint
        self.prompt = prompts.load(settings.prompt)

    def sample(
        self,
        faces: Sequence[Face],
        load_image: ImageLoader,
        build_messages: MessageBuilder,
        journal: Journal,
        on_done: Callable[[int], Any],
    ) -> dict[str, str]:
        """Sample answers; arguments and result as in `LocalSampler.sample`."""
        from vlmface.infer.chat import chat
        from vlmface.infer.endpoint import NoAnswerError
        from vlmface.infer.jobs import run_jobs

        settings = self.settings
        _, format = message_builder(settings, self.prompt)

        async def sample_face(client: httpx2.AsyncClient, face: Face) -> dict[str, Any]:
            uri = page.inline_jpeg(_load(load_image, face), settings.image_side)
            request = {
                "n": settings.num_samples,
                "temperature": settings.temperature,
                "top_p": settings.top_p,
                "seed": _seed(settings.seed, face.index) % 2**31,
            }
            choices, usage = await chat(client, self.endpoint, build_messages(face, uri), request)
            texts = [choice.text(format) for choice in choices]
            if len(texts) < settings.num_samples:
                raise NoAnswerError(
                    f"{len(texts)} answers instead of {settings.num_samples}: the server ignores "
                    "`n`",
                    retryable=False,
                )
            return {
                "id": face.id,
                "texts": texts,
                "requests": 1,
                "prompt_tokens": usage.get("prompt_tokens") or 0,
                "completion_tokens": usage.get("completion_tokens") or 0,
                "requests_without_usage": int(not usage),
            }

        pending = [face for face in faces if face.id not in journal.records]
        if not pending:
            return {}
        annotation = "with their annotation" if settings.show_label else "without annotation"
        print(
            f"{len(pending)} pictures of faces, {annotation}, are sent to {self.endpoint.url} "
            f"(model {self.endpoint.model})",
            flush=True,
        )
        return run_jobs(self.endpoint, iter(pending), sample_face, journal, lambda: on_done(1))


Sampler: TypeAlias = LocalSampler | RemoteSampler


def _load(load_image: ImageLoader, face: Face) -> Image.Image:
    image = load_image(face.index)
    if image is None:  # it could be read when the faces were collected
        raise UserError(f"the picture of {face.id} can no longer be read: check the data set")
    return image


def _seed(*parts: int) -> int:
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


# --- messages -------------------------------------------------------------------------------------

# (face, picture as a data URI or None for a local model) -> chat messages.
MessageBuilder = Callable[[Face, "str | None"], list[dict[str, Any]]]


def message_builder(settings: BuildSettings, prompt: prompts.Prompt) -> tuple[MessageBuilder, str]:
    """How faces are presented to the model.

    Args:
        settings: With show_label, the teacher prompt `with_label` is used, which contains the
            annotation as that of Facial-R1 does; otherwise the model's own prompt.
        prompt: The model's own prompt.

    Returns:
        (builder of the messages for a face, format of the answers).
    """
    from vlmface.infer.chat import attach_images

    if not settings.show_label:
        messages = prompt.messages()
        return lambda face, uri: attach_images(messages, [uri]) if uri else messages, prompt.format
    teacher_prompt = teacher_prompts.load("with_label")
    space, limits = prompt.space, settings.limits

    def with_truth(face: Face, uri: str | None) -> list[dict[str, Any]]:
        if face.truth is None:
            raise UserError(
                f"{face.id} has no annotation to give to the model: leave show_label out, or use "
                "data with labels and action units"
            )
        messages = teacher_prompt.messages(face.truth, space, limits, uri or "")
        if uri is None:  # the image block of a local model
            messages[-1]["content"][0] = {"type": "image"}
        return messages

    return with_truth, teacher_prompt.format


def prompt_facts(settings: BuildSettings, prompt: prompts.Prompt) -> dict[str, Any]:
    """The prompt of `message_builder`, for the data card."""
    if not settings.show_label:
        return {"prompt": prompt.id, "prompt_version": prompt.version, "prompt_sha": prompt.sha}
    teacher_prompt = teacher_prompts.load("with_label")
    return {
        "prompt": teacher_prompt.id,
        "prompt_version": teacher_prompt.version,
        "prompt_sha": teacher_prompt.sha(prompt.space, settings.limits),
    }


# --- the faces ------------------------------------------------------------------------------------


def collect_faces(context: BuildContext) -> list[Face]:
    """The faces to sample answers for, each picture once. The others are counted as skipped, by
    reason."""
    from tqdm import tqdm

    faces, digests = [], set()
    annotated = context.settings.label_source == "annotated"
    plain_rows = context.rows.remove_columns(["image", "frames"])
    for index, row in enumerate(tqdm(plain_rows, "reading", unit="face")):
        sample = FaceSample.from_row(row)
        image = context.load_image(index)
        if image is None:
            context.skipped["no readable image"] += 1
            continue
        pixels = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
        if pixels in digests:
            context.skipped["the picture of an earlier face"] += 1
            continue
        digests.add(pixels)
        known_label = ground_truth.label_of(sample, context.space)
        label = known_label if annotated else None
        if annotated and sample.emotion and known_label is None:
            context.skipped["no label of the label space"] += 1
            continue
        truth = ground_truth.annotated_truth(sample, label) if label else None
        faces.append(Face(index, sample.id, label, truth, known_label, sample.face_box))
    return faces


def write_rationales(context: BuildContext, sampler: Sampler) -> list[WrittenRationale]:
    """Sample answers for all faces, or resume, and select a text for each.

    Args:
        context: Of the build.
        sampler: The trained model.

    Returns:
        A rationale for each face.
    """
    from tqdm import tqdm

    from vlmface.rationale.types import WrittenRationale

    settings, space = context.settings, context.space
    faces = collect_faces(context)
    build_messages, format = message_builder(settings, sampler.prompt)

    def parse(text: str) -> Answer:
        return answers.parse(text, space, format)

    def judge(text: str, truth: GroundTruth) -> Verdict:
        return verify.check(text, truth, space, format, settings.limits)

    rationales = []
    with Journal(context.work / "answers.jsonl") as journal:
        finished = sum(face.id in journal.records for face in faces)
        with tqdm(total=len(faces), initial=finished, desc="sampling", unit="face") as bar:
            unanswered = sampler.sample(
                faces, context.load_image, build_messages, journal, bar.update
            )
        for face in faces:
            if (record := journal.records.get(face.id)) is None:
                truth = face.truth or GroundTruth(face.label or "", {}, frozenset(), VOTED_LABEL)
                fault = Fault("no_answer", unanswered[face.id])
                verdict = replace(judge("", truth), faults=(fault,))
                rationales.append(WrittenRationale(face.index, face.id, truth, "", verdict))
                continue
            truth, text, verdict, vote_record = select_rationale(
                face, record["texts"], parse, judge, settings.min_agreement
            )
            counts = {k: v for k, v in record.items() if k not in ("id", "texts")}
            rationales.append(
                WrittenRationale(
                    face.index, face.id, truth, text, verdict, {**counts, **vote_record}
                )
            )
    return rationales


def balance(
    rationales: Sequence[WrittenRationale], max_label_ratio: float | None, seed: int
) -> None:
    """Reject kept texts at random until no emotion has too many.

    Args:
        rationales: Their verdicts are changed.
        max_label_ratio: The most texts of an emotion, as a multiple of those of the rarest one.
        seed: Of the random choice.
    """
    accepted = [r for r in rationales if r.verdict.kept]
    counts = Counter(r.truth.label for r in accepted)
    if max_label_ratio is None or not counts:
        return
    limit = max(1, round(max_label_ratio * min(counts.values())))
    rng = random.Random(seed)
    for label in sorted(counts):
        of_label = [r for r in accepted if r.truth.label == label]
        for rationale in rng.sample(of_label, max(0, len(of_label) - limit)):
            fault = Fault("surplus", f"{limit} of {len(of_label)} texts for {label} were taken.")
            rationale.verdict = replace(rationale.verdict, faults=(fault,))
