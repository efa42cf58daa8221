"""One model, many images: greedy answers, and the likelihood of every label.

A label is scored behind image, prompt and a rationale: the one that the model has just written
(`predict`), none, or a given one (`score`). What stands before the labels is read once, so that a
label costs a forward pass over its own few tokens.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import encode, families, manifest, prompts
from vlmface.adapter import attach
from vlmface.answers import Answer
from vlmface.data import crops
from vlmface.errors import UserError
from vlmface.utils.images import sizes_of

if TYPE_CHECKING:
    import torch

    from vlmface.utils.images import ImageOrImages, Size

BATCH_SIZE = 16
NORMS = ("sum", "mean", "prior")  # how likelihoods become probabilities: LabelScores
GREY = (128, 128, 128)
CPU_ROWS = 8  # prompts read together: of more, what is computed leaves a CPU's caches


@dataclass(frozen=True)
class Prediction:
    """`text` as the model wrote it; `answer` as `vlmface.answers` reads it (label, aus, rationale,
    status); `probabilities` {label: 0..1, summing to 1} or None; `latency_s`: seconds of the
    image's batch divided by the images in it; `complete`: it ended by itself, not by the limit;
    `face_found`: whether a face was found to be cut out, None if none was looked for. `affect`
    {"valence", "arousal"}, -1..1, of a model that tells them. Where a face has several labels,
    `probabilities` are those of each label by itself, and need not sum to 1."""

    text: str
    answer: Answer
    probabilities: dict[str, float] | None
    latency_s: float
    complete: bool
    face_found: bool | None = None
    affect: dict[str, float] | None = None


@dataclass(frozen=True)
class LabelScores:
    """How likely the model finds each label's text. `log_likelihood`: {label: nats}, summed over
    the label's own `tokens` and those that end it; where an answer lists several labels, of the
    label as the first of them, without an end, as others may follow. `latency_s`: seconds of the
    image's batch divided by the images in it. `prior`: the likelihoods behind a grey picture, or
    None if they were not computed."""

    log_likelihood: dict[str, float]
    tokens: dict[str, int]
    latency_s: float
    prior: dict[str, float] | None = None

    def probabilities(self, norm: str = "sum") -> dict[str, float]:
        """{label: 0..1, summing to 1}: the softmax of the log-likelihoods ("sum"), of those per
        token ("mean", so that long labels are not at a disadvantage), or of what the picture adds
        to them ("prior": the likelihood behind a grey picture subtracted, after Holtzman et al.
        2021, arXiv:2104.08315)."""
        import torch

        values = list(self.log_likelihood.values())
        if norm == "mean":
            values = [v / n for v, n in zip(values, self.tokens.values(), strict=True)]
        elif norm == "prior":
            if self.prior is None:
                raise UserError("the likelihoods without a picture were not computed: prior=True")
            values = [v - p for v, p in zip(values, self.prior.values(), strict=True)]
        elif norm != "sum":
            raise ValueError(f"norm {norm!r}: use one of {', '.join(NORMS)}")
        shares = torch.tensor(values, dtype=torch.float64).softmax(0).tolist()
        return dict(zip(self.log_likelihood, shares, strict=True))


class LocalModel:
    """A model with its processor, prompt and family; `LocalModel.load` makes one."""

    pads = True  # pictures of different sizes take different room in a batch

    def __init__(
        self, model: Any, processor: Any, prompt: prompts.Prompt, family: str, max_new_tokens: int
    ) -> None:
        self.model = model
        self.processor = processor
        self.prompt = prompt
        self.prompts = [prompt]
        self.family = families.get(family)
        self.max_new_tokens = max_new_tokens
        self.manifest: manifest.Manifest | None = None
        self.views: crops.Views = ()
        self.frames = 1
        self._priors: dict[tuple[str, tuple[Size, ...]], dict[str, float]] = {}

    @property
    def messages(self) -> list[dict[str, Any]]:
        return self.prompt.messages()

    def asking(self, prompt: Any) -> LocalModel:
        """The same model, asked another prompt."""
        other = copy.copy(self)
        other.prompt = prompt
        return other

    @classmethod
    def load(
        cls,
        run_or_model: str | Path,
        *,
        prompt: str | Path | prompts.Prompt | None = None,
        max_new_tokens: int | None = None,
        device: str | None = None,
        dtype: Any = None,
        merge: bool | None = None,
    ) -> LocalModel:
        """Load a run folder, or a bare base model (id, folder or "vlmface-tiny").

        A run answers the prompts it was trained with, first of all the first, or the one that
        `prompt` names; a base needs a `prompt`. `device` defaults to
        the GPU if there is one, `dtype` to bfloat16 there and float32 on a CPU. `merge` folds an
        adapter into the weights (faster, equal up to rounding); the default does so in float32.
        Raises UserError if the run is not what its manifest says, or its base model is gone.
        """
        import torch

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
        found = None
        if manifest.is_run(run_or_model):
            found, asked = manifest.load(run_or_model)
            manifest.check_weights(found, run_or_model)
            own_prompt = asked[0] if prompt is None else manifest.among(asked, prompt, run_or_model)
            run_dir = Path(run_or_model)
            base = manifest.resolve_base(found, run_dir) if found.adapter else run_dir
            family, processor_dir = found.family, run_dir
            limit = max_new_tokens or found.generation["max_new_tokens"]
        else:
            if prompt is None:
                raise UserError(
                    f"{run_or_model} is no vlmface run (it has no {manifest.NAME}): say which "
                    f"prompt to ask it, or give the folder of a run"
                )
            own_prompt = prompt if isinstance(prompt, prompts.Prompt) else prompts.load(prompt)
            asked = [own_prompt]
            base = processor_dir = manifest.resolve(str(run_or_model))
            family = families.family_of(base)
            limit = max_new_tokens or 256
        adapter = families.of_run(family, base) if found else families.get(family)
        model = families.load_model(adapter, base, dtype=dtype, device=device)
        if found and found.adapter:
            model = attach(model, run_or_model)
            if merge if merge is not None else dtype == torch.float32:
                model = model.merge_and_unload()
        processor = families.load_processor(adapter, processor_dir)
        self = cls(model, processor, own_prompt, family, limit)
        self.prompts = asked
        self.manifest = found
        if found:
            self.views, self.frames = crops.parse_views(found.crop), found.frames
        return self

    def predict(
        self,
        images: Sequence[ImageOrImages],
        *,
        batch_size: int = BATCH_SIZE,
        probabilities: bool = True,
        cut_out: bool = False,
        boxes: Sequence[Sequence[float] | None] | None = None,
    ) -> list[Prediction]:
        """Answer `images` (RGB) in order. The same image gets the same answer in any batch.

        A model that was trained on faces cut out, or on several views, is shown each image in the
        same way, unless `cut_out` says that it is already; what is a list of pictures is. `boxes`
        say which face of each image is meant, as [x0, y0, x1, y1] in pixels; UserError if the model
        was trained on whole pictures.
        """
        if boxes and not self.views:
            raise UserError(
                "this model was trained on whole pictures and knows no box: cut the face out "
                "first, or use a model that was trained with `crop`"
            )
        found: list[bool | None] = [None] * len(images)
        if not cut_out:
            images, found = crops.render_views(images, boxes, self.views, self.frames)
        predictions: list[Prediction] = []
        for start in range(0, len(images), batch_size):
            began = time.perf_counter()
            answers = self._batch(images[start : start + batch_size], probabilities)
            latency = (time.perf_counter() - began) / len(answers)
            predictions += [
                Prediction(text, answer, scores, latency, complete, there)
                for (text, answer, scores, complete), there in zip(
                    answers, found[start : start + len(answers)], strict=True
                )
            ]
        return predictions

    def stream(self, image: ImageOrImages) -> Iterator[str | Prediction]:
        """The answer to a picture or to several (RGB, cut out as the model was trained) as far as
        it is written, again and again, and at the end all of it."""
        from transformers import TextIteratorStreamer

        began = time.perf_counter()
        streamer = TextIteratorStreamer(
            self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        done: Future[Any] = Future()

        def write() -> None:
            try:
                done.set_result(self._batch([image], True, streamer)[0])
            except BaseException as error:
                done.set_exception(error)
                streamer.end()

        threading.Thread(target=write, daemon=True).start()
        text = ""
        for piece in streamer:
            text += piece
            yield text.strip()
        text, answer, scores, complete = done.result()
        yield Prediction(text, answer, scores, time.perf_counter() - began, complete)

    def score(
        self,
        images: Sequence[ImageOrImages],
        rationales: Sequence[str] | None = None,
        *,
        batch_size: int = BATCH_SIZE,
        prior: bool = False,
        cut_out: bool = False,
        boxes: Sequence[Sequence[float] | None] | None = None,
    ) -> list[LabelScores]:
        """How likely each label is as the answer to each image (RGB), nothing being written: behind
        the prompt alone, or behind a rationale for each. `prior` adds, without rationales, the
        likelihoods behind grey pictures, computed once for a size. `images`, `cut_out` and `boxes`
        as in `predict`.
        """
        if prior and rationales is not None:
            raise ValueError("the likelihoods behind a grey picture are those of the prompt alone")
        texts = [""] * len(images) if rationales is None else list(rationales)
        if not cut_out:
            images, _ = crops.render_views(images, boxes, self.views, self.frames)
        found: list[LabelScores] = []
        if self.model.device.type == "cpu":
            batch_size = min(batch_size, CPU_ROWS)
        for start in range(0, len(images), batch_size):
            end = start + batch_size
            found += self._score_behind(images[start:end], texts[start:end])
        if not prior:
            return found
        return [
            replace(scores, prior=self._prior(sizes_of(image)))
            for scores, image in zip(found, images, strict=True)
        ]

    def _prior(self, sizes: Sequence[Size]) -> dict[str, float]:
        from PIL import Image

        key = (self.prompt.sha, tuple(sizes))
        if key not in self._priors:
            (grey,) = self._score_behind([[Image.new("RGB", size, GREY) for size in sizes]], [""])
            self._priors[key] = grey.log_likelihood
        return self._priors[key]

    def _score_behind(
        self, images: Sequence[ImageOrImages], rationales: Sequence[str]
    ) -> list[LabelScores]:
        import torch

        from vlmface.infer.cache import growing

        began = time.perf_counter()
        rows = self._rows(images)
        candidates = [
            self.label_ids(text, sizes_of(image))
            for text, image in zip(rationales, images, strict=True)
        ]
        # Padded on the right as in training: a plain forward counts positions from the first slot.
        batch = encode.Collator(self.processor, self.family)(rows)
        batch = encode.to_model(batch, self.model)
        with torch.inference_mode():
            cache = growing(self.model.config)
            self.model(**batch, cache=cache, use_cache=True, logits_to_keep=1)
            known = [row["input_ids"] for row in rows]
            lengths, width = [len(ids) for ids in known], batch["input_ids"].shape[1]
            first = [0] * len(rows)
            table, counts = self._label_log_probs(candidates, known, cache, lengths, first, width)
        labels = self.prompt.space.labels
        likely = [dict(zip(labels, row, strict=True)) for row in table.tolist()]
        latency = (time.perf_counter() - began) / len(rows)
        return [
            LabelScores(one, dict(zip(labels, count, strict=True)), latency)
            for one, count in zip(likely, counts, strict=True)
        ]

    def sample(
        self,
        images: Sequence[ImageOrImages],
        count: int,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        boxes: Sequence[Sequence[float] | None] | None = None,
        messages: Sequence[list[dict[str, Any]]] | None = None,
    ) -> list[list[str]]:
        """`count` answers to each image (RGB), drawn at random: equal seeds and images give equal
        answers. `messages` ask about each image what is not the prompt's own; `boxes` as in
        `predict`, without meaning for a model that was trained on whole pictures."""
        import torch

        from vlmface.infer import sampling

        images, _ = crops.render_views(images, boxes, self.views, self.frames)
        rows = self._rows(images, messages)
        batch = encode.to_model(encode.Collator(self.processor, self.family)(rows), self.model)
        stops = self.family.stop_token_ids(self.processor)
        image_token = self.processor.tokenizer.convert_tokens_to_ids(self.processor.image_token)
        drawn = sampling.sample(
            self.model, self.family, batch, group=count, max_new_tokens=self.max_new_tokens,
            stops=stops, generator=torch.Generator(self.model.device).manual_seed(seed),
            temperature=temperature, top_p=top_p, never=[image_token],
        )  # fmt: skip
        texts = [
            self.processor.tokenizer.decode(
                _until_stop(ids, stops)[0], skip_special_tokens=True
            ).strip()
            for ids in drawn.ids
        ]
        return [texts[start : start + count] for start in range(0, len(texts), count)]

    def _rows(
        self,
        images: Sequence[ImageOrImages],
        messages: Sequence[list[dict[str, Any]]] | None = None,
    ) -> list[dict[str, Any]]:
        """Rows for the collator: each image, or list of them, with its question, by default the
        prompt's."""
        asked = messages or [self.messages] * len(images)
        return [
            {
                **encode.encode_text(
                    self.processor, self.family, one, None, image_size=sizes_of(image)
                ),
                "image": image,
            }
            for image, one in zip(images, asked, strict=True)
        ]  # fmt: skip

    def _batch(
        self, images: Sequence[ImageOrImages], probabilities: bool, streamer: Any = None
    ) -> list[tuple[str, Answer, dict[str, float] | None, bool]]:
        import torch

        from vlmface.infer.cache import growing

        rows = self._rows(images)
        batch = encode.Collator(self.processor, self.family, padding="left")(rows)
        batch = encode.to_model(batch, self.model)
        stops = self.family.stop_token_ids(self.processor)
        with torch.inference_mode():
            output = self.model.generate(
                **batch,
                cache=growing(self.model.config),
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                eos_token_id=stops,
                pad_token_id=self.processor.tokenizer.pad_token_id,
                return_dict_in_generate=True,
                streamer=streamer,
            )
            prompt_length = batch["input_ids"].shape[1]
            written = [
                _until_stop(ids, stops) for ids in output.sequences[:, prompt_length:].tolist()
            ]
            texts = [
                self.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
                for ids, _ in written
            ]
            answers = [self.prompt.parse(text) for text in texts]
            scores: list[dict[str, float] | None] = [None] * len(rows)
            # Of several labels these would say which is written first, and not which apply.
            if probabilities and not self.prompt.several:
                known = [
                    [*row["input_ids"], *ids] for row, (ids, _) in zip(rows, written, strict=True)
                ]
                scores = self._after(answers, rows, known, output.cache, prompt_length)
        complete = [done for _, done in written]
        return list(zip(texts, answers, scores, complete, strict=True))

    def label_ids(self, rationale: str, image_size: Size | Sequence[Size]) -> list[list[int]]:
        """For each label the ids of the whole conversation: prompt, rationale, label, suffix; up to
        the label where others may follow. `image_size` as in `encode.encode_text`."""
        found = [
            encode.encode_text(
                self.processor,
                self.family,
                self.messages,
                self.prompt.wrap(rationale, label),
                image_size=image_size,
            )["input_ids"]
            for label in self.prompt.space.labels
        ]
        if self.prompt.several:
            start = len(_shared(found))
            end = len(_shared([ids[start + 1 :][::-1] for ids in found]))
            found = [ids[: len(ids) - end] for ids in found]
        return found

    def _after(
        self,
        answers: Sequence[Answer],
        rows: Sequence[dict[str, Any]],
        known: Sequence[list[int]],
        cache: Any,
        prompt_length: int,
    ) -> list[dict[str, float] | None]:
        """Probabilities of the labels behind the rationales that `cache` was left with by writing
        them: softmax over the log-likelihoods, each including the suffix that ends the label (so
        that a label which is another's beginning gets no credit for it)."""
        candidates = [
            self.label_ids(answer.rationale, sizes_of(row["image"]))
            for answer, row in zip(answers, rows, strict=True)
        ]
        lengths = [len(row["input_ids"]) for row in rows]
        first = [prompt_length - length for length in lengths]  # they are padded on the left
        table, _ = self._label_log_probs(candidates, known, cache, lengths, first, prompt_length)
        labels = self.prompt.space.labels
        return [dict(zip(labels, row, strict=True)) for row in table.softmax(1).tolist()]

    def _label_log_probs(
        self,
        candidates: Sequence[list[list[int]]],
        known: Sequence[list[int]],
        cache: Any,
        lengths: Sequence[int],
        first: Sequence[int],
        width: int,
    ) -> tuple[torch.Tensor, list[list[int]]]:
        """(log-likelihoods (rows, labels) of what is the label's own in its conversation, and the
        number of those tokens).

        `candidates[i]` are the ids of row i's conversation with each label, `known[i]` those that
        its part of the cache stands for: its prompt's `lengths[i]` from slot `first[i]` on, the
        others from slot `width` on. What is equal is reused. What else all labels of a row have in
        common is fed once, then what is each label's own.
        """
        import torch

        device = self.model.device
        filled = cache.get_seq_length()
        common = [len(_shared(ids)) for ids in candidates]
        # The last token that could be reused is fed again: its output predicts what follows.
        reused = [
            min(_common(known[i][: lengths[i] + filled - width], ids) for ids in candidates[i]) - 1
            for i in range(len(candidates))
        ]
        slots = torch.arange(filled, device=device)
        count, length, begin, start = (
            torch.tensor(values, device=device)[:, None]
            for values in (reused, lengths, first, common)
        )
        seen = (slots >= begin) & (slots < begin + torch.minimum(count, length))
        seen = (seen | ((slots >= width) & (slots < width + count - length))).long()
        shared = [ids[0][a:b] for ids, a, b in zip(candidates, reused, common, strict=True)]
        mask, logits = self._feed(cache, seen, shared, count)
        seen = torch.cat([seen, mask], 1)
        last = logits[torch.arange(len(shared), device=device), mask.sum(1) - 1]
        begins = last.float().log_softmax(-1)

        scores = []
        for j in range(len(self.prompt.space.labels)):
            own = [ids[j][a:] for ids, a in zip(candidates, common, strict=True)]
            ids = self._padded(own)
            score = begins.gather(-1, ids[:, :1])[:, 0]
            if ids.shape[1] > 1:
                mask, logits = self._feed(cache, seen, [one[:-1] for one in own], start)
                cache.crop(-mask.shape[1])
                log_p = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
                score = score + (log_p * mask).sum(1)
            scores.append(score)
        counts = [[len(ids) - a for ids in row] for row, a in zip(candidates, common, strict=True)]
        return torch.stack(scores, 1), counts

    def _feed(
        self, cache: Any, seen: torch.Tensor, rows: Sequence[list[int]], start: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the model over the ids `rows`, which see the cache's slots that `seen` (rows, slots)
        flags, from position `start` (rows, 1) on: (mask of what is no padding, logits)."""
        import torch

        ids = self._padded(rows)
        lengths = torch.tensor([[len(row)] for row in rows], device=ids.device)
        steps = torch.arange(ids.shape[1], device=ids.device)
        mask = (steps < lengths).long()
        logits = self.model(
            input_ids=ids,
            attention_mask=torch.cat([seen, mask], 1),
            cache=cache,
            use_cache=True,
            **self.family.decode_step_inputs(self.model, start + steps),
        ).logits
        return mask, logits

    def _padded(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """(rows, longest), filled up on the right."""
        import torch

        pad, longest = self.processor.tokenizer.pad_token_id, max(map(len, rows))
        return torch.tensor(
            [row + [pad] * (longest - len(row)) for row in rows], device=self.model.device
        )


def _until_stop(ids: list[int], stops: Sequence[int]) -> tuple[list[int], bool]:
    """(ids before the first stop token, whether there was one)."""
    for i, token in enumerate(ids):
        if token in stops:
            return ids[:i], True
    return ids, False


def _shared(rows: Sequence[list[int]]) -> list[int]:
    """The beginning that all rows have in common."""
    return rows[0][: min(_common(rows[0], row) for row in rows)]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
