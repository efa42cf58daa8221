"""The model writer: a trained model answers each face several times, without being told anything.

Where a face has a label, its answers are held against that; where it has none, against what most of
them say. The same goes for action units. The share of answers that agree is the confidence.
(Self-consistency: Wang et al. 2022, arXiv:2203.11171. Answers filtered by what is known: STaR,
Zelikman et al. 2022, arXiv:2203.14465.)
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import answers, facs, prompts
from vlmface.answers import Answer
from vlmface.errors import UserError
from vlmface.rationale import ground_truth as truths
from vlmface.rationale import page, teacher_prompts, verify
from vlmface.rationale.ground_truth import Truth
from vlmface.rationale.verify import Fault, Verdict
from vlmface.schema import FaceSample
from vlmface.utils.jsonl_journal import Journal

if TYPE_CHECKING:
    import datasets
    import httpx2
    from PIL import Image

    from vlmface.infer.endpoint import Endpoint
    from vlmface.label_spaces import LabelSpace
    from vlmface.rationale.types import BuildSettings, Pictures, Written

VOTED = "vote"
_EVERY = frozenset(facs.AU_NUMBERS)


@dataclass(frozen=True)
class Ballot:
    """What several answers to one face agree on: `label`, the share of all answers that conclude it
    (0..1, unreadable ones count against it), and the AUs that at least half of those name."""

    label: str | None
    agreement: float
    aus: frozenset[int]


def vote(given: Sequence[Answer], label: str | None = None) -> Ballot:
    """Count the answers. With `label`, how many conclude that one; without, the most frequent, of
    equals the one that was said first."""
    said = Counter(answer.label for answer in given if answer.label is not None)
    if label is None:
        label = max(said, key=lambda word: said[word], default=None)
    agreeing = [answer for answer in given if label is not None and answer.label == label]
    named = Counter(au for answer in agreeing for au in set(answer.aus))
    aus = frozenset(au for au, times in named.items() if 2 * times >= len(agreeing))
    return Ballot(label, len(agreeing) / len(given) if given else 0.0, aus)


@dataclass(frozen=True)
class Face:
    """A face to ask about. `label` and `truth` are annotated, or None: then the answers vote."""

    index: int
    id: str
    label: str | None
    truth: Truth | None
    known: str | None  # the annotated label, used or not
    box: list[float] | None


def choose(
    face: Face,
    texts: Sequence[str],
    parse: Callable[[str], Answer],
    judge: Callable[[str, Truth], Verdict],
    min_agreement: float,
) -> tuple[Truth, str, Verdict, dict[str, Any]]:
    """(what the face is taken to show, the text, its verdict, how the vote went): the first text
    that passes, else the one with the fewest faults."""
    ballot = vote([parse(text) for text in texts], face.label)
    truth = face.truth or Truth(
        ballot.label or "", dict.fromkeys(sorted(ballot.aus)), _EVERY, VOTED
    )
    verdicts = [judge(text, truth) for text in texts]
    at = min(range(len(texts)), key=lambda i: (len(verdicts[i].faults), i))
    verdict = verdicts[at]
    if ballot.agreement < min_agreement:
        fault = Fault(
            "disagreement",
            f"{ballot.agreement:.0%} of {len(texts)} answers conclude {truth.label or 'anything'}.",
        )
        verdict = replace(verdict, faults=(*verdict.faults, fault))
    record = {
        "label": "annotated" if face.label else VOTED,
        "agreement": round(ballot.agreement, 4),
        "samples": len(texts),
        "known": face.known,
    }
    return truth, texts[at], verdict, record


# --- who is asked ---------------------------------------------------------------------------------


class Local:
    """A run folder, in this process."""

    def __init__(self, settings: BuildSettings) -> None:
        from vlmface.infer.local import LocalModel

        self.settings = settings
        self.predictor = LocalModel.load(str(settings.model), prompt=settings.prompt)
        self.prompt = self.predictor.prompt

    def write(
        self,
        faces: Sequence[Face],
        pictures: Pictures,
        told: Told,
        journal: Journal,
        done: Callable[[int], Any],
    ) -> dict[str, str]:
        """Batches are the same ones however often the build is stopped, so the answers are too.
        Returns {id: why} of the faces without an answer: none."""
        size = self.settings.batch_size
        for number, start in enumerate(range(0, len(faces), size)):
            part = faces[start : start + size]
            if all(face.id in journal.records for face in part):
                continue
            images = [_opened(pictures, face) for face in part]
            texts = self.predictor.sample(
                images,
                self.settings.samples,
                temperature=self.settings.temperature,
                top_p=self.settings.top_p,
                seed=_seed(self.settings.seed, number),
                boxes=[face.box for face in part],
                messages=[told(face, None) for face in part],
            )
            for face, written in zip(part, texts, strict=True):
                journal.add({"id": face.id, "texts": written})
            done(len(part))
        return {}


class Remote:
    """A server with the OpenAI API, such as vLLM's."""

    def __init__(self, settings: BuildSettings, endpoint: Endpoint) -> None:
        endpoint.check()
        if settings.prompt is None:
            raise UserError(
                "a server does not say what its model was trained to be asked: give --prompt"
            )
        self.settings, self.endpoint = settings, endpoint
        self.prompt = prompts.load(settings.prompt)

    def write(
        self,
        faces: Sequence[Face],
        pictures: Pictures,
        told: Told,
        journal: Journal,
        done: Callable[[int], Any],
    ) -> dict[str, str]:
        """Returns {id: why} of the faces that the server gave no answer for."""
        from vlmface.infer.endpoint import NoAnswerError, chat, run_jobs

        how = {
            "n": self.settings.samples,
            "temperature": self.settings.temperature,
            "top_p": self.settings.top_p,
        }
        _, form = question(self.settings, self.prompt)

        async def work(client: httpx2.AsyncClient, face: Face) -> dict[str, Any]:
            uri = page.data_uri(_opened(pictures, face), self.settings.image_side)
            request = how | {"seed": _seed(self.settings.seed, face.index) % 2**31}
            choices, usage = await chat(client, self.endpoint, told(face, uri), request)
            texts = [choice.text(form) for choice in choices]
            if len(texts) < self.settings.samples:
                raise NoAnswerError(
                    f"{len(texts)} answers instead of {self.settings.samples}: the server ignores "
                    "`n`",
                    retryable=False,
                )
            return {
                "id": face.id,
                "texts": texts,
                "requests": 1,
                "prompt_tokens": usage.get("prompt_tokens") or 0,
                "completion_tokens": usage.get("completion_tokens") or 0,
                "uncounted": int(not usage),
            }

        left = [face for face in faces if face.id not in journal.records]
        if not left:
            return {}
        beside = "with their annotation" if self.settings.saw_label else "without annotation"
        print(
            f"{len(left)} pictures of faces, {beside}, are sent to {self.endpoint.url} (model "
            f"{self.endpoint.model})",
            flush=True,
        )
        return run_jobs(self.endpoint, iter(left), work, journal, lambda: done(1))


def _opened(pictures: Pictures, face: Face) -> Image.Image:
    image = pictures(face.index)
    if image is None:  # it was there when the faces were read
        raise UserError(f"the picture of {face.id} cannot be read any more: look at the data set")
    return image


def _seed(*parts: int) -> int:
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


# --- what is asked --------------------------------------------------------------------------------

# (face, picture as a data URI or None for a local model) -> chat messages.
Told = Callable[[Face, "str | None"], list[dict[str, Any]]]


def question(settings: BuildSettings, prompt: prompts.Prompt) -> tuple[Told, str]:
    """(messages for a face, the form of the answers): the model's own prompt, or, with saw_label,
    the teacher prompt `with_label`, which gives the annotation away as Facial-R1's does."""
    from vlmface.infer.endpoint import attach_images

    if not settings.saw_label:
        own = prompt.messages()
        return lambda face, uri: attach_images(own, [uri]) if uri else own, prompt.form
    leading = teacher_prompts.load("with_label")
    space, limits = prompt.space, settings.limits

    def with_truth(face: Face, uri: str | None) -> list[dict[str, Any]]:
        if face.truth is None:
            raise UserError(
                f"{face.id} has no annotation to tell the model: leave saw_label out, or use data "
                "with labels and action units"
            )
        told = leading.messages(face.truth, space, limits, uri or "")
        if uri is None:  # as a local model takes it
            told[-1]["content"][0] = {"type": "image"}
        return told

    return with_truth, leading.form


def asked_with(settings: BuildSettings, prompt: prompts.Prompt) -> dict[str, Any]:
    """The prompt of `question`, for the data card."""
    if not settings.saw_label:
        return {"prompt": prompt.id, "prompt_version": prompt.version, "prompt_sha": prompt.sha}
    leading = teacher_prompts.load("with_label")
    sha = leading.sha(prompt.space, settings.limits)
    return {"prompt": leading.id, "prompt_version": leading.version, "prompt_sha": sha}


# --- the faces ------------------------------------------------------------------------------------


def faces_of(
    rows: datasets.Dataset,
    pictures: Pictures,
    settings: BuildSettings,
    space: LabelSpace,
    left_out: Counter[str],
) -> list[Face]:
    """The faces to ask about, each picture once; counts the others by reason."""
    from tqdm import tqdm

    found, seen = [], set()
    plain = rows.remove_columns(["image", "frames"])
    for index, row in enumerate(tqdm(plain, "reading", unit="face")):
        sample = FaceSample.from_row(row)
        image = pictures(index)
        if image is None:
            left_out["no readable image"] += 1
            continue
        pixels = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
        if pixels in seen:
            left_out["the picture of an earlier face"] += 1
            continue
        seen.add(pixels)
        known = truths.label_of(sample, space)
        label = known if settings.labels == "annotated" else None
        if settings.labels == "annotated" and sample.emotion and known is None:
            left_out["no label of the label space"] += 1
            continue
        truth = truths.annotated(sample, label) if label else None
        found.append(Face(index, sample.id, label, truth, known, sample.face_box))
    return found


def write(
    settings: BuildSettings,
    rows: datasets.Dataset,
    pictures: Pictures,
    space: LabelSpace,
    work: Path,
    left_out: Counter[str],
    asked: Local | Remote,
) -> list[Written]:
    """Ask about all faces, or go on with it, and choose a text for each."""
    from tqdm import tqdm

    from vlmface.rationale.types import Written

    faces = faces_of(rows, pictures, settings, space, left_out)
    told, form = question(settings, asked.prompt)

    def parse(text: str) -> Answer:
        return answers.parse(text, space, form)

    def judge(text: str, truth: Truth) -> Verdict:
        return verify.check(text, truth, space, form, settings.limits)

    written = []
    with Journal(work / "answers.jsonl") as journal:
        before = sum(face.id in journal.records for face in faces)
        with tqdm(total=len(faces), initial=before, desc="asking", unit="face") as bar:
            unanswered = asked.write(faces, pictures, told, journal, bar.update)
        for face in faces:
            if (record := journal.records.get(face.id)) is None:
                truth = face.truth or Truth(face.label or "", {}, frozenset(), VOTED)
                fault = Fault("no_answer", unanswered[face.id])
                verdict = replace(judge("", truth), faults=(fault,))
                written.append(Written(face.index, face.id, truth, "", verdict))
                continue
            truth, text, verdict, how = choose(
                face, record["texts"], parse, judge, settings.min_agreement
            )
            counts = {k: v for k, v in record.items() if k not in ("id", "texts")}
            written.append(Written(face.index, face.id, truth, text, verdict, {**counts, **how}))
    return written


def balance(written: Sequence[Written], most: float | None, seed: int) -> None:
    """Reject kept texts at random until no emotion has more than `most` times as many as the rarest
    one has."""
    kept = [w for w in written if w.verdict.kept]
    counts = Counter(w.truth.label for w in kept)
    if most is None or not counts:
        return
    limit = max(1, round(most * min(counts.values())))
    chance = random.Random(seed)
    for label in sorted(counts):
        own = [w for w in kept if w.truth.label == label]
        for w in chance.sample(own, max(0, len(own) - limit)):
            fault = Fault("surplus", f"{limit} of {len(own)} texts for {label} were taken.")
            w.verdict = replace(w.verdict, faults=(fault,))
