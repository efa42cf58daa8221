"""A vision-language model in this process: greedy answers, and the likelihood of every label.

A label is scored after image, prompt and a rationale: the one that the model has just generated
(`predict`), none, or a given one (`score`). The tokens before the label are processed once, so that
each label costs a forward pass over its own few tokens.
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
CPU_ROWS = 8  # prompts in one pass on a CPU: the activations of more do not fit its caches


@dataclass(frozen=True)
class Prediction:
    """The prediction of one task for one face.

    Attributes:
        text: What the model generated.
        answer: The parsed text: label, aus, rationale, status (see `vlmface.answers`).
        probabilities: {label: 0..1, summing to 1}, or None. Of a prompt for several labels, each
            label's own probability; they need not sum to 1.
        latency_s: Seconds of the image's batch, divided by its images.
        complete: Whether generation ended by itself, and not at the token limit.
        face_found: Whether a face was detected and cropped; None if detection was not run.
        affect: {"valence", "arousal"}, -1..1, of a model that predicts them.
    """

    text: str
    answer: Answer
    probabilities: dict[str, float] | None
    latency_s: float
    complete: bool
    face_found: bool | None = None
    affect: dict[str, float] | None = None


@dataclass(frozen=True)
class LabelScores:
    """How likely the model finds each label's text.

    Attributes:
        log_likelihood: {label: nats}, summed over the label's own tokens and those that end it. Of
            a prompt for several labels: of the label as the first one, without an end, since others
            may follow.
        tokens: {label: number of tokens}.
        latency_s: Seconds of the image's batch, divided by its images.
        prior: The log-likelihoods after a grey picture, None if they were not computed.
    """

    log_likelihood: dict[str, float]
    tokens: dict[str, int]
    latency_s: float
    prior: dict[str, float] | None = None

    def probabilities(self, norm: str = "sum") -> dict[str, float]:
        """The softmax over the labels.

        Args:
            norm: "sum": of the log-likelihoods; "mean": of the log-likelihoods per token, so that
                long labels are not at a disadvantage; "prior": of the log-likelihoods minus those
                after a grey picture (Holtzman et al. 2021, arXiv:2104.08315).

        Returns:
            {label: 0..1, summing to 1}.

        Raises:
            UserError: `norm` is "prior" and the prior was not computed.
        """
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


DEFAULT_MAX_NEW_TOKENS = 256  # of a base model, which has no manifest


@dataclass(frozen=True)
class _CachedRows:
    """What the slots of a key-value cache hold.

    Attributes:
        cache: The cache.
        ids: Of each row: its prompt, then the generated tokens.
        prompt_lengths: Tokens of each row's prompt.
        first_slots: The slot of each row's first prompt token.
        width: The first slot after the prompts.
    """

    cache: Any
    ids: Sequence[list[int]]
    prompt_lengths: Sequence[int]
    first_slots: Sequence[int]
    width: int


@dataclass(frozen=True)
class _Source:
    """What a model is loaded from: the folders, the family, and the prompts."""

    base: Path
    processor_dir: Path
    family: str
    prompt: prompts.Prompt
    prompts: list[prompts.Prompt]
    manifest: manifest.Manifest | None = None


def _run_source(run: str | Path, prompt: str | Path | prompts.Prompt | None) -> _Source:
    run_manifest, run_prompts = manifest.load(run)
    manifest.check_weights(run_manifest, run)
    active_prompt = run_prompts[0]
    if prompt is not None:
        active_prompt = manifest.select_prompt(run_prompts, prompt, run)
    run_dir = Path(run)
    base = manifest.resolve_base(run_manifest, run_dir) if run_manifest.adapter else run_dir
    return _Source(base, run_dir, run_manifest.family, active_prompt, run_prompts, run_manifest)


def _base_source(model: str | Path, prompt: str | Path | prompts.Prompt | None) -> _Source:
    if prompt is None:
        raise UserError(
            f"{model} is not a vlmface run (it has no {manifest.FILENAME}): choose a prompt with "
            "--prompt, or give the folder of a run"
        )
    loaded = prompt if isinstance(prompt, prompts.Prompt) else prompts.load(prompt)
    base = manifest.resolve(str(model))
    return _Source(base, base, families.family_of(base), loaded, [loaded])


class LocalModel:
    """A model with its processor, prompt and family; `LocalModel.load` makes one."""

    pads = True  # pictures of different sizes need different amounts of padding

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

    def with_prompt(self, prompt: Any) -> LocalModel:
        """The same model with another prompt."""
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
        """Load a run folder or a base model.

        Args:
            run_or_model: A run folder, or a base model (id, folder or "vlmface-tiny").
            prompt: One of the run's prompts, by default its first; a base model needs one.
            max_new_tokens: Overrides the limit in the manifest.
            device: By default the GPU if there is one.
            dtype: By default bfloat16 on a GPU and float32 on a CPU.
            merge: Fold an adapter into the weights (faster, equal up to rounding); by default only
                in float32.

        Returns:
            The model in evaluation mode.

        Raises:
            UserError: The run does not match its manifest, or its base model is missing.
        """
        import torch

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
        is_run = manifest.is_run(run_or_model)
        source = _run_source(run_or_model, prompt) if is_run else _base_source(run_or_model, prompt)
        run_manifest = source.manifest
        if run_manifest:
            family = families.of_run(source.family, source.base)
            max_new_tokens = max_new_tokens or run_manifest.generation["max_new_tokens"]
        else:
            family = families.get(source.family)
        model = families.load_model(family, source.base, dtype=dtype, device=device)
        if run_manifest and run_manifest.adapter:
            model = attach(model, run_or_model)
            if merge if merge is not None else dtype == torch.float32:
                model = model.merge_and_unload()
        processor = families.load_processor(family, source.processor_dir)
        limit = max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        loaded = cls(model, processor, source.prompt, source.family, limit)
        loaded.prompts = source.prompts
        loaded.manifest = run_manifest
        if run_manifest:
            loaded.views, loaded.frames = (
                crops.parse_views(run_manifest.views),
                run_manifest.num_frames,
            )
        return loaded

    def predict(
        self,
        images: Sequence[ImageOrImages],
        *,
        batch_size: int = BATCH_SIZE,
        probabilities: bool = True,
        preprocessed: bool = False,
        boxes: Sequence[Sequence[float] | None] | None = None,
    ) -> list[Prediction]:
        """Generate an answer for each image, in order.

        The same image gets the same answer in any batch.

        Args:
            images: RGB images; a list of images is always treated as preprocessed.
            batch_size: Images of one batch.
            probabilities: Also compute the label probabilities after the generated rationale.
            preprocessed: The run's views were already applied.
            boxes: The face in each image, as [x0, y0, x1, y1] in pixels.

        Returns:
            A prediction for each image.

        Raises:
            UserError: `boxes` were given to a model that was trained on full images.
        """
        if boxes and not self.views:
            raise UserError(
                "this model was trained on full images, so `boxes` cannot be used: crop the face "
                "first, or use a model that was trained with `views`"
            )
        faces_found: list[bool | None] = [None] * len(images)
        if not preprocessed:
            images, faces_found = crops.render_views(images, boxes, self.views, self.frames)
        predictions: list[Prediction] = []
        for start in range(0, len(images), batch_size):
            start_time = time.perf_counter()
            outputs = self._generate(images[start : start + batch_size], probabilities)
            latency = (time.perf_counter() - start_time) / len(outputs)
            predictions += [
                Prediction(text, answer, scores, latency, complete, face_found)
                for (text, answer, scores, complete), face_found in zip(
                    outputs, faces_found[start : start + len(outputs)], strict=True
                )
            ]
        return predictions

    def stream(self, image: ImageOrImages) -> Iterator[str | Prediction]:
        """Yields the text generated so far, then the final Prediction.

        Args:
            image: RGB, one image or several, with the run's views already applied.
        """
        from transformers import TextIteratorStreamer

        start_time = time.perf_counter()
        streamer = TextIteratorStreamer(
            self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        output: Future[Any] = Future()

        def generate() -> None:
            try:
                output.set_result(self._generate([image], True, streamer)[0])
            except BaseException as error:
                output.set_exception(error)
                streamer.end()

        threading.Thread(target=generate, daemon=True).start()
        text = ""
        for piece in streamer:
            text += piece
            yield text.strip()
        text, answer, scores, complete = output.result()
        yield Prediction(text, answer, scores, time.perf_counter() - start_time, complete)

    def score(
        self,
        images: Sequence[ImageOrImages],
        rationales: Sequence[str] | None = None,
        *,
        batch_size: int = BATCH_SIZE,
        prior: bool = False,
        preprocessed: bool = False,
        boxes: Sequence[Sequence[float] | None] | None = None,
    ) -> list[LabelScores]:
        """Score each label as the answer to each image, without generating text.

        Args:
            images: As in `predict`.
            rationales: A rationale before the label for each image; by default none.
            batch_size: Images of one batch.
            prior: Also score the labels after a grey picture, once per image size. Not together
                with `rationales`.
            preprocessed: As in `predict`.
            boxes: As in `predict`.

        Returns:
            The scores of each image.
        """
        if prior and rationales is not None:
            raise ValueError("the likelihoods behind a grey picture are those of the prompt alone")
        texts = [""] * len(images) if rationales is None else list(rationales)
        if not preprocessed:
            images, _ = crops.render_views(images, boxes, self.views, self.frames)
        label_scores: list[LabelScores] = []
        if self.model.device.type == "cpu":
            batch_size = min(batch_size, CPU_ROWS)
        for start in range(0, len(images), batch_size):
            end = start + batch_size
            label_scores += self._score_batch(images[start:end], texts[start:end])
        if not prior:
            return label_scores
        return [
            replace(scores, prior=self._prior(sizes_of(image)))
            for scores, image in zip(label_scores, images, strict=True)
        ]

    def _prior(self, sizes: Sequence[Size]) -> dict[str, float]:
        from PIL import Image

        key = (self.prompt.sha, tuple(sizes))
        if key not in self._priors:
            (grey,) = self._score_batch([[Image.new("RGB", size, GREY) for size in sizes]], [""])
            self._priors[key] = grey.log_likelihood
        return self._priors[key]

    def _score_batch(
        self, images: Sequence[ImageOrImages], rationales: Sequence[str]
    ) -> list[LabelScores]:
        import torch

        from vlmface.infer.cache import growing_cache

        start_time = time.perf_counter()
        rows = self.prompt_rows(images)
        candidates = [
            self.label_ids(text, sizes_of(image))
            for text, image in zip(rationales, images, strict=True)
        ]
        # Padded on the right as in training: a plain forward counts positions from the first slot.
        batch = encode.Collator(self.processor, self.family)(rows)
        batch = encode.to_model(batch, self.model)
        with torch.inference_mode():
            cache = growing_cache(self.model.config)
            self.model(**batch, cache=cache, use_cache=True, logits_to_keep=1)
            prompt_ids = [row["input_ids"] for row in rows]
            cached = _CachedRows(
                cache=cache,
                ids=prompt_ids,
                prompt_lengths=[len(ids) for ids in prompt_ids],
                first_slots=[0] * len(rows),
                width=batch["input_ids"].shape[1],
            )
            table, counts = self._label_log_probs(candidates, cached)
        labels = self.prompt.space.labels
        latency = (time.perf_counter() - start_time) / len(rows)
        return [
            LabelScores(
                dict(zip(labels, log_likelihoods, strict=True)),
                dict(zip(labels, row_counts, strict=True)),
                latency,
            )
            for log_likelihoods, row_counts in zip(table.tolist(), counts, strict=True)
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
        """Sample `count` answers to each image. Equal seeds and images give equal answers.

        Args:
            images: RGB images.
            count: Answers per image.
            temperature: Of the softmax.
            top_p: Nucleus sampling.
            seed: Of the random generator.
            boxes: As in `predict`; no effect for a model that was trained on full images.
            messages: Chat messages for each image, instead of the prompt's.

        Returns:
            A list of `count` texts for each image.
        """
        import torch

        from vlmface.infer import sampling

        images, _ = crops.render_views(images, boxes, self.views, self.frames)
        rows = self.prompt_rows(images, messages)
        batch = encode.to_model(encode.Collator(self.processor, self.family)(rows), self.model)
        stops = self.family.stop_token_ids(self.processor)
        image_token = self.processor.tokenizer.convert_tokens_to_ids(self.processor.image_token)
        rollout = sampling.sample(
            self.model,
            self.family,
            batch,
            group=count,
            max_new_tokens=self.max_new_tokens,
            stops=stops,
            generator=torch.Generator(self.model.device).manual_seed(seed),
            temperature=temperature,
            top_p=top_p,
            never=[image_token],
        )
        texts = [
            self.processor.tokenizer.decode(
                _until_stop(ids, stops)[0], skip_special_tokens=True
            ).strip()
            for ids in rollout.ids
        ]
        return [texts[start : start + count] for start in range(0, len(texts), count)]

    def prompt_rows(
        self,
        images: Sequence[ImageOrImages],
        messages: Sequence[list[dict[str, Any]]] | None = None,
    ) -> list[dict[str, Any]]:
        """Rows for the collator: each image, or list of images, with its messages.

        Args:
            images: With the run's views already applied.
            messages: For each image; by default the prompt's.

        Returns:
            Encoded rows without a completion.
        """
        row_messages = messages or [self.messages] * len(images)
        return [
            {
                **encode.encode_text(
                    self.processor, self.family, conversation, None, image_size=sizes_of(image)
                ),
                "image": image,
            }
            for image, conversation in zip(images, row_messages, strict=True)
        ]

    def _generate(
        self, images: Sequence[ImageOrImages], probabilities: bool, streamer: Any = None
    ) -> list[tuple[str, Answer, dict[str, float] | None, bool]]:
        """(text, answer, label probabilities, whether it is complete) of each image."""
        import torch

        from vlmface.infer.cache import growing_cache

        rows = self.prompt_rows(images)
        batch = encode.Collator(self.processor, self.family, padding="left")(rows)
        batch = encode.to_model(batch, self.model)
        stops = self.family.stop_token_ids(self.processor)
        with torch.inference_mode():
            output = self.model.generate(
                **batch,
                cache=growing_cache(self.model.config),
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                eos_token_id=stops,
                pad_token_id=self.processor.tokenizer.pad_token_id,
                return_dict_in_generate=True,
                streamer=streamer,
            )
            prompt_length = batch["input_ids"].shape[1]
            generated = [
                _until_stop(ids, stops) for ids in output.sequences[:, prompt_length:].tolist()
            ]
            texts = [
                self.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
                for ids, _ in generated
            ]
            answers = [self.prompt.parse(text) for text in texts]
            scores: list[dict[str, float] | None] = [None] * len(rows)
            # Of several labels these would be the probabilities of coming first, not of applying.
            if probabilities and not self.prompt.multi_label:
                lengths = [len(row["input_ids"]) for row in rows]
                cached = _CachedRows(
                    cache=output.cache,
                    ids=[
                        [*row["input_ids"], *ids]
                        for row, (ids, _) in zip(rows, generated, strict=True)
                    ],
                    prompt_lengths=lengths,
                    first_slots=[prompt_length - length for length in lengths],  # padded left
                    width=prompt_length,
                )
                scores = self._label_probabilities(answers, rows, cached)
        complete = [ended for _, ended in generated]
        return list(zip(texts, answers, scores, complete, strict=True))

    def label_ids(self, rationale: str, image_size: Size | Sequence[Size]) -> list[list[int]]:
        """The token ids of the whole conversation with each label.

        Args:
            rationale: The text before the label.
            image_size: As in `encode.encode_text`.

        Returns:
            For each label: prompt, rationale, label, suffix; of a prompt for several labels, up to
            the label, since others may follow.
        """
        conversations = [
            encode.encode_text(
                self.processor,
                self.family,
                self.messages,
                self.prompt.completion(rationale, label),
                image_size=image_size,
            )["input_ids"]
            for label in self.prompt.space.labels
        ]
        if self.prompt.multi_label:
            start = len(_common_prefix(conversations))
            end = len(_common_prefix([ids[start + 1 :][::-1] for ids in conversations]))
            conversations = [ids[: len(ids) - end] for ids in conversations]
        return conversations

    def _label_probabilities(
        self, answers: Sequence[Answer], rows: Sequence[dict[str, Any]], cached: _CachedRows
    ) -> list[dict[str, float] | None]:
        """Probabilities of the labels after the generated rationales, which are in the cache: the
        softmax over the log-likelihoods, each including the suffix that ends the label, so that a
        label that is the beginning of another gets no credit for it."""
        candidates = [
            self.label_ids(answer.rationale, sizes_of(row["image"]))
            for answer, row in zip(answers, rows, strict=True)
        ]
        table, _ = self._label_log_probs(candidates, cached)
        labels = self.prompt.space.labels
        return [dict(zip(labels, row, strict=True)) for row in table.softmax(1).tolist()]

    def _label_log_probs(
        self, candidates: Sequence[list[list[int]]], cached: _CachedRows
    ) -> tuple[torch.Tensor, list[list[int]]]:
        """Log-likelihoods (rows, labels) of each label's own tokens, and the number of tokens.

        `candidates[i]` are the ids of row i's conversation with each label. Cached tokens that are
        equal are reused. What else the labels of a row have in common is processed once, then each
        label's own tokens.
        """
        import torch

        device, cache = self.model.device, cached.cache
        filled = cache.get_seq_length()
        common = [len(_common_prefix(ids)) for ids in candidates]
        # The last reusable token is processed again: its output predicts what follows.
        reused = []
        for row_candidates, row_ids, prompt_length in zip(
            candidates, cached.ids, cached.prompt_lengths, strict=True
        ):
            cached_ids = row_ids[: prompt_length + filled - cached.width]
            reused.append(min(_common_length(cached_ids, other) for other in row_candidates) - 1)
        slots = torch.arange(filled, device=device)
        count, length, first, start = (
            torch.tensor(values, device=device)[:, None]
            for values in (reused, cached.prompt_lengths, cached.first_slots, common)
        )
        visible = (slots >= first) & (slots < first + torch.minimum(count, length))
        width = cached.width
        visible = (visible | ((slots >= width) & (slots < width + count - length))).long()
        shared = [ids[0][a:b] for ids, a, b in zip(candidates, reused, common, strict=True)]
        mask, logits = self._feed(cache, visible, shared, count)
        visible = torch.cat([visible, mask], 1)
        last = logits[torch.arange(len(shared), device=device), mask.sum(1) - 1]
        first_log_probs = last.float().log_softmax(-1)

        scores = []
        for j in range(len(self.prompt.space.labels)):
            label_tokens = [ids[j][a:] for ids, a in zip(candidates, common, strict=True)]
            ids = self._padded(label_tokens)
            score = first_log_probs.gather(-1, ids[:, :1])[:, 0]
            if ids.shape[1] > 1:
                mask, logits = self._feed(
                    cache, visible, [tokens[:-1] for tokens in label_tokens], start
                )
                cache.crop(-mask.shape[1])
                log_p = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
                score = score + (log_p * mask).sum(1)
            scores.append(score)
        counts = [[len(ids) - a for ids in row] for row, a in zip(candidates, common, strict=True)]
        return torch.stack(scores, 1), counts

    def _feed(
        self, cache: Any, visible: torch.Tensor, rows: Sequence[list[int]], start: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the model over the ids `rows` from position `start` (rows, 1) on. They attend to the
        cache slots that `visible` (rows, slots) flags. Returns (mask of the tokens that are not
        padding, logits)."""
        import torch

        ids = self._padded(rows)
        lengths = torch.tensor([[len(row)] for row in rows], device=ids.device)
        steps = torch.arange(ids.shape[1], device=ids.device)
        mask = (steps < lengths).long()
        logits = self.model(
            input_ids=ids,
            attention_mask=torch.cat([visible, mask], 1),
            cache=cache,
            use_cache=True,
            **self.family.decode_step_inputs(self.model, start + steps),
        ).logits
        return mask, logits

    def _padded(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """(rows, longest), padded on the right."""
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


def _common_prefix(rows: Sequence[list[int]]) -> list[int]:
    return rows[0][: min(_common_length(rows[0], row) for row in rows)]


def _common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
