"""Messages, images and target to tensors: the only encoder, for training, evaluation and serving.

A row is always prompt/completion: the loss covers the completion and its end token, never the
prompt, an image token or padding. A row that does not fit the length budget is refused and counted;
neither image tokens nor the answer are ever cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from vlmface.data.row_images import IMAGE_COLUMNS, image_refs, open_row_image
from vlmface.errors import SkippedSampleError, UserError
from vlmface.families.base import Family
from vlmface.utils.images import ImageOrImages, Size, as_list, sizes_of

if TYPE_CHECKING:
    import numpy as np
    import torch

IGNORED = -100
SOURCE_COLUMN = "source"  # of rows that may be encoded again with another text


def encode_text(
    processor: Any,
    family: Family,
    messages: Sequence[Mapping[str, Any]],
    target: str | None,
    *,
    max_length: int | None = None,
    image_size: Size | Sequence[Size | None] | None = None,
) -> dict[str, list[int]]:
    """Encode one conversation without its images' pixels.

    Args:
        processor: The processor.
        family: Its family.
        messages: The conversation, up to the answer.
        target: The answer to learn, or None.
        max_length: The most tokens.
        image_size: (width, height) in pixels of the image, or a list of those of all images in
            their order. It matters to families with free resolutions only; nothing is decoded.

    Returns:
        `input_ids` (with as many image tokens as the model will see), `attention_mask`, whatever
        else the family's model takes for each token, and `labels` if there is a target: -100 up to
        the end of the prompt, then the ids of the completion with its end token.

    Raises:
        SkippedSampleError: "no_target", "image_in_text", "too_long", "image_shape", or "joined":
            the tokenizer makes one token of the prompt's end and the answer's start.
        UserError: There are more or fewer sizes than images.
    """
    tokenizer = processor.tokenizer
    prompt = family.prompt_text(processor, messages)
    completion = "" if target is None else _completion(processor, family, messages, target)
    images = _count_images(processor, messages, prompt + completion)
    if images:
        sizes = [None] * images if image_size is None else _as_lists(image_size)
        prompt = _expand_images(processor, family, prompt, sizes)
    # As processors do: a template that writes the BOS itself must not get a second one.
    bos = tokenizer.bos_token
    special = not (family.PROMPT_HAS_BOS or (bos and prompt.startswith(bos)))
    ids, prefix = (_tokenize(tokenizer, text, special) for text in (prompt + completion, prompt))
    start = len(prefix)
    if ids[:start] != prefix:
        raise SkippedSampleError(
            "joined",
            f"the tokenizer joins the prompt's end {prompt[-20:]!r} with the answer's start "
            f"{completion[:20]!r}: training and serving would not agree",
        )
    if max_length is not None and len(ids) > max_length:
        raise SkippedSampleError(
            "too_long",
            f"{len(ids)} tokens ({prompt.count(processor.image_token)} of the image, "
            f"{len(ids) - start} of the answer) do not fit max_length {max_length}",
        )
    encoded = {"input_ids": ids, "attention_mask": [1] * len(ids)}
    encoded |= family.per_token_inputs(processor, ids, None if target is None else start)
    if target is not None:
        encoded["labels"] = [IGNORED] * start + ids[start:]
    return encoded


def encode_conversation(
    processor: Any,
    family: Family,
    messages: Sequence[Mapping[str, Any]],
    *,
    max_length: int | None = None,
    image_size: Size | Sequence[Size | None] | None = None,
) -> list[dict[str, list[int]]]:
    """Encode a conversation of which every answer is trained on.

    Args:
        processor: The processor.
        family: Its family.
        messages: The conversation in blocks; the last message is an answer.
        max_length: The most tokens.
        image_size: As for `encode_text`, of all images.

    Returns:
        One row as `encode_text` returns it, with labels for each answer and its end token. If the
        chat template writes an answer differently once the conversation continues (templates of
        reasoning models drop earlier thoughts, some leave out the end token), a row for each
        answer, as a server would show the conversation up to it.

    Raises:
        SkippedSampleError: As `encode_text`; or "later_image": there would be a row for each
            answer, but an image comes after the first of them.
        UserError: As `encode_text`; or the template cannot write the conversation.
    """
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if len(answers) == 1:
        return [_encode_answer(processor, family, messages, max_length, image_size)]
    prompts = [family.prompt_text(processor, messages[:i]) for i in answers]
    completions = [
        _completion(processor, family, messages[:i], _answer_text(messages[i])) for i in answers
    ]
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    continued = zip(texts[:-1], prompts[1:], strict=True)
    if all(prompt.startswith(text) for text, prompt in continued):
        pieces, end = [], 0
        for prompt, text in zip(prompts, texts, strict=True):
            pieces += [(prompt[end:], False), (text[len(prompt) :], True)]
            end = len(text)
        _count_images(processor, messages, texts[-1])
        return [_encode_pieces(processor, family, pieces, max_length, image_size)]
    if _num_images(messages[: answers[0]]) != _num_images(messages):
        raise SkippedSampleError(
            "later_image",
            "the chat template rewrites earlier answers, and an image comes after the first answer",
        )
    return [
        _encode_answer(processor, family, messages[: i + 1], max_length, image_size)
        for i in answers
    ]


def _answer_text(message: Mapping[str, Any]) -> str:
    return "".join(block["text"] for block in message["content"])


def _encode_answer(
    processor: Any,
    family: Family,
    messages: Sequence[Mapping[str, Any]],
    max_length: int | None,
    image_size: Size | Sequence[Size | None] | None,
) -> dict[str, list[int]]:
    """`encode_text` of a conversation whose last message is the answer."""
    *prompt, answer = messages
    return encode_text(
        processor,
        family,
        prompt,
        _answer_text(answer),
        max_length=max_length,
        image_size=image_size,
    )


def _encode_pieces(
    processor: Any,
    family: Family,
    pieces: Sequence[tuple[str, bool]],
    max_length: int | None,
    image_size: Size | Sequence[Size | None] | None,
) -> dict[str, list[int]]:
    """A row from texts that follow one another, and whether each is trained on."""
    tokenizer = processor.tokenizer
    images = sum(text.count(processor.image_token) for text, _ in pieces)
    sizes = [None] * images if image_size is None else _as_lists(image_size)
    _check_sizes(sizes, images)
    remaining = iter(sizes)
    texts = [
        _expand_images(
            processor, family, text, list(islice(remaining, text.count(processor.image_token)))
        )
        for text, _ in pieces
    ]
    bos = tokenizer.bos_token
    special = not (family.PROMPT_HAS_BOS or (bos and texts[0].startswith(bos)))
    whole = "".join(texts)
    ids = _tokenize(tokenizer, whole, special)
    labels = [IGNORED] * len(ids)
    first, start, end = None, 0, 0
    for text, (_, trained) in zip(texts, pieces, strict=True):
        end += len(text)
        prefix = _tokenize(tokenizer, whole[:end], special)
        if ids[: len(prefix)] != prefix:
            raise SkippedSampleError(
                "joined",
                f"the tokenizer joins {whole[:end][-20:]!r} with {whole[end : end + 20]!r}: "
                "training and serving would not agree",
            )
        if trained:
            labels[start : len(prefix)] = ids[start : len(prefix)]
            first = start if first is None else first
        start = len(prefix)
    if max_length is not None and len(ids) > max_length:
        raise SkippedSampleError(
            "too_long",
            f"{len(ids)} tokens of {len(pieces) // 2} answers do not fit max_length {max_length}",
        )
    encoded = {"input_ids": ids, "attention_mask": [1] * len(ids)}
    return encoded | family.per_token_inputs(processor, ids, first) | {"labels": labels}


def _completion(
    processor: Any, family: Family, messages: Sequence[Mapping[str, Any]], target: str
) -> str:
    """The text after the prompt. Raises SkippedSampleError if the target is empty."""
    if not target.strip():
        raise SkippedSampleError(
            "no_target", "the target text is empty: nothing could be learnt from it"
        )
    return family.completion_text(processor, messages, target)


def _count_images(processor: Any, messages: Sequence[Mapping[str, Any]], text: str) -> int:
    """The images of a conversation. Raises SkippedSampleError if its texts hold the image token."""
    images = _num_images(messages)
    if (tokens := text.count(processor.image_token)) != images:
        raise SkippedSampleError(
            "image_in_text",
            f"the conversation holds {tokens} times {processor.image_token!r}, but has {images} "
            "image(s): take the token out of the text",
        )
    return images


def _num_images(messages: Sequence[Mapping[str, Any]]) -> int:
    return sum(
        block["type"] == "image"
        for message in messages
        if not isinstance(message["content"], str)
        for block in message["content"]
    )


def _expand_images(
    processor: Any, family: Family, prompt: str, sizes: Sequence[Size | None]
) -> str:
    """The prompt with as many image tokens for each image as the model will see."""
    before, *between = prompt.split(processor.image_token)
    _check_sizes(sizes, len(between))
    return before + "".join(
        family.image_text(processor, size) + text for size, text in zip(sizes, between, strict=True)
    )


def _check_sizes(sizes: Sequence[Size | None], images: int) -> None:
    """Raise UserError unless there are as many sizes as images."""
    if len(sizes) != images:
        raise UserError(
            f"the prompt is about {images} picture(s), but {len(sizes)} are shown: use a "
            "prompt with as many `images`, or other views and num_frames"
        )


def _as_lists(sizes: Size | Sequence[Size | None]) -> list[Any]:
    return [sizes] if isinstance(sizes[0], int) else list(sizes)


def to_model(batch: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """The tensors on the model's device; those of real numbers, the pixels, in its precision."""
    return {
        name: tensor.to(model.device, model.dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in batch.items()
    }


def encode(
    processor: Any,
    family: Family,
    prompt_messages: Sequence[Mapping[str, Any]],
    image: ImageOrImages,
    target: str | None = None,
    *,
    max_length: int | None = None,
) -> dict[str, Any]:
    """Encode one row completely.

    Args:
        processor: The processor.
        family: Its family.
        prompt_messages: The conversation, up to the answer.
        image: The image or images of the conversation.
        target: The answer to learn, or None.
        max_length: The most tokens.

    Returns:
        What `encode_text` and the family's `image_inputs` return.

    Raises:
        SkippedSampleError: As `encode_text`.
        UserError: As `encode_text`.
    """
    text = encode_text(
        processor,
        family,
        prompt_messages,
        target,
        max_length=max_length,
        image_size=sizes_of(image),
    )
    return {**text, **family.image_inputs(processor, as_list(image))}


def _tokenize(tokenizer: Any, text: str, special: bool) -> list[int]:
    # Not verbose: the caller refuses what is too long, with a better message.
    return tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]


class Collator:
    """Rows -> a batch of tensors, padded on the right for training, on the left for generation.

    A row is the result of `encode`; or that of `encode_text` with an `image`, or several as
    `images`, which are preprocessed here, so that a data set need not hold pixels in memory. Its
    number `row`, if it has one, is passed on, its `length` and SOURCE_COLUMN are not.

    Args:
        processor: The processor.
        family: Its family.
        padding: "right" or "left".
    """

    def __init__(self, processor: Any, family: Family, *, padding: str = "right") -> None:
        if padding not in ("left", "right"):
            raise ValueError(f"padding {padding!r}: left or right")
        self.processor = processor
        self.family = family
        self.padding = padding

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Returns:
            `input_ids`, `attention_mask`, perhaps `labels`, and what else there is for each token:
            (rows, longest); and the images as the model's forward takes them.
        """
        import torch

        longest = max(len(row["input_ids"]) for row in rows)

        def pad(values: Sequence[int], filler: int) -> list[int]:
            padding = [filler] * (longest - len(values))
            return [*values, *padding] if self.padding == "right" else [*padding, *values]

        pad_id = self.processor.tokenizer.pad_token_id
        if pad_id is None:
            pad_id = self.processor.tokenizer.eos_token_id
        fillers = {"input_ids": pad_id, "labels": IGNORED}
        batch: dict[str, Any] = {}
        for name, value in rows[0].items():
            if name == "row":
                batch["row"] = torch.tensor([row["row"] for row in rows])
            elif isinstance(value, torch.Tensor):
                batch[name] = _concatenate([row[name] for row in rows])
            elif name not in (*IMAGE_COLUMNS, "length", SOURCE_COLUMN):
                filler = fillers.get(name, 0)
                batch[name] = torch.tensor([pad(row[name], filler) for row in rows])
        batch["attention_mask"] = torch.tensor(
            [pad([1] * len(row["input_ids"]), 0) for row in rows]
        )
        if "image" in rows[0]:
            images = [open_row_image(image) for row in rows for image in image_refs(row)]
            batch |= self.family.image_inputs(self.processor, images)
        return batch


def _concatenate(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Along the first axis; the others are filled up with zeros, as image processors do in a batch
    where one image has fewer tiles than another."""
    longest = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
    joined = tensors[0].new_zeros((sum(len(t) for t in tensors), *longest))
    start = 0
    for t in tensors:
        joined[(slice(start, start + len(t)), *(slice(size) for size in t.shape[1:]))] = t
        start += len(t)
    return joined


class GroupedSampler:
    """Indices of an epoch such that `batch_size` neighbours have nearly the same length.

    The order depends on `seed` and the epoch alone, not on any global random state: a run that is
    resumed in the middle of an epoch sees the same rows as one that was not interrupted.
    """

    SORT_POOL = 50  # batches that are sorted together: little padding, yet random batches

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        import numpy as np

        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(len(self.lengths))
        batches: list[np.ndarray] = []
        pool = self.SORT_POOL * self.batch_size
        for start in range(0, len(order), pool):
            rows = order[start : start + pool]
            rows = rows[np.argsort([self.lengths[row] for row in rows], kind="stable")]
            batches += [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        short = [batch for batch in batches if len(batch) < self.batch_size]
        batches = [batch for batch in batches if len(batch) == self.batch_size]
        generator.shuffle(batches)
        for batch in [*batches, *short]:
            yield from (int(row) for row in batch)
