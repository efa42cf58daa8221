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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import encode, families, manifest, prompts
from vlmface.adapter import attach
from vlmface.answers import Answer
from vlmface.aus.evidence import EvidenceSource, picture_index, uses_evidence
from vlmface.data import crops
from vlmface.errors import UserError
from vlmface.evidence import NOT_MEASURED
from vlmface.infer import sampling
from vlmface.infer.devices import device_and_dtype
from vlmface.infer.label_scoring import CachedRows, Decoder, common_prefix, label_log_probs
from vlmface.infer.model_source import find_source
from vlmface.infer.prediction import LabelScores, Prediction
from vlmface.infer.sampling import UNCHANGED, Distribution
from vlmface.utils.images import sizes_of

if TYPE_CHECKING:
    from vlmface.utils.images import ImageOrImages, Size

BATCH_SIZE = 16
GREY = (128, 128, 128)
CPU_ROWS = 8  # prompts in one pass on a CPU: the activations of more do not fit its caches


DEFAULT_MAX_NEW_TOKENS = 256  # of a base model, which has no manifest


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
        self.evidence = EvidenceSource()
        self._priors: dict[tuple[str, tuple[Size, ...]], dict[str, float]] = {}

    @property
    def _decoder(self) -> Decoder:
        return Decoder(self.model, self.family, self.processor.tokenizer.pad_token_id)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The chat messages of its prompt, which contains no evidence."""
        return self.prompt.messages()

    def close(self) -> None:
        """Close the estimator of evidence, if it was used."""
        self.evidence.close()

    def evidence_of(
        self, images: Sequence[ImageOrImages], measured: Sequence[str | None] | None = None
    ) -> list[str | None]:
        """The evidence of images for the model's prompt.

        Args:
            images: With the run's views already applied.
            measured: What was measured of them already; what is None is measured now.

        Returns:
            For each image its text, or None if the prompt contains no evidence.
        """
        if not self.prompt.uses_evidence:
            return [None] * len(images)
        if measured is None:
            return [*self.evidence.texts(images)]
        return [
            self.evidence.text(image) if text is None else text
            for image, text in zip(images, measured, strict=True)
        ]

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

        device, dtype = device_and_dtype(device, dtype)
        source = find_source(run_or_model, prompt)
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
        if uses_evidence(loaded.prompts):
            loaded.evidence.index = picture_index(loaded.views, loaded.frames)
        return loaded

    def predict(
        self,
        images: Sequence[ImageOrImages],
        *,
        batch_size: int = BATCH_SIZE,
        probabilities: bool = True,
        preprocessed: bool = False,
        boxes: Sequence[Sequence[float] | None] | None = None,
        evidence: Sequence[str | None] | None = None,
    ) -> list[Prediction]:
        """Generate an answer for each image, in order.

        The same image gets the same answer in any batch.

        Args:
            images: RGB images; a list of images is always treated as preprocessed.
            batch_size: Images of one batch.
            probabilities: Also compute the label probabilities after the generated rationale.
            preprocessed: The run's views were already applied.
            boxes: The face in each image, as [x0, y0, x1, y1] in pixels.
            evidence: Of each image, for a prompt that contains any; by default it is measured.

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
            end = start + batch_size
            texts = self.evidence_of(images[start:end], evidence and evidence[start:end])
            outputs = self._generate(images[start:end], texts, probabilities)
            latency = (time.perf_counter() - start_time) / len(outputs)
            predictions += [
                Prediction(text, answer, scores, latency, complete, face_found)
                for (text, answer, scores, complete), face_found in zip(
                    outputs, faces_found[start : start + len(outputs)], strict=True
                )
            ]
        return predictions

    def stream(
        self, image: ImageOrImages, evidence: str | None = None
    ) -> Iterator[str | Prediction]:
        """Yields the text generated so far, then the final Prediction.

        Args:
            image: RGB, one image or several, with the run's views already applied.
            evidence: Of the image, for a prompt that contains any; by default it is measured.
        """
        from transformers import TextIteratorStreamer

        start_time = time.perf_counter()
        streamer = TextIteratorStreamer(
            self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        output: Future[Any] = Future()

        def generate() -> None:
            try:
                texts = self.evidence_of([image], evidence and [evidence])
                output.set_result(self._generate([image], texts, True, streamer)[0])
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
        evidence: Sequence[str | None] | None = None,
    ) -> list[LabelScores]:
        """Score each label as the answer to each image, without generating text.

        Args:
            images: As in `predict`.
            rationales: A rationale before the label for each image; by default none.
            batch_size: Images of one batch.
            prior: Also score the labels after a grey picture without evidence, once per image size.
                Not together with `rationales`.
            preprocessed: As in `predict`.
            boxes: As in `predict`.
            evidence: As in `predict`.

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
            batch_evidence = self.evidence_of(images[start:end], evidence and evidence[start:end])
            label_scores += self._score_batch(images[start:end], texts[start:end], batch_evidence)
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
            grey_images = [Image.new("RGB", size, GREY) for size in sizes]
            (grey,) = self._score_batch([grey_images], [""], [NOT_MEASURED])
            self._priors[key] = grey.log_likelihood
        return self._priors[key]

    def _score_batch(
        self,
        images: Sequence[ImageOrImages],
        rationales: Sequence[str],
        evidence: Sequence[str | None],
    ) -> list[LabelScores]:
        import torch

        from vlmface.infer.cache import growing_cache

        start_time = time.perf_counter()
        rows = self.prompt_rows(images, evidence=evidence)
        candidates = [
            self.label_ids(text, sizes_of(image), text_of_image)
            for text, image, text_of_image in zip(rationales, images, evidence, strict=True)
        ]
        # Padded on the right as in training: a plain forward counts positions from the first slot.
        batch = encode.Collator(self.processor, self.family)(rows)
        batch = encode.to_model(batch, self.model)
        with torch.inference_mode():
            cache = growing_cache(self.model.config)
            self.model(**batch, cache=cache, use_cache=True, logits_to_keep=1)
            prompt_ids = [row["input_ids"] for row in rows]
            cached = CachedRows(
                cache=cache,
                ids=prompt_ids,
                prompt_lengths=[len(ids) for ids in prompt_ids],
                first_slots=[0] * len(rows),
                width=batch["input_ids"].shape[1],
            )
            table, counts = label_log_probs(self._decoder, candidates, cached)
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
        distribution: Distribution = UNCHANGED,
        *,
        seed: int = 0,
        boxes: Sequence[Sequence[float] | None] | None = None,
        messages: Sequence[list[dict[str, Any]]] | None = None,
    ) -> list[list[str]]:
        """Sample `count` answers to each image. Equal seeds and images give equal answers.

        Args:
            images: RGB images.
            count: Answers per image.
            distribution: What tokens are drawn from; image tokens are never drawn.
            seed: Of the random generator.
            boxes: As in `predict`; no effect for a model that was trained on full images.
            messages: Chat messages for each image, instead of the prompt's.

        Returns:
            A list of `count` texts for each image.
        """
        import torch

        images, _ = crops.render_views(images, boxes, self.views, self.frames)
        evidence = self.evidence_of(images) if messages is None else None
        rows = self.prompt_rows(images, messages, evidence)
        batch = encode.to_model(encode.Collator(self.processor, self.family)(rows), self.model)
        stops = self.family.stop_token_ids(self.processor)
        image_token = self.processor.tokenizer.convert_tokens_to_ids(self.processor.image_token)
        options = sampling.SamplingOptions(
            max_new_tokens=self.max_new_tokens,
            stops=stops,
            temperature=distribution.temperature,
            top_p=distribution.top_p,
            never=[image_token],
        )
        rollout = sampling.sample(
            self.model,
            self.family,
            batch,
            options,
            group=count,
            generator=torch.Generator(self.model.device).manual_seed(seed),
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
        evidence: Sequence[str | None] | None = None,
    ) -> list[dict[str, Any]]:
        """Rows for the collator: each image, or list of images, with its messages.

        Args:
            images: With the run's views already applied.
            messages: For each image; by default the prompt's.
            evidence: Of each image, for the prompt's messages.

        Returns:
            Encoded rows without a completion.
        """
        texts = evidence or [None] * len(images)
        row_messages = messages or [self.prompt.messages(text) for text in texts]
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
        self,
        images: Sequence[ImageOrImages],
        evidence: Sequence[str | None],
        probabilities: bool,
        streamer: Any = None,
    ) -> list[tuple[str, Answer, dict[str, float] | None, bool]]:
        """(text, answer, label probabilities, whether it is complete) of each image."""
        import torch

        from vlmface.infer.cache import growing_cache

        rows = self.prompt_rows(images, evidence=evidence)
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
                cached = CachedRows(
                    cache=output.cache,
                    ids=[
                        [*row["input_ids"], *ids]
                        for row, (ids, _) in zip(rows, generated, strict=True)
                    ],
                    prompt_lengths=lengths,
                    first_slots=[prompt_length - length for length in lengths],  # padded left
                    width=prompt_length,
                )
                candidates = [
                    self.label_ids(answer.rationale, sizes_of(row["image"]), row_evidence)
                    for answer, row, row_evidence in zip(answers, rows, evidence, strict=True)
                ]
                scores = self._label_probabilities(candidates, cached)
        complete = [ended for _, ended in generated]
        return list(zip(texts, answers, scores, complete, strict=True))

    def label_ids(
        self, rationale: str, image_size: Size | Sequence[Size], evidence: str | None = None
    ) -> list[list[int]]:
        """The token ids of the whole conversation with each label.

        Args:
            rationale: The text before the label.
            image_size: As in `encode.encode_text`.
            evidence: Of the image, for a prompt that contains any.

        Returns:
            For each label: prompt, rationale, label, suffix; of a prompt for several labels, up to
            the label, since others may follow.
        """
        messages = self.prompt.messages(evidence)
        conversations = [
            encode.encode_text(
                self.processor,
                self.family,
                messages,
                self.prompt.completion(rationale, label),
                image_size=image_size,
            )["input_ids"]
            for label in self.prompt.space.labels
        ]
        if self.prompt.multi_label:
            start = len(common_prefix(conversations))
            end = len(common_prefix([ids[start + 1 :][::-1] for ids in conversations]))
            conversations = [ids[: len(ids) - end] for ids in conversations]
        return conversations

    def _label_probabilities(
        self, candidates: Sequence[list[list[int]]], cached: CachedRows
    ) -> list[dict[str, float] | None]:
        """Probabilities of the labels after the generated rationales, which are in the cache: the
        softmax over the log-likelihoods of `label_ids`, each including the suffix that ends the
        label, so that a label that is the beginning of another gets no credit for it."""
        table, _ = label_log_probs(self._decoder, candidates, cached)
        labels = self.prompt.space.labels
        return [dict(zip(labels, row, strict=True)) for row in table.softmax(1).tolist()]


def _until_stop(ids: list[int], stops: Sequence[int]) -> tuple[list[int], bool]:
    """(ids before the first stop token, whether there was one)."""
    for i, token in enumerate(ids):
        if token in stops:
            return ids[:i], True
    return ids, False
