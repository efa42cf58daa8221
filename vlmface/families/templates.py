"""Prompts and answers as a checkpoint's chat template frames them.

The prompt is what the template writes with `add_generation_prompt`, as a server does. The answer
is the target to the letter and the end of a turn: templates of reasoning models rewrite what an
assistant wrote (Qwen3-VL-Thinking moves `<think>` into the prompt and drops earlier thoughts), and
such a text is never what a model should learn to write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmface.errors import UserError

Messages = Sequence[Mapping[str, Any]]

# Stand for a question and an answer while a template is examined: private characters, which no
# template treats in a way of its own.
_QUESTION, _ANSWER = "\ue000question\ue000", "\ue000answer\ue000"


def prompt(processor: Any, messages: Messages) -> str:
    """The conversation as text, open for the assistant's answer. Raises UserError if the template
    refuses the conversation, or leaves out a text of it."""
    text = _render(processor, messages, add_generation_prompt=True)
    for message in messages:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for block in blocks if message["role"] != "assistant" else ():
            if block["type"] == "text" and block["text"].strip() not in text:
                raise UserError(
                    f"the chat template leaves out or rewrites the text of the {message['role']} "
                    f"({block['text'][:60]!r}): use a prompt without it, or a chat_template.jinja "
                    "that writes it"
                )
    return text


def completion(processor: Any, messages: Messages, target: str, ends: Sequence[str | None]) -> str:
    """What follows `prompt` when the assistant answers `target`: white space that the template
    writes before an answer, the target to the letter, and the end of the turn.

    `ends` are tokens that end an answer. It is closed with the first of them, once, whichever the
    template writes and how often: a model that never sees it does not learn to stop. Raises
    UserError if the template writes the question differently once it is answered, or if there is
    no such token.
    """
    end_tokens = [end for end in ends if end]
    if not end_tokens:
        raise UserError(
            "the tokenizer has no eos_token, so that no answer could end: set it in "
            "tokenizer_config.json"
        )
    turn = {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]}
    before, _, behind = _render(processor, [*messages, turn]).rpartition(_ANSWER)
    opened = prompt(processor, messages)
    prefix_text = opened[: opened.rfind(_last_text(messages)) + len(_last_text(messages))]
    if not before.startswith(prefix_text):
        raise UserError(
            "the chat template writes the conversation with an answer differently from the prompt "
            f"alone ({prefix_text[-40:]!r} against {before[: len(prefix_text)][-40:]!r}): training "
            "and serving would not agree"
        )
    gap = before[len(opened) :] if before.startswith(opened) else ""
    if gap.strip():  # empty thoughts, say, which an answer brings itself
        gap = ""
    places = [position for end in end_tokens if (position := behind.find(end)) >= 0]
    behind = behind[: min(places)] if places else behind.rstrip()
    return gap + target + behind + end_tokens[0]


def _last_text(messages: Messages) -> str:
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content.strip()
    texts = [block["text"].strip() for block in content if block["type"] == "text"]
    return texts[-1] if texts else ""


def check(processor: Any, path: str | Path) -> None:
    """Raises UserError unless the chat template writes a question about a picture and its answer,
    the same every day, and the tokenizer leaves the prompt open for an answer."""
    if not processor.chat_template:
        raise UserError(
            f"{path} has no chat template, so prompts cannot be written as the model saw them: "
            "add its chat_template.jinja"
        )
    content = [{"type": "image"}, {"type": "text", "text": _QUESTION}]
    question = {"role": "user", "content": content}
    answer = {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]}
    prompt_text = _render(processor, [question], add_generation_prompt=True)
    answer_text = _render(processor, [question, answer])
    for description, text, piece in (
        ("a question", prompt_text, _QUESTION),
        ("a picture", prompt_text, processor.image_token),
        ("an answer", answer_text, _ANSWER),
    ):
        count = text.count(piece)
        if count != 1 or "'type'" in text:  # a list of blocks, printed as Python would
            raise UserError(
                f"the chat template of {path} does not write {description} given as a list of "
                'blocks ({"type": "text", ...}, {"type": "image"}): it makes '
                f"{text[-80:]!r} of it. Replace chat_template.jinja by one for pictures"
            )
    if _on_day(processor, question, "1 January") != _on_day(processor, question, "2 January"):
        raise UserError(
            f"the chat template of {path} writes today's date (strftime_now), so that a model "
            "would be asked another prompt each day than it was trained with: write a fixed date "
            "into chat_template.jinja"
        )
    _check_tokenizer(processor, path, prompt_text)


def _check_tokenizer(processor: Any, path: str | Path, prompt_text: str) -> None:
    tokenizer = processor.tokenizer
    bos, eos = tokenizer.bos_token, tokenizer.eos_token_id
    if bos and prompt_text.startswith(bos):
        return  # then no special tokens are added
    if eos is not None and tokenizer("?")["input_ids"][-1] == eos:
        raise UserError(
            f"the tokenizer of {path} adds {tokenizer.eos_token} behind every text, so that a "
            "prompt would end before it is answered: set add_eos_token to false in "
            "tokenizer_config.json, and take it out of the post_processor of tokenizer.json"
        )


def _on_day(processor: Any, question: Mapping[str, Any], day: str) -> str:
    """The prompt as the template writes it where `strftime_now` gives `day`."""
    now = "{%- macro strftime_now(form) -%}" + day + "{%- endmacro -%}"
    return _render(
        processor,
        [question],
        add_generation_prompt=True,
        chat_template=now + processor.chat_template,
    )


def _render(processor: Any, messages: Messages, **options: Any) -> str:
    import jinja2

    try:
        return processor.apply_chat_template(list(messages), **options)
    except (jinja2.TemplateError, TypeError, KeyError, AttributeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"the chat template cannot write a conversation of {roles} "
            f"({type(error).__name__}: {error}): use another prompt, or a chat_template.jinja for "
            "pictures"
        ) from error
